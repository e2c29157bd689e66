// Tests that every call to a loaded component is recorded, named in errors, and checked.
#include <dlfcn.h>
#include <future>
#include <link.h>
#include <system_error>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>

#include <dsv3/runtime/failure.h>
#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/position.h>
#include <dsv3/sdk/tokenizer.h>

#include "call/backward.h"
#include "call/checked.h"
#include "fixtures.h"

using Catch::Matchers::Contains;
using dsv3::Kind;

namespace {

template <class Interface>
std::shared_ptr<Interface> faulty(const std::string& fault,
                                  const dsv3::ContextOf<Interface>& context = {}) {
  static dsv3::Plugins plugins({{registry("faulty")}});
  dsv3::ComponentSpec spec;
  spec.kind = dsv3::KindTraits<Interface>::kind;
  spec.plugin = "faulty";
  spec.origin = {"nano.yaml", 5, 13};
  spec.options["fault"] = fault;
  return dsv3::make<Interface>(plugins, spec, context);
}

// Counts the non-pure virtual functions that `object` inherits from the class with this vtable,
// i.e. those that a wrapper does not forward to its component.
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
  REQUIRE(entries > 4);  // vtable: offset, type information, two destructors, methods
  int same = 0;
  for (size_t i = 2; i < entries; ++i) same += of_object[i] == of_base[i];
  return same;
}

dsv3::LayerContext layer(const std::string& position_fault = "none") {
  dsv3::LayerContext context;
  context.dims = {.hidden = 16, .sequence = 8, .layers = 2};
  context.layer = 1;
  context.prefix = "layers.1.x";
  context.store = std::make_shared<dsv3::ParameterStore>();
  context.make_position = [position_fault](int64_t dim) {
    return faulty<dsv3::Position>(position_fault, {dim, 8});
  };
  return context;
}

// A strategy that only runs autograd. If `on_a_thread`, autograd runs on another thread, as it does
// for a GPU.
class PlainBackward final : public dsv3::Strategy {
 public:
  explicit PlainBackward(bool on_a_thread = false) : on_a_thread_(on_a_thread) {}
  int adopt(dsv3::UnitSpec) override { return 0; }
  void ready(const std::vector<dsv3::GroupSpec>&) override {}
  void begin_microbatch(bool) override {}
  void enter(int, dsv3::TensorRefs) override {}
  void leave(int, dsv3::TensorRefs) override {}
  void backward(at::TensorList roots, at::TensorList) override {
    if (!on_a_thread_) return torch::autograd::backward(roots.vec());
    std::async(std::launch::async, [&] { torch::autograd::backward(roots.vec()); }).get();
  }
  at::Tensor grad_norm() override { return at::zeros({}, at::kDouble); }
  void scale_grads(const at::Tensor&) override {}
  void update(int, const std::function<void(std::span<dsv3::UpdateTensor>)>&) override {}
  void end_step() override {}
  std::vector<dsv3::Range> update_ranges(int) const override { return {}; }
  std::vector<dsv3::OwnedTensor> owned() override { return {}; }
  void loaded() override {}
  dsv3::Cost estimate(const dsv3::ModelPlan&, int) const override { return {}; }

 private:
  bool on_a_thread_;
};

dsv3::Sequence eight_tokens() {
  dsv3::Sequence seq;
  seq.positions = at::arange(8).expand({1, 8});
  seq.training = true;
  return seq;
}

// Records the component and layer in current_backward when autograd reaches `tensor`.
std::string& noted_at(const at::Tensor& tensor, std::string& note) {
  tensor.register_hook([&note](const at::Tensor&) {
    const dsv3::Callee* callee = dsv3::current_backward.callee;
    note = callee ? callee->label + " " + std::to_string(dsv3::current_backward.layer) : "none";
  });
  return note;
}

}  // namespace

TEST_CASE("the wrappers of positional encodings and tokenizers forward every virtual function") {
  CHECK(inherited(*layer().make_position(8), "_ZTVN4dsv38PositionE") == 0);
  CHECK(inherited(*faulty<dsv3::Tokenizer>("none"), "_ZTVN4dsv39TokenizerE") == 0);
}

TEST_CASE("errors name the component call, and the record of the call is cleared afterwards") {
  const auto schedule = faulty<dsv3::Schedule>("throws");
  const auto factor = [](dsv3::Schedule& s) {
    return dsv3::checked::number(s, "factor", &dsv3::Schedule::factor, int64_t{1}, int64_t{2});
  };
  const std::string origin =
      "nano.yaml:5:13, plugin " + std::filesystem::canonical(library("faulty")).string();
  CHECK(error_of([&] { factor(*schedule); }) ==
        "schedule 'faulty' (factor), " + origin + ": broken on purpose");
  dsv3::current_step.number = 12;
  CHECK(error_of([&] { factor(*schedule); }) ==
        "schedule 'faulty' (factor) at step 12, " + origin + ": broken on purpose");
  const auto other = faulty<dsv3::Schedule>("throws_error");
  CHECK_THAT(error_of([&] { factor(*other); }, dsv3::ExitCode::data),
             Contains("at step 12") && Contains("file not found"));
  dsv3::current_step.number = -1;
  CHECK(dsv3::CallRecord::current() == nullptr);
}

TEST_CASE("a thread that cannot be started is a lack of memory, and other system errors are not") {
  const auto code_of = [](std::errc cause) {
    try {
      throw std::system_error(std::make_error_code(cause));
    } catch (...) {
      const std::string text = dsv3::current_exception_text();
      return std::pair(int(dsv3::current_exception_code()), text.find("ulimit -u") != text.npos);
    }
  };
  CHECK(code_of(std::errc::resource_unavailable_try_again) == std::pair(8, true));
  CHECK(code_of(std::errc::io_error) == std::pair(1, false));
}

TEST_CASE("numbers returned by a component are checked, and the error lists the call's arguments") {
  const auto nan = faulty<dsv3::Schedule>("nan");
  CHECK_THAT(error_of([&] {
               dsv3::checked::number(*nan, "factor", &dsv3::Schedule::factor, int64_t{3},
                                     int64_t{9});
             }),
             Contains("factor(3, 9) is nan; it must be finite and at least 0"));
}

TEST_CASE("a component that dsv3::make did not construct is called without a wrapper") {
  class Own final : public dsv3::Schedule {
    double factor(int64_t, int64_t) const override { throw std::out_of_range("mine"); }
  };
  const Own own;
  CHECK_THROWS_AS(dsv3::call(own, "factor", &dsv3::Schedule::factor, 1, 2), std::out_of_range);
}

TEST_CASE("an error in a positional encoding names the layer whose attention called it") {
  const auto attention = faulty<dsv3::Attention>("none", layer("undefined"));
  CHECK_THAT(error_of([&] {
               dsv3::checked::forward(*attention, at::ones({1, 8, 16}), eight_tokens());
             }),
             Contains("position 'faulty' (layer 1, rotate), nano.yaml:5:13") &&
                 Contains("returned an undefined tensor for k"));
}

TEST_CASE(
    "an error in the backward pass names the component whose forward pass created the autograd "
    "node") {
  PlainBackward strategy(GENERATE(false, true));
  const at::Tensor x = at::ones({1, 8, 16}).requires_grad_() * 1;
  SECTION("a feed-forward layer") {
    const auto layers = faulty<dsv3::FeedForward>("backward_throws", layer());
    const at::Tensor y = dsv3::checked::forward(*layers, x, eight_tokens());
    CHECK_THAT(error_of([&] { dsv3::checked::backward(strategy, {y.sum()}); }),
               Contains("feed_forward 'faulty' (layer 1, backward), nano.yaml:5:13") &&
                   Contains("broken on purpose"));
  }
  SECTION("a positional encoding inside an attention layer") {
    const auto layers = faulty<dsv3::Attention>("none", layer("backward_throws"));
    const at::Tensor y = dsv3::checked::forward(*layers, x, eight_tokens());
    CHECK_THAT(error_of([&] { dsv3::checked::backward(strategy, {y.sum()}); }),
               Contains("position 'faulty' (layer 1, backward), nano.yaml:5:13"));
  }
  CHECK(dsv3::current_backward.callee == nullptr);
}

TEST_CASE("current_backward is cleared when the backward pass leaves the component") {
  PlainBackward strategy;
  std::string before, after;
  const at::Tensor leaf = at::ones({1, 8, 16}).requires_grad_();
  const at::Tensor norm = leaf * 1, x = norm * 1;
  const auto attention = faulty<dsv3::Attention>("none", layer());
  const at::Tensor y = dsv3::checked::forward(*attention, x, eight_tokens()), root = y * 1;
  noted_at(root, before);
  noted_at(norm, after);
  std::string inside;
  noted_at(y, inside);  // this hook runs after the one that sets current_backward
  dsv3::checked::backward(strategy, {(x + root).sum()});
  CHECK(before == "none");
  CHECK(inside == "attention 'faulty' 1");
  CHECK(after == "none");
}

TEST_CASE("a Watch observes forward calls on every thread, as recomputation on a GPU requires") {
  class Names final : public dsv3::Watch {
   public:
    void passed(const std::string& name, at::TensorList, at::TensorList) override {
      names.push_back(name);
    }
    std::vector<std::string> names;
  };
  const auto layers = faulty<dsv3::FeedForward>("none", layer());
  Names seen;
  std::async(std::launch::async, [&] {
    dsv3::checked::forward(*layers, at::ones({1, 8, 16}), eight_tokens());
  }).get();
  CHECK(seen.names ==
        std::vector<std::string>{"layers.1.x (feed_forward 'faulty', nano.yaml:5:13)"});
}

TEST_CASE("recording a forward call changes neither the graph nor the gradients") {
  const auto gradients = [](bool marked) {
    at::Tensor leaf = at::arange(128, at::kFloat).view({1, 8, 16}).div(100).requires_grad_();
    dsv3::LayerContext context = layer();
    const auto attention = faulty<dsv3::Attention>("none", context);
    for (const dsv3::Parameter& parameter : context.store->parameters()) {
      at::NoGradGuard no_grad;
      at::Tensor tensor = parameter.tensor;
      tensor.copy_(at::arange(tensor.numel()).view_as(tensor).sin());
    }
    const at::Tensor x = leaf * 1;
    const at::Tensor y = marked ? dsv3::checked::forward(*attention, x, eight_tokens())
                                : attention->forward(x, eight_tokens());
    (x + y).sum().backward();
    return std::pair(y.grad_fn()->name(), leaf.grad());
  };
  const auto [marked_node, marked] = gradients(true);
  const auto [plain_node, plain] = gradients(false);
  CHECK(marked_node == plain_node);
  CHECK(marked.equal(plain));
}
