// Whole training steps with components loaded from plugins against the same classes linked into
// this program, in alternation, and the cost of one virtual call into each. Prints JSON.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iostream>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <dsv3/runtime/model.h>
#include <dsv3/runtime/optimizer_set.h>
#include <dsv3/sdk/communicator.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/support/json.h>

// The plugins themselves, each with a registration function of its own name.
#define dsv3_register_plugin register_mla
#include "../../../plugins/attention/mla/mla.cpp"
#undef dsv3_register_plugin
#define dsv3_register_plugin register_moe
#include "../../../plugins/feed_forward/moe/moe.cpp"
#include "../../../plugins/feed_forward/moe/routing.cpp"
#undef dsv3_register_plugin
#define dsv3_register_plugin register_swiglu
#include "../../../plugins/feed_forward/swiglu/swiglu.cpp"
#undef dsv3_register_plugin
#define dsv3_register_plugin register_rope
#include "../../../plugins/position/rope/rope.cpp"
#undef dsv3_register_plugin
#define dsv3_register_plugin register_adamw
#include "../../../plugins/optimizer/adamw/adamw.cpp"
#undef dsv3_register_plugin
#define dsv3_register_plugin register_single
#include "../../../plugins/strategy/single/single.cpp"
#undef dsv3_register_plugin

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

template <class Base, class... Context>
std::shared_ptr<Base> make_linked(const dsv3::ComponentSpec& spec, const Context&... context) {
  static const dsv3::Registrar all = [] {
    dsv3::Registrar registrar;
    for (auto* add : {register_mla, register_moe, register_swiglu, register_rope, register_adamw,
                      register_single})
      add(registrar);
    return registrar;
  }();
  for (const dsv3::Registration& each : all.registrations())
    if (each.kind == spec.kind && each.name == spec.plugin)
      return std::get<dsv3::Factory<Base, Context...>>(each.factory)(spec.options, context...);
  throw dsv3::Error("this benchmark does not link " + spec.plugin, dsv3::ExitCode::usage);
}

const dsv3::ComponentSpec& at_layer(const std::vector<dsv3::LayerRange>& ranges, int64_t layer) {
  for (const dsv3::LayerRange& range : ranges)
    if (layer >= range.first && layer <= range.last) return range.component;
  return ranges.back().component;  // of an MTP module
}

dsv3::ModelFactory linked_factory(const dsv3::Experiment& e) {
  dsv3::ModelFactory factory;
  factory.attention = [&e](const dsv3::LayerContext& c) {
    return make_linked<dsv3::Attention>(at_layer(e.attention, c.layer), c);
  };
  factory.feed_forward = [&e](const dsv3::LayerContext& c) {
    return make_linked<dsv3::FeedForward>(at_layer(e.feed_forward, c.layer), c);
  };
  factory.position = [&e](const dsv3::PositionContext& c) {
    return make_linked<dsv3::Position>(e.position, c);
  };
  return factory;
}

// A model with all it needs to be trained.
struct Side {
  std::shared_ptr<dsv3::Strategy> strategy;
  std::unique_ptr<dsv3::Model> model;
  std::unique_ptr<dsv3::OptimizerSet> optimizers;
  int64_t updates = 0;
  std::vector<double> seconds;

  void start(const dsv3::Experiment& e) {
    const auto group = [this](const dsv3::Parameter& p) { return optimizers->group_of(p); };
    model->adopt(*strategy, static_cast<uint64_t>(e.train.seed), group);
    strategy->ready(optimizers->specs());
    optimizers->bind(*strategy);
  }

  // One training step; its loss.
  double step(const dsv3::Experiment& e, const dsv3::Batch& batch) {
    const Clock::time_point begin = Clock::now();
    dsv3::LossScale scale;
    const std::vector<int64_t> targets = dsv3::count_targets(batch, e.mtp.depth);
    scale.main_targets = static_cast<double>(targets[0]);
    scale.mtp_targets.assign(targets.begin() + 1, targets.end());
    scale.sequences = batch.tokens.size(0);
    strategy->begin_microbatch(true);
    const dsv3::LossParts parts = model->loss(batch, scale);
    strategy->backward({parts.total});
    const double norm = strategy->grad_norm();
    if (norm > e.train.clip) strategy->scale_grads(e.train.clip / (norm + 1e-6));
    optimizers->step(*strategy, ++updates, 1.0);
    strategy->end_step();
    const double loss = parts.total.item<double>();
    seconds.push_back(seconds_since(begin));
    return loss;
  }
};

Side loaded_side(const dsv3::Experiment& e, dsv3::Plugins& plugins,
                 const dsv3::StrategyContext& context) {
  Side side;
  side.strategy = dsv3::make<dsv3::Strategy>(plugins, e.strategy, context);
  side.model = std::make_unique<dsv3::Model>(e, e.model.vocab, plugins, at::kCPU);
  side.optimizers = std::make_unique<dsv3::OptimizerSet>(e, plugins, side.model->store());
  return side;
}

Side linked_side(const dsv3::Experiment& e, const dsv3::StrategyContext& context) {
  Side side;
  side.strategy = make_linked<dsv3::Strategy>(e.strategy, context);
  side.model = std::make_unique<dsv3::Model>(e, e.model.vocab, linked_factory(e), at::kCPU);
  std::vector<dsv3::OptimizerMember> members;
  for (const dsv3::OptimizerGroup& group : e.optimizer)
    members.push_back({group, make_linked<dsv3::Optimizer>(group.component)});
  side.optimizers =
      std::make_unique<dsv3::OptimizerSet>(std::move(members), side.model->store().parameters());
  return side;
}

// Nanoseconds of a virtual call that does next to nothing.
double call_ns(const dsv3::Attention& attention) {
  constexpr int kCalls = 20'000'000;
  const dsv3::Attention* volatile opaque = &attention;  // so that no call is left out
  int64_t sum = 0;
  const Clock::time_point begin = Clock::now();
  for (int i = 0; i < kCalls; ++i) sum += opaque->cache_values_per_token();
  const double seconds = seconds_since(begin);
  if (sum == 0) throw dsv3::Error("the call was left out", dsv3::ExitCode::failed);
  return seconds / kCalls * 1e9;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

dsv3::Json measure(const std::string& file, int rounds) {
  dsv3::Plugins plugins(dsv3::plugin_search_levels({}, {}));
  dsv3::PluginCatalog catalog(plugins);
  dsv3::ExperimentRequest request;
  request.file = file;
  const dsv3::Experiment e = dsv3::load_experiment(request, catalog);
  at::set_num_threads(static_cast<int>(std::max<int64_t>(e.train.threads, 1)));
  const dsv3::StrategyContext context{dsv3::local_communicator(), at::kCPU, at::kFloat};
  Side loaded = loaded_side(e, plugins, context), linked = linked_side(e, context);
  loaded.start(e);
  linked.start(e);
  dsv3::Batch batch;
  const int64_t rows = e.train.batch, columns = e.train.sequence + 1;
  batch.tokens = at::arange(rows * columns, at::kLong).mul(7919).remainder(e.model.vocab);
  batch.tokens = batch.tokens.view({rows, columns});
  std::vector<double> ratios, loaded_ns, linked_ns;
  for (int round = 0; round < rounds + 2; ++round) {  // two that do not count
    Side& first = round % 2 ? linked : loaded;
    Side& second = round % 2 ? loaded : linked;
    const double a = first.step(e, batch), b = second.step(e, batch);
    if (a != b) throw dsv3::Error("the two sides' losses differ", dsv3::ExitCode::failed);
    if (round < 2) continue;
    ratios.push_back(loaded.seconds.back() / linked.seconds.back());
  }
  for (int i = 0; i < 5; ++i) {
    loaded_ns.push_back(call_ns(*loaded.model->attention()[0]));
    linked_ns.push_back(call_ns(*linked.model->attention()[0]));
  }
  std::sort(ratios.begin(), ratios.end());
  const auto counted = [](const Side& side) {
    return std::vector<double>(side.seconds.begin() + 2, side.seconds.end());
  };
  const auto modules = static_cast<int64_t>(loaded.model->attention().size());
  return {{"rounds", rounds},
          {"threads", at::get_num_threads()},
          {"loaded_step_s", median(counted(loaded))},
          {"linked_step_s", median(counted(linked))},
          {"ratio_median", median(ratios)},
          {"ratio_quartiles", {ratios[ratios.size() / 4], ratios[ratios.size() * 3 / 4]}},
          {"loaded_call_ns", median(loaded_ns)},
          {"linked_call_ns", median(linked_ns)},
          // More than there are: attention, feed_forward, position, counts and the strategy's enter
          // and leave of every block, with as many again for recomputation, and what a step has.
          {"calls_a_step", 12 * modules + 50}};
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 3) throw dsv3::Error("usage: plugin_overhead FILE ROUNDS", dsv3::ExitCode::usage);
    std::cout << measure(argv[1], std::max(std::atoi(argv[2]), 1)).dump(2) << '\n';
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
}
