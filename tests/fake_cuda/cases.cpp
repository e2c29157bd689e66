// fake_cuda_cases NAME: runs one case on the fake CUDA device and prints its result, or "threw: "
// and the exception's message. test_device.py checks the output of each case.
#include "cases.h"

#include <cstdio>
#include <dlfcn.h>
#include <map>
#include <string>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using namespace fake_cuda_cases;
using at::Tensor;

int64_t aggregate(const c10::CachingAllocator::StatArray& stats, bool peak) {
  const auto& stat = stats[size_t(c10::CachingAllocator::StatType::AGGREGATE)];
  return peak ? stat.peak : stat.current;
}

// ---- errors that the fake device must detect

void read_on_the_host() {
  print(at::ones({4, 8}, cuda()).const_data_ptr<float>()[3]);
}

void write_on_the_host() {
  at::ones({4, 8}, cuda()).mutable_data_ptr<float>()[3] = 1;
}

struct ReadInBackward : torch::autograd::Function<ReadInBackward> {
  static Tensor forward(torch::autograd::AutogradContext*, const Tensor& x) { return x * 2; }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list gradients) {
    return {gradients[0] * gradients[0].const_data_ptr<float>()[0]};
  }
};

void read_in_backward() {
  const Tensor x = at::ones({4}, cuda()).set_requires_grad(true);
  torch::autograd::backward({ReadInBackward::apply(x).sum()}, {});
}

void mix_devices() {
  print((at::ones({4, 8}, cuda()) + at::ones({4, 8})).sum().item<double>());
}

void mix_devices_in_a_list() {
  at::cat({at::ones({2}, cuda()), at::ones({2})});
}

void read_unwritten() {
  print(at::empty({3}, cuda()).sum().item<double>());
}

void read_reused() {  // reuses the memory of a freed tensor that contained ones
  { const Tensor freed = at::ones({100}, cuda()); }
  print(at::empty({100}, cuda()).sum().item<double>());
}

void call_without_kernel() {
  const Tensor x = at::ones({4, 4}, cuda());
  at::mkldnn_linear(x, x);
}

void exceed_memory() {
  at::empty({int64_t(1) << 38}, cuda());
}

void change_pinned_source() {
  const Tensor source = at::ones({4}, at::TensorOptions().pinned_memory(true));
  const Tensor copy = source.to(at::kCUDA, true);
  source.zero_();
  print(copy.sum().item<double>());
}

void read_before_arrival() {
  const Tensor target = at::zeros({4}, at::TensorOptions().pinned_memory(true));
  target.copy_(at::ones({4}, cuda()), true);
  print(target[0].item<double>());
}

void softmax_of_bf16() {
  at::_softmax(at::ones({2, 4}, cuda(at::kBFloat16)), 1, true);
}

void group_with_odd_rows() {  // 12 bytes per row; strides must be multiples of 16 bytes
  at::_grouped_mm(at::ones({8, 6}, cuda(at::kBFloat16)), at::ones({2, 6, 8}, cuda(at::kBFloat16)),
                  at::full({2}, 4, cuda(at::kInt)));
}

void attend_packed_with_different_dims() {
  const Tensor ends = at::full({2}, 4, cuda(at::kInt));
  const Tensor q = at::ones({4, 2, 64}, cuda(at::kBFloat16));
  at::_flash_attention_forward(q, q, at::ones({4, 2, 32}, cuda(at::kBFloat16)), ends, ends, 4, 4, 0,
                               true, false);
}

void multiply_integers() {
  const Tensor x = at::ones({4, 4}, cuda(at::kLong));
  at::mm(x, x);
}

void count_without_determinism() {
  at::globalContext().setDeterministicAlgorithms(true, false);
  at::ones({4}, cuda()).cumsum(0);
  at::histc(at::ones({4}, cuda()), 4);
}

void use_host_generator() {
  at::empty({4}, cuda()).normal_(0, 1, at::make_generator<at::CPUGeneratorImpl>());
}

void run_gru() {
  std::vector<Tensor> weights;
  for (const bool bias : {false, false, true, true})
    weights.push_back(bias ? at::ones({24}, cuda()) : at::ones({24, 8}, cuda()));
  at::gru(at::ones({2, 3, 8}, cuda()), at::ones({1, 2, 8}, cuda()), weights, true, 1, 0, false,
          false, true);
}

void call_without_twin() {
  const Tensor x = at::ones({1, 4, 2, 64}, cuda(at::kBFloat16));
  at::_efficient_attention_forward(x, x, x, {}, {}, {}, {}, {}, 0, 0);
}

// ---- operations that must work

void add_a_number() {
  print((at::ones({4}, cuda()) + at::scalar_tensor(2.0)).sum().item<double>());
}

void copy_pinned() {
  const Tensor source = values({64}).pin_memory();
  const Tensor device = source.to(at::kCUDA, true);
  const Tensor target = at::empty({64}, at::TensorOptions().pinned_memory(true));
  target.copy_(device, true);
  c10::Event event(c10::kCUDA);
  event.record(c10::impl::VirtualGuardImpl(c10::kCUDA).getStream(device.device()));
  event.synchronize();
  std::printf("pinned %d %d, equal %d\n", source.is_pinned(), target.is_pinned(),
              at::equal(source, target));
}

void run_backward_on_device_thread() {
  const Tensor x = values({8, 8}).to(at::kCUDA).set_requires_grad(true);
  torch::autograd::backward({at::mm(x, x).sum()}, {});
  const Tensor host = x.detach().cpu().set_requires_grad(true);
  torch::autograd::backward({at::mm(host, host).sum()}, {});
  print_difference(x.grad(), host.grad());
}

void measure_memory() {
  c10::DeviceAllocator* allocator = c10::getDeviceAllocator(c10::kCUDA);
  allocator->resetPeakStats(0);
  const Tensor kept = at::empty({1000}, cuda());
  { const Tensor freed = at::empty({1 << 20}, cuda()); }
  const auto stats = allocator->getDeviceStats(0);
  std::printf(
      "allocated %ld peak %ld reserved %ld\n", long(aggregate(stats.allocated_bytes, false)),
      long(aggregate(stats.allocated_bytes, true)), long(aggregate(stats.reserved_bytes, false)));
  allocator->resetPeakStats(0);
  allocator->emptyCache();
  const auto reset = allocator->getDeviceStats(0);
  std::printf("peak %ld reserved %ld\n", long(aggregate(reset.allocated_bytes, true)),
              long(aggregate(reset.reserved_bytes, false)));
}

void normalize(at::ScalarType dtype) {
  const Tensor x = values({3, 5, 16}, dtype), weight = values({16}, dtype, 1);
  const Tensor dout = values({3, 5, 16}, dtype, 2);
  const auto [y, rstd] = at::_fused_rms_norm(x.to(at::kCUDA), {16}, weight.to(at::kCUDA), 1e-6);
  const auto [dx, dweight] = at::_fused_rms_norm_backward(dout.to(at::kCUDA), x.to(at::kCUDA), {16},
                                                          rstd, weight.to(at::kCUDA), {true, true});
  const Tensor host = x.to(at::kDouble).set_requires_grad(true);
  const Tensor host_weight = weight.to(at::kDouble).set_requires_grad(true);
  const Tensor expected = host * at::rsqrt(host.square().mean(-1, true) + 1e-6) * host_weight;
  torch::autograd::backward({expected}, {dout.to(at::kDouble)});
  print_difference(y, expected.detach());
  print_difference(dx, host.grad());
  print_difference(dweight, host_weight.grad());
}

void normalize_fp32() {
  normalize(at::kFloat);
}
void normalize_bf16() {
  normalize(at::kBFloat16);
}

/// Prints the differences between attention on the device, with the kernel that LibTorch chooses,
/// and attention in float64 on the host.
void attend(int64_t heads, int64_t key_heads, int64_t dim, int64_t value_dim, bool masked) {
  const auto input = [](int64_t h, int64_t d, double phase) {
    return values({2, 12, h, d}, at::kBFloat16, phase).transpose(1, 2);
  };
  // A causal mask that also hides every fifth key, except from the key's own token.
  const Tensor keys = at::arange(12).remainder(5).ne(0).logical_or(at::eye(12, at::kBool));
  const Tensor mask = at::ones({2, 1, 12, 12}, at::kBool).tril().logical_and(keys);
  const auto run = [&](at::Device device, at::ScalarType dtype) {
    std::vector<Tensor> in{input(heads, dim, 0), input(key_heads, dim, 1),
                           input(key_heads, value_dim, 2)};
    for (Tensor& t : in) t = t.to(device).to(dtype).set_requires_grad(true);
    const Tensor out = at::scaled_dot_product_attention(
        in[0], in[1], in[2], masked ? std::optional(mask.to(device)) : std::nullopt, 0, !masked,
        std::nullopt, heads != key_heads);
    torch::autograd::backward({out}, {values({2, heads, 12, value_dim}, dtype).to(device)});
    return std::vector<Tensor>{out.detach(), in[0].grad(), in[1].grad(), in[2].grad()};
  };
  const auto device = run(at::Device(at::kCUDA, 0), at::kBFloat16),
             host = run(at::kCPU, at::kDouble);
  for (size_t i = 0; i < device.size(); ++i) print_difference(device[i], host[i]);
}

void attend_equal_dims() {
  attend(4, 4, 64, 64, false);
}
void attend_different_dims() {
  attend(4, 4, 48, 32, false);
}
void attend_grouped() {
  attend(4, 2, 64, 64, false);
}
void attend_masked() {
  attend(4, 4, 64, 64, true);
}

void attend_packed() {  // rows of 5, 0 and 7 tokens, compared with separate calls
  std::vector<Tensor> host;
  for (int i = 0; i < 3; ++i)
    host.push_back(values({12, 2, 64}, at::kBFloat16, i).to(at::kDouble).set_requires_grad(true));
  const Tensor dout = values({12, 2, 64}, at::kBFloat16, 3);
  std::vector<Tensor> outs;
  for (const auto& [start, end] : {std::pair{0, 5}, {5, 12}}) {
    const auto row = [&, start = start, end = end](size_t i) {
      return host[i].slice(0, start, end).transpose(0, 1).unsqueeze(0);
    };
    outs.push_back(at::scaled_dot_product_attention(row(0), row(1), row(2), std::nullopt, 0, true)
                       .squeeze(0)
                       .transpose(0, 1));
  }
  const Tensor expected = at::cat(outs);
  torch::autograd::backward({expected}, {dout.to(at::kDouble)});
  std::vector<Tensor> device;
  for (const Tensor& t : host) device.push_back(t.detach().to(at::kBFloat16).to(at::kCUDA));
  const Tensor ends = at::tensor({0, 5, 5, 12}, at::kInt).to(at::kCUDA);
  const auto [out, lse, seed, offset, debug] = at::_flash_attention_forward(
      device[0], device[1], device[2], ends, ends, 7, 7, 0, true, false);
  const auto [dq, dk, dv] =
      at::_flash_attention_backward(dout.to(at::kCUDA), device[0], device[1], device[2], out, lse,
                                    ends, ends, 7, 7, 0, true, seed, offset);
  print_difference(out, expected.detach());
  print_difference(dq, host[0].grad());
  print_difference(dk, host[1].grad());
  print_difference(dv, host[2].grad());
}

void multiply_into_fp32() {
  const Tensor a = values({8, 16}, at::kBFloat16), b = values({16, 8}, at::kBFloat16, 1);
  const Tensor expected = at::mm(a.to(at::kFloat), b.to(at::kFloat));
  print_difference(at::mm(a.to(at::kCUDA), b.to(at::kCUDA), at::kFloat), expected);
  Tensor out = at::empty({8, 8}, cuda());
  at::mm_out(out, a.to(at::kCUDA), b.to(at::kCUDA), at::kFloat);
  print_difference(out, expected);
}

void group() {
  const Tensor a = values({8, 16}, at::kBFloat16), b = values({2, 16, 8}, at::kBFloat16, 1);
  const Tensor ends = at::tensor({3, 8}, at::kInt);
  const Tensor out = at::_grouped_mm(a.to(at::kCUDA), b.to(at::kCUDA), ends.to(at::kCUDA));
  print_difference(out, at::cat({at::mm(a.slice(0, 0, 3), b[0]), at::mm(a.slice(0, 3, 8), b[1])}));
}

/// Prints the differences between the results of `run` on the device and on the host.
template <class Run>
void compare(const Run& run) {
  const std::vector<Tensor> device = run(at::Device(at::kCUDA, 0)), host = run(at::kCPU);
  for (size_t i = 0; i < device.size(); ++i) print_difference(device[i], host[i]);
}

void compute_with_complex_numbers() {
  compare([](at::Device device) {
    const Tensor x = values({2, 8}).to(device).set_requires_grad(true);
    const Tensor turns = at::view_as_complex(values({4, 2}, at::kFloat, 1).to(device));
    const Tensor turned = at::view_as_real(at::view_as_complex(x.view({2, 4, 2})) * turns.conj());
    const Tensor filtered = at::fft_irfft(at::fft_rfft(x) * 2);
    torch::autograd::backward({(turned.flatten(1) * filtered).sum()}, {});
    Tensor changed = x.detach().clone();
    at::view_as_complex(changed.view({2, 4, 2})).mul_(turns);  // through a view
    return std::vector<Tensor>{filtered.detach(), x.grad(), changed};
  });
}

void convolve() {
  for (const int64_t groups : {1, 4})  // ordinary and depthwise
    compare([groups](at::Device device) {
      std::vector<Tensor> in{values({2, 4, 9}), values({4, 4 / groups, 3}, at::kFloat, 1),
                             values({4}, at::kFloat, 2)};
      for (Tensor& t : in) t = t.to(device).set_requires_grad(true);
      const Tensor y = at::conv1d(in[0], in[1], in[2], 1, 2, 1, groups).slice(2, 0, 9);
      torch::autograd::backward({y.square().sum()}, {});
      return std::vector<Tensor>{y.detach(), in[0].grad(), in[1].grad(), in[2].grad()};
    });
}

/// Compares numbers of a device generator with those for the same seed, and the host's generator
/// with what it was before.
void draw_from_device_generator() {
  at::Generator generator = at::globalContext().defaultGenerator(at::Device(at::kCUDA, 0)).clone();
  const auto draw = [&] { return at::empty({64}, cuda()).normal_(0, 1, generator).cpu(); };
  const Tensor state = at::detail::getDefaultCPUGenerator().get_state();
  generator.set_current_seed(5);
  const Tensor first = draw(), second = draw();
  generator.set_current_seed(5);
  print_difference(draw(), first);
  print_difference(at::detail::getDefaultCPUGenerator().get_state(), state);
  print(at::equal(first, second));
}

void update_with_adamw() {
  std::vector<Tensor> device, host;
  for (int i = 0; i < 4; ++i) {
    host.push_back(values({32}, at::kFloat, i).abs());
    device.push_back(host.back().to(at::kCUDA));
  }
  host.push_back(at::ones({}));
  device.push_back(at::ones({}, cuda()));
  for (const auto& t : {device, host})
    at::_fused_adamw_({t[0]}, {t[1]}, {t[2]}, {t[3]}, {}, {t[4]}, 0.1, 0.9, 0.99, 0.1, 1e-8, false,
                      false);
  for (int i : {0, 2, 3}) print_difference(device[size_t(i)], host[size_t(i)]);
  at::_foreach_mul_({device[0], device[2]}, 2);
  print_difference(device[0], host[0] * 2);
}

void index_by_mask() {
  const Tensor x = values({64}).to(at::kCUDA);
  print(x.index({x > 0}).size(0));
}

/// Sets values on the device and on the host, with the index on the device and the number on the
/// host.
void put_a_number() {
  const Tensor index = at::ones({1}, cuda(at::kLong)), number = at::scalar_tensor(2.0);
  const Tensor device = at::zeros({4}, cuda()), host = at::zeros({4});
  print_difference(device.index_put_({index}, number), host.index_put_({index}, number));
}

/// Prints the kernel that LibTorch chooses for attention calls of several kinds.
void choose_attention() {
  const auto input = [](int64_t heads, int64_t dim, int64_t tokens = 128,
                        at::ScalarType dtype = at::kBFloat16) {
    return at::ones({2, tokens, heads, dim}, cuda(dtype)).transpose(1, 2);
  };
  const auto choose = [](const char* name, const Tensor& q, const Tensor& k, const Tensor& v,
                         const std::optional<Tensor>& mask = {}, bool causal = true,
                         bool grouped = false) {
    constexpr const char* kNames[] = {"math", "flash", "efficient", "cudnn"};
    const int64_t choice = at::_fused_sdp_choice(q, k, v, mask, 0, causal, std::nullopt, grouped);
    std::printf("%s: %s\n", name, kNames[choice]);
  };
  const Tensor x = input(4, 64), fp32 = input(4, 64, 128, at::kFloat), one = input(4, 64, 1);
  const Tensor mask = at::ones({2, 1, 128, 128}, cuda(at::kBool)).tril();
  choose("64/64", x, x, x);
  choose("48/32", input(4, 48), input(4, 48), input(4, 32));
  choose("192/128", input(4, 192), input(4, 192), input(4, 128));
  choose("masked", x, x, x, mask, false);
  choose("grouped", x, input(2, 64), input(2, 64), {}, true, true);
  choose("one query", one, x, x, {}, false);
  choose("one key", one, one, one);
  choose("fp32", fp32, fp32, fp32);
  choose("12/8", input(4, 12), input(4, 12), input(4, 8));
  at::globalContext().setDeterministicAlgorithms(true, false);
  choose("deterministic", x, x, x);
}

/// Prints every ATen operator that has a CUDA kernel.
void list_operators() {
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    const auto operation = c10::Dispatcher::singleton().findOp(name);
    if (!operation || !operation->hasKernelForDispatchKey(c10::DispatchKey::CUDA)) continue;
    if (name.name.starts_with("aten::"))
      std::printf("%s%s%s\n", name.name.c_str() + 6, name.overload_name.empty() ? "" : ".",
                  name.overload_name.c_str());
  }
}

const std::map<std::string, void (*)()> kCases{
    CASE(read_on_the_host),
    CASE(write_on_the_host),
    CASE(read_in_backward),
    CASE(mix_devices),
    CASE(mix_devices_in_a_list),
    CASE(read_unwritten),
    CASE(read_reused),
    CASE(call_without_kernel),
    CASE(exceed_memory),
    CASE(change_pinned_source),
    CASE(read_before_arrival),
    CASE(softmax_of_bf16),
    CASE(group_with_odd_rows),
    CASE(attend_packed_with_different_dims),
    CASE(multiply_integers),
    CASE(count_without_determinism),
    CASE(call_without_twin),
    CASE(add_a_number),
    CASE(copy_pinned),
    CASE(run_backward_on_device_thread),
    CASE(measure_memory),
    CASE(normalize_fp32),
    CASE(normalize_bf16),
    CASE(attend_equal_dims),
    CASE(attend_different_dims),
    CASE(attend_grouped),
    CASE(attend_masked),
    CASE(attend_packed),
    CASE(multiply_into_fp32),
    CASE(group),
    CASE(update_with_adamw),
    CASE(index_by_mask),
    CASE(put_a_number),
    CASE(choose_attention),
    CASE(list_operators),
    CASE(use_host_generator),
    CASE(run_gru),
    CASE(compute_with_complex_numbers),
    CASE(convolve),
    CASE(draw_from_device_generator),
};

}  // namespace

int main(int count, char** arguments) {
  std::map<std::string, void (*)()> cases = kCases;
  cases.insert(fake_cuda_cases::kOperators.begin(), fake_cuda_cases::kOperators.end());
  const auto found = count > 1 ? cases.find(arguments[1]) : cases.end();
  if (found == cases.end() || !dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL)) {
    std::fprintf(stderr, "%s\n", found == cases.end() ? "unknown case" : dlerror());
    return 2;
  }
  at::set_num_threads(1);
  try {
    found->second();
  } catch (const c10::Error& error) {
    std::printf("threw: %s\n", error.what_without_backtrace());
  } catch (const std::exception& error) {
    std::printf("threw: %s\n", error.what());
  }
}
