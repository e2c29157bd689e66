// Measures training steps with components loaded from plugins, alternating with the same classes
// linked into this program. Prints JSON.
#include <cstdlib>
#include <ctime>
#include <iostream>
#include <sched.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <dsv3/runtime/model.h>
#include <dsv3/runtime/optimizer_set.h>
#include <dsv3/sdk/communicator.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/support/json.h>

// Includes the plugins' sources, giving each registration function a different name.
#define dsv3_register_plugin register_mla
#include "../../../plugins/attention/mla/mla.cpp"
#undef dsv3_register_plugin
#define dsv3_register_plugin register_moe
#include "../../../plugins/feed_forward/moe/dispatch.cpp"
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

// CPU time of this thread, in ms.
double cpu_time() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) * 1e-6;
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
  for (const dsv3::Registration& registration : all.registrations())
    if (registration.kind == spec.kind && registration.name == spec.plugin)
      return dsv3::construct<Base>(registration, spec.options, context...);
  throw dsv3::Error("plugin_overhead does not link " + spec.plugin, dsv3::ExitCode::usage);
}

const dsv3::ComponentSpec& at_layer(const std::vector<dsv3::LayerRange>& ranges, int64_t layer) {
  for (const dsv3::LayerRange& range : ranges)
    if (layer >= range.first && layer <= range.last) return range.component;
  return ranges.back().component;  // the component used by MTP modules
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

// A model with its strategy and optimizers.
struct Side {
  std::shared_ptr<dsv3::Strategy> strategy;
  std::unique_ptr<dsv3::Model> model;
  std::unique_ptr<dsv3::OptimizerSet> optimizers;
  int64_t updates = 0;

  void start(const dsv3::Experiment& e) {
    const auto group = [this](const dsv3::Parameter& p) { return optimizers->group_of(p); };
    model->adopt(*strategy, static_cast<uint64_t>(e.train.seed), group);
    strategy->ready(optimizers->specs());
    optimizers->bind(*strategy);
  }

  // Runs one training step and returns its loss.
  double step(const dsv3::Experiment& e, const dsv3::Batch& batch) {
    dsv3::LossScale scale;
    const std::vector<int64_t> targets = dsv3::count_targets(batch, e.mtp.depth);
    scale.main_targets = static_cast<double>(targets[0]);
    scale.mtp_targets.assign(targets.begin() + 1, targets.end());
    scale.sequences = batch.tokens.size(0);
    strategy->begin_microbatch(true);
    const dsv3::LossParts parts = model->loss(batch, scale);
    strategy->backward({parts.total});
    const at::Tensor norm = strategy->grad_norm();
    if (norm.item<double>() > e.train.clip) strategy->scale_grads(e.train.clip / (norm + 1e-6));
    optimizers->step(*strategy, {++updates, 1.0});
    strategy->end_step();
    return parts.total.item<double>();
  }
};

Side loaded_side(const dsv3::Experiment& e, dsv3::Plugins& plugins,
                 const dsv3::StrategyContext& context) {
  Side side;
  side.strategy = dsv3::make<dsv3::Strategy>(plugins, e.strategy, context);
  side.model = std::make_unique<dsv3::Model>(e, e.model.vocab.value(), dsv3::factory_of(e, plugins),
                                             at::kCPU);
  side.optimizers = std::make_unique<dsv3::OptimizerSet>(e, plugins, side.model->store());
  return side;
}

Side linked_side(const dsv3::Experiment& e, const dsv3::StrategyContext& context) {
  Side side;
  side.strategy = make_linked<dsv3::Strategy>(e.strategy, context);
  side.model = std::make_unique<dsv3::Model>(e, e.model.vocab.value(), linked_factory(e), at::kCPU);
  std::vector<dsv3::OptimizerMember> members;
  for (const dsv3::OptimizerGroup& group : e.optimizer)
    members.push_back({group, make_linked<dsv3::Optimizer>(group.component)});
  side.optimizers =
      std::make_unique<dsv3::OptimizerSet>(std::move(members), side.model->store().parameters());
  return side;
}

// Separate functions, so that callgrind can tell the loaded and the linked components apart.
__attribute__((noinline, no_icf)) double loaded_step(Side& side, const dsv3::Experiment& e,
                                                     const dsv3::Batch& batch) {
  return side.step(e, batch);
}
__attribute__((noinline, no_icf)) double linked_step(Side& side, const dsv3::Experiment& e,
                                                     const dsv3::Batch& batch) {
  return side.step(e, batch);
}

dsv3::Batch synthetic_batch(const dsv3::Experiment& e) {
  const int64_t rows = e.train.batch, columns = e.train.sequence + 1;
  dsv3::Batch batch;
  batch.tokens = at::arange(rows * columns, at::kLong).mul(7919).remainder(e.model.vocab.value());
  batch.tokens = batch.tokens.view({rows, columns});
  return batch;
}

// The addresses of a model's tensors affect its speed more than the way its components are linked.
// So every block builds both models again, in alternating order. Returns a list of [loaded, linked]
// times of two steps each. The order loaded, linked, linked, loaded cancels drift.
dsv3::Json block(const dsv3::Experiment& e, dsv3::Plugins& plugins, int rounds, bool loaded_first) {
  const dsv3::StrategyContext context{dsv3::local_communicator(), at::kCPU, at::kFloat};
  Side loaded, linked;
  if (loaded_first) loaded = loaded_side(e, plugins, context);
  linked = linked_side(e, context);
  if (!loaded_first) loaded = loaded_side(e, plugins, context);
  for (Side* side : {&loaded, &linked}) side->start(e);
  const dsv3::Batch batch = synthetic_batch(e);
  for (int i = 0; i < 2; ++i)  // warm-up
    for (Side* side : {&loaded, &linked}) side->step(e, batch);
  dsv3::Json times = dsv3::Json::array();
  for (int round = 0; round < rounds; ++round) {
    double time[2] = {}, loss[4];
    int i = 0;
    for (const bool is_linked : {false, true, true, false}) {
      const double begin = cpu_time();
      loss[i++] = is_linked ? linked_step(linked, e, batch) : loaded_step(loaded, e, batch);
      time[is_linked] += cpu_time() - begin;
    }
    if (loss[0] != loss[1] || loss[2] != loss[3])
      throw dsv3::Error("the losses with loaded and with linked components differ",
                        dsv3::ExitCode::failed);
    times.push_back({time[0], time[1]});
  }
  return times;
}

dsv3::Json measure(const std::string& file, int blocks, int rounds) {
  dsv3::Plugins plugins(dsv3::plugin_search_levels({}, {}));
  dsv3::ExperimentRequest request;
  request.file = file;
  const dsv3::Experiment e = dsv3::load_experiment(request, plugins);
  at::set_num_threads(1);  // cpu_time() and callgrind's totals cover only one thread
  cpu_set_t current_cpu;
  CPU_ZERO(&current_cpu);
  CPU_SET(sched_getcpu(), &current_cpu);
  sched_setaffinity(0, sizeof current_cpu, &current_cpu);
  dsv3::Json all = dsv3::Json::array();
  for (int i = 0; i < blocks; ++i) all.push_back(block(e, plugins, rounds, i % 2 == 0));
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 4)
      throw dsv3::Error("usage: plugin_overhead FILE BLOCKS ROUNDS", dsv3::ExitCode::usage);
    std::cout << measure(argv[1], std::atoi(argv[2]), std::atoi(argv[3])) << '\n';
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
}
