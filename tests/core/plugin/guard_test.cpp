// Guards stand between the core and every loaded component.
#include <dlfcn.h>
#include <link.h>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/data.h>
#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/optimizer.h>
#include <dsv3/sdk/position.h>
#include <dsv3/sdk/strategy.h>
#include <dsv3/sdk/tokenizer.h>
#include <dsv3/sdk/tracker.h>

#include "barrier/call.h"
#include "fixtures.h"

using Catch::Matchers::Contains;

namespace {

template <class Base, class... Context>
std::shared_ptr<Base> faulty(dsv3::Kind kind, const std::string& fault, const Context&... context) {
  static dsv3::Plugins plugins({{registry("faulty")}});
  dsv3::ComponentSpec spec;
  spec.kind = kind;
  spec.plugin = "faulty";
  spec.origin = {"nano.yaml", 5, 13};
  spec.options["fault"] = fault;
  return dsv3::make<Base>(plugins, spec, context...);
}

// How many virtual functions with a body of their own `object` has from the class with this vtable:
// those that a guard does not pass on to its component.
template <class Base>
int inherited(const Base& object, const char* vtable) {
  void* const* of_base = static_cast<void* const*>(dlsym(RTLD_DEFAULT, vtable));
  REQUIRE(of_base);
  Dl_info info;
  const ElfW(Sym)* symbol = nullptr;
  REQUIRE(dladdr1(of_base, &info, reinterpret_cast<void**>(const_cast<ElfW(Sym)**>(&symbol)),
                  RTLD_DL_SYMENT));
  REQUIRE(symbol);
  void* const* of_object = *reinterpret_cast<void* const* const*>(&object) - 2;
  const size_t entries = symbol->st_size / sizeof(void*);
  REQUIRE(entries > 4);  // offset, type, two destructors, and what the kind does
  int same = 0;
  for (size_t i = 2; i < entries; ++i) same += of_object[i] == of_base[i];
  return same;
}

dsv3::LayerContext layer() {
  dsv3::LayerContext context;
  context.dims = {.hidden = 16, .sequence = 8, .layers = 2};
  context.layer = 1;
  context.prefix = "layers.1.x";
  context.store = std::make_shared<dsv3::ParameterStore>();
  context.make_position = [](int64_t dim) {
    return faulty<dsv3::Position>(dsv3::Kind::position, "none", dsv3::PositionContext{dim, 8});
  };
  return context;
}

}  // namespace

TEST_CASE("a guard passes on every virtual function of its kind") {
  using dsv3::Kind;
  const dsv3::StrategyContext strategy{dsv3::local_communicator(), at::kCPU, at::kFloat};
  const dsv3::DataContext data{.sequence = 8, .vocab = 64};
  CHECK(inherited(*faulty<dsv3::Attention>(Kind::attention, "none", layer()),
                  "_ZTVN4dsv39AttentionE") == 0);
  CHECK(inherited(*faulty<dsv3::FeedForward>(Kind::feed_forward, "none", layer()),
                  "_ZTVN4dsv311FeedForwardE") == 0);
  CHECK(inherited(*layer().make_position(8), "_ZTVN4dsv38PositionE") == 0);
  CHECK(inherited(*faulty<dsv3::Optimizer>(Kind::optimizer, "none"), "_ZTVN4dsv39OptimizerE") == 0);
  CHECK(inherited(*faulty<dsv3::Schedule>(Kind::schedule, "none"), "_ZTVN4dsv38ScheduleE") == 0);
  CHECK(inherited(*faulty<dsv3::Strategy>(Kind::strategy, "none", strategy),
                  "_ZTVN4dsv38StrategyE") == 0);
  CHECK(inherited(*faulty<dsv3::Tracker>(Kind::tracker, "none", dsv3::RunContext{"/tmp"}),
                  "_ZTVN4dsv37TrackerE") == 0);
  CHECK(inherited(*faulty<dsv3::Data>(Kind::data, "none", data), "_ZTVN4dsv34DataE") == 0);
  CHECK(inherited(*faulty<dsv3::Tokenizer>(Kind::tokenizer, "none", dsv3::TokenizerContext{}),
                  "_ZTVN4dsv39TokenizerE") == 0);
}

TEST_CASE("errors say where the process is, and calls leave no trace") {
  const auto schedule = faulty<dsv3::Schedule>(dsv3::Kind::schedule, "throws");
  const std::string place =
      "nano.yaml:5:13, plugin " + std::filesystem::canonical(library("faulty")).string();
  CHECK(error_of([&] { schedule->factor(1, 2); }, dsv3::ExitCode::plugin) ==
        "schedule 'faulty' (factor), " + place + ": broken on purpose");
  {
    const dsv3::barrier::StepNumbers numbers;
    numbers.begin(12);
    CHECK(error_of([&] { schedule->factor(1, 2); }, dsv3::ExitCode::plugin) ==
          "schedule 'faulty' (factor) at step 12, " + place + ": broken on purpose");
    const auto own = faulty<dsv3::Schedule>(dsv3::Kind::schedule, "throws_error");
    CHECK_THAT(error_of([&] { own->factor(1, 2); }, dsv3::ExitCode::data),
               Contains("at step 12") && Contains("its file is gone"));
  }
  CHECK(dsv3::barrier::innermost == nullptr);
}

TEST_CASE("a layer is named by whatever happens inside of it") {
  dsv3::LayerContext context = layer();
  context.make_position = [](int64_t dim) {
    return faulty<dsv3::Position>(dsv3::Kind::position, "undefined", dsv3::PositionContext{dim, 8});
  };
  const auto attention = faulty<dsv3::Attention>(dsv3::Kind::attention, "none", context);
  dsv3::Sequence seq;
  seq.positions = at::arange(8).expand({1, 8});
  CHECK_THAT(error_of([&] {
               attention->forward(at::ones({1, 8, 16}), seq);
             }),
             Contains("position 'faulty' (layer 1, rotate), nano.yaml:5:13") &&
                 Contains("it gave back no tensor for k (undefined)"));
}
