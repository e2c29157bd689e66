// Key functions of the SDK's interfaces. Defining them here puts the type information into libdsv3,
// so that dynamic_cast and catch work across plugin libraries.
#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/callback.h>
#include <dsv3/sdk/communicator.h>
#include <dsv3/sdk/data.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/format.h>
#include <dsv3/sdk/optimizer.h>
#include <dsv3/sdk/pluggable.h>
#include <dsv3/sdk/position.h>
#include <dsv3/sdk/schedule.h>
#include <dsv3/sdk/strategy.h>
#include <dsv3/sdk/tokenizer.h>
#include <dsv3/sdk/tracker.h>

namespace dsv3 {

Attention::~Attention() = default;
Callback::~Callback() = default;
Component::~Component() = default;
Data::~Data() = default;
FeedForward::~FeedForward() = default;
Format::~Format() = default;
Optimizer::~Optimizer() = default;
Pluggable::~Pluggable() = default;
Position::~Position() = default;
RetryAfter::~RetryAfter() = default;
RunControl::~RunControl() = default;
Schedule::~Schedule() = default;
Strategy::~Strategy() = default;
Tokenizer::~Tokenizer() = default;
Tracker::~Tracker() = default;
TrackerStore::~TrackerStore() = default;

void Tracker::record(std::span<const Record>) {}
std::string Tracker::download(const std::string&, const std::filesystem::path&) {
  return "";
}
void Tracker::upload(const std::filesystem::path&, const Record&) {}
void Tracker::upload_checkpoint(const std::filesystem::path&, const Record&) {}

nlohmann::json Callback::state() const {
  return nlohmann::json::object();
}

std::string Schedule::problem(int64_t) const {
  return {};
}

std::string warmup_problem(int64_t warmup, int64_t total) {
  if (warmup <= total) return {};
  return "warmup (" + std::to_string(warmup) + " steps) is longer than the run (" +
         std::to_string(total) + " steps); shorten it, or raise train.steps or train.tokens";
}

std::shared_ptr<Position> position_of(const LayerContext& context, const std::string& option,
                                      int64_t rotary_dim) {
  try {
    return context.make_position(rotary_dim);
  } catch (const Error& error) {
    throw Error(option + " results in a rotary width of " + std::to_string(rotary_dim) + ": " +
                    error.what(),
                error.code());
  }
}

std::shared_ptr<Communicator> rank_group_of(const LayerContext& context, const std::string& option,
                                            int64_t size) {
  if (size == 1 || !context.rank_group) return nullptr;
  try {
    return context.rank_group(size);
  } catch (const Error& error) {
    throw Error(option + ": " + error.what(), error.code());
  }
}

}  // namespace dsv3
