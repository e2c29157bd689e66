#include "ranks/exchange.h"

#include <algorithm>
#include <cstring>

#include <ATen/ATen.h>

#include <dsv3/runtime/failure.h>
#include <dsv3/support/json.h>
#include <dsv3/support/sha256.h>

#include "support/host.h"

namespace dsv3 {
namespace {

/// The values that differ between two ranks' facts, one per line; some of them if there are many.
std::string difference_lines(const Json& first, const Json& odd) {
  constexpr int kShown = 5;
  std::string lines;
  int count = 0;
  Json all = first;
  all.update(odd);
  for (const auto& [name, ignored] : all.items()) {
    const auto shown = [&name](const Json& facts) {
      const std::string value = facts.value(name, "");
      return value.empty() ? "absent" : value;
    };
    if (shown(first) == shown(odd) || ++count > kShown) continue;
    lines += "\n  " + name + ": " + shown(odd) + " instead of " + shown(first);
  }
  if (count > kShown) lines += "\n  and " + std::to_string(count - kShown) + " more";
  return lines;
}

}  // namespace

std::vector<std::string> gather_texts(Communicator& ranks, const std::string& text) {
  if (ranks.size() == 1) return {text};
  at::Tensor lengths = at::zeros({ranks.size()}, at::kLong);
  lengths[ranks.rank()] = int64_t(text.size());
  ranks.all_reduce_sum(lengths);
  const int64_t longest = std::max<int64_t>(lengths.max().item<int64_t>(), 1);
  at::Tensor own = at::zeros({longest}, at::kByte);
  std::memcpy(own.data_ptr(), text.data(), text.size());
  at::Tensor all = at::empty({ranks.size(), longest}, at::kByte);
  ranks.start_all_gather(all.view(-1), own)->wait();
  std::vector<std::string> texts;
  for (int64_t rank = 0; rank < ranks.size(); ++rank)
    texts.emplace_back(all[rank].const_data_ptr<uint8_t>(),
                       all[rank].const_data_ptr<uint8_t>() + lengths[rank].item<int64_t>());
  return texts;
}

std::string broadcast_text(Communicator& ranks, const std::string& text, int64_t root) {
  if (ranks.size() == 1) return text;
  at::Tensor length = at::full({1}, int64_t(text.size()), at::kLong);
  ranks.broadcast(length, root);
  at::Tensor bytes = at::zeros({std::max<int64_t>(length.item<int64_t>(), 1)}, at::kByte);
  if (ranks.rank() == root) std::memcpy(bytes.data_ptr(), text.data(), text.size());
  ranks.broadcast(bytes, root);
  const auto* data = reinterpret_cast<const char*>(bytes.const_data_ptr<uint8_t>());
  return {data, data + length.item<int64_t>()};
}

bool is_true_on_any(Communicator& ranks, bool value) {
  if (ranks.size() == 1) return value;
  at::Tensor flag = at::full({1}, int64_t(value), at::kLong);
  ranks.all_reduce_max(flag);
  return flag.item<int64_t>() != 0;
}

void require_equal(Communicator& ranks, const Facts& facts) {
  const Json own(facts);
  const std::string digest = sha256(own.dump());
  const std::vector<std::string> digests = gather_texts(ranks, digest);
  if (std::ranges::count(digests, digest) == ranks.size()) return;
  const std::vector<std::string> all = gather_texts(ranks, own.dump());
  const std::vector<std::string> hosts = gather_texts(ranks, host_name());
  const size_t odd =
      size_t(std::ranges::find_if(
                 digests, [&](const std::string& other) { return other != digests.front(); }) -
             digests.begin());
  throw Error("rank " + std::to_string(odd) + " on " + hosts[odd] + " differs from rank 0 on " +
                  hosts[0] + ":" + difference_lines(Json::parse(all[0]), Json::parse(all[odd])) +
                  "\nStart all ranks with the same command, files and installation",
              ExitCode::usage);
}

void run_together(Communicator& ranks, const std::function<void()>& f) {
  if (ranks.size() == 1) return f();
  std::exception_ptr failure;
  std::string cause;  // one character for the exit code, then the text
  try {
    f();
  } catch (const std::exception& error) {
    failure = std::current_exception();
    cause = char(current_exception_code()) + current_exception_text();
  }
  const std::vector<std::string> causes = gather_texts(ranks, cause);
  if (failure) std::rethrow_exception(failure);
  for (size_t rank = 0; rank < causes.size(); ++rank)
    if (!causes[rank].empty())
      throw Error("rank " + std::to_string(rank) + ": " + causes[rank].substr(1),
                  ExitCode(causes[rank].front()));
}

}  // namespace dsv3
