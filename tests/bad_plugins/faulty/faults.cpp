#include "faults.h"

#include <csignal>
#include <cstdlib>
#include <limits>
#include <map>
#include <stdexcept>
#include <thread>
#include <unistd.h>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/DefaultDtype.h>
#include <torch/csrc/autograd/custom_function.h>

#include <dsv3/sdk/plugin.h>

namespace faulty {
namespace {

[[noreturn]] void fail() {
  throw std::runtime_error("broken on purpose");
}

// The pointer is volatile so that the compiler cannot assume that it is null and remove the write.
int* volatile nowhere = nullptr;
std::vector<char*> leaked;

int overflow_stack(int depth) {
  volatile char page[4096];
  page[depth % 4096] = static_cast<char>(depth);
  return depth < 0 ? page[0] : overflow_stack(depth + 1) + page[0];
}

void start_thread() {
  static const bool once [[maybe_unused]] = [] {
    std::thread([] { ::sleep(1000); }).detach();
    return true;
  }();
}

void fork_once() {
  static const pid_t child = ::fork();
  if (child != 0) return;
  ::sleep(1000);
  ::_exit(0);
}

const std::map<std::string, void (*)()>& faults_of_all_kinds() {
  static const std::map<std::string, void (*)()> all = {
      {"throws", fail},
      {"throws_error", [] { throw dsv3::Error("file not found", dsv3::ExitCode::data); }},
      {"throws_a_number", [] { throw 7; }},
      {"out_of_memory",
       [] { leaked.push_back(new char[std::numeric_limits<int64_t>::max() / 2]); }},
      {"segfault", [] { *nowhere = 1; }},
      {"segfault_in_a_thread", [] { std::thread([] { *nowhere = 1; }).join(); }},
      {"stack_overflow", [] { leaked.resize(overflow_stack(0) & 1); }},
      {"illegal_instruction", [] { __builtin_trap(); }},
      {"divides_by_zero", [] { std::raise(SIGFPE); }},
      {"abort", [] { std::abort(); }},
      {"terminate", []() noexcept { fail(); }},
      {"exit_0", [] { std::exit(0); }},
      {"quick_exit", [] { std::quick_exit(0); }},
      {"exit_unseen", [] { ::_exit(3); }},
      {"hang",
       [] {
         for (;;) ::usleep(1000);
       }},
      {"leak", [] { leaked.push_back(new char[4096]()); }},
      {"thread", start_thread},
      {"fork", fork_once},
      {"environment", [] { ::setenv("DSV3_FAULTY", "1", 1); }},
      {"folder",
       [] {
         if (::chdir("/usr") != 0) fail();
       }},
      {"rng", [] { at::rand({1}); }},
      {"default_dtype", [] { c10::set_default_dtype(caffe2::TypeMeta::Make<double>()); }},
      {"grad_mode", [] { at::GradMode::set_enabled(false); }},
  };
  return all;
}

struct BadBackward : torch::autograd::Function<BadBackward> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const std::string& how) {
    context->saved_data["how"] = how;
    return x.clone();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const std::string how = context->saved_data["how"].toStringRef();
    if (how == "backward_throws") fail();
    if (how == "backward_segfault") *nowhere = 1;
    if (how == "backward_wrong_shape") return {grads[0].narrow(-1, 0, 1), {}};
    if (how == "backward_nan") return {grads[0] * std::numeric_limits<float>::quiet_NaN(), {}};
    return {grads[0], {}};
  }
};

}  // namespace

Fault::Fault(const FaultyOptions& options) : fault_(options.fault), after_(options.after) {
  if (fault_ == "throws_in_constructor") fail();
  if (fault_ == "exits_in_constructor") std::exit(0);
}

Fault::~Fault() {
  if (fault_ == "throws_in_destructor") fail();
}

void Fault::work() {
  ++calls_;
  const auto found = faults_of_all_kinds().find(fault_);
  if (due() && found != faults_of_all_kinds().end()) found->second();
}

at::Tensor spoiled(const Fault& fault, const at::Tensor& x, at::Tensor y) {
  static std::vector<at::Tensor> kept;
  if (fault.is("undefined")) return {};
  if (fault.is("wrong_shape")) return y.narrow(-1, 0, y.size(-1) - 1);
  if (fault.is("wrong_dtype"))
    return y.to(y.scalar_type() == at::kDouble ? at::kFloat : at::kDouble);
  if (fault.is("wrong_device")) return y.to(at::kMeta);
  if (fault.is("nan")) return y * std::numeric_limits<float>::quiet_NaN();
  if (fault.is("changes_input")) x.detach().zero_();
  if (fault.is("grows")) kept.push_back(at::ones({1024}));
  if (fault.is("keeps_input")) kept.assign(1, x);
  for (const char* how :
       {"backward_throws", "backward_segfault", "backward_wrong_shape", "backward_nan"})
    if (fault.is(how)) return BadBackward::apply(y, std::string(how));
  return y;
}

}  // namespace faulty

DSV3_PLUGIN(registrar) {
  faulty::register_attention(registrar);
  faulty::register_callback(registrar);
  faulty::register_data(registrar);
  faulty::register_feed_forward(registrar);
  faulty::register_optimizer(registrar);
  faulty::register_position(registrar);
  faulty::register_schedule(registrar);
  faulty::register_strategy(registrar);
  faulty::register_tokenizer(registrar);
  faulty::register_tracker(registrar);
}
