"""Time the CUDA operators that dominate a training step of the nano and small models, and possible replacements.

    python tools/bench/cuda_operators.py

Requires a GPU and PyTorch with CUDA. Prints the median of 20 runs, timed with CUDA events after 3 warm-up runs.
"""

import functools
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

VOCAB, CHUNK, TOKENS, SEQUENCE = 129280, 4096, 32768, 2048
# preset: hidden size, heads, routed experts, experts per token, rows in an expert's stacked gate and up matrices
PRESETS = {"nano": (640, 10, 16, 2, 768), "small": (1024, 16, 32, 6, 608)}
normal = functools.partial(torch.randn, device="cuda", dtype=torch.bfloat16)


def milliseconds(function, repeats=20):
    for _ in range(3):
        function()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def report(name, function, flops=0):
    ms = milliseconds(function)
    print(f"{name:64} {ms:8.3f} ms" + (f" {flops / ms / 1e9:6.0f} TFLOP/s" if flops else ""), flush=True)


def report_training(name, forward, inputs):
    """Report the time of the forward pass, then that of the forward and backward pass."""
    gradient = torch.randn_like(forward())
    report(name + ", forward", forward)
    report(name + ", forward and backward", lambda: torch.autograd.grad(forward(), inputs, gradient))


def ceilings():
    a, b = normal(8192, 8192), normal(8192, 8192)
    report("GEMM 8192^3", lambda: a @ b, 2 * 8192**3)
    source = normal(1 << 30)
    target = torch.empty_like(source)
    ms = milliseconds(lambda: target.copy_(source), 10)
    print(f"{'copy, counting bytes read and written':64} {4 * (1 << 30) / ms / 1e9:8.2f} TB/s")


def head(preset, hidden):
    x, weight, gradient = normal(CHUNK, hidden), normal(VOCAB, hidden), normal(CHUNK, VOCAB)
    flops = 2 * CHUNK * VOCAB * hidden
    report(f"head {preset}: logits", lambda: x @ weight.t(), flops)
    report(f"head {preset}: input gradient", lambda: gradient @ weight, flops)
    report(f"head {preset}: weight gradient", lambda: gradient.t() @ x, flops)


def cross_entropy():
    logits, targets = normal(CHUNK, VOCAB), torch.randint(0, VOCAB, (CHUNK,), device="cuda")
    report("cross_entropy of bf16 logits", lambda: F.cross_entropy(logits, targets))
    report("softmax of bf16 logits in fp32", lambda: torch.softmax(logits, 1, dtype=torch.float32))
    report("logsumexp of an fp32 copy", lambda: torch.logsumexp(logits.float(), 1))


def attention(name, batch, heads, key_size, value_size):
    q, k = (normal(batch, heads, SEQUENCE, key_size).requires_grad_() for _ in range(2))
    v = normal(batch, heads, SEQUENCE, value_size).requires_grad_()
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        label = f"attention {name}, {backend.name.split('_')[0].lower()}"
        try:
            with sdpa_kernel(backend):
                report_training(label, lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), (q, k, v))
        except RuntimeError as error:
            print(f"{label:64} unavailable: {str(error).splitlines()[0]}")
    mask = torch.ones(batch, 1, SEQUENCE, SEQUENCE, dtype=torch.bool, device="cuda").tril()
    report_training(f"attention {name}, boolean mask",
                    lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), (q, k, v))


def experts(preset, hidden, count, per_token, rows):
    tokens = TOKENS * per_token
    x, weight = normal(tokens, hidden), normal(count, rows, hidden)
    ends = torch.arange(1, count + 1, device="cuda", dtype=torch.int32) * (tokens // count)
    flops = 2 * tokens * hidden * rows
    report(f"experts {preset}: grouped_mm", lambda: torch._grouped_mm(x, weight.transpose(1, 2), offs=ends), flops)
    equal = x.view(count, tokens // count, hidden)
    report(f"experts {preset}: bmm, equal group sizes", lambda: torch.bmm(equal, weight.transpose(1, 2)), flops)


def rms_norm(preset, hidden):
    x, weight = normal(TOKENS, hidden).requires_grad_(), normal(hidden).requires_grad_()

    def composite():
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight

    report_training(f"RMSNorm {preset}, fused", lambda: F.rms_norm(x, (hidden,), weight, 1e-6), (x, weight))
    report_training(f"RMSNorm {preset}, composite", composite, (x, weight))


def main():
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    ceilings()
    cross_entropy()
    for preset, (hidden, heads, count, per_token, rows) in PRESETS.items():
        head(preset, hidden)
        attention(preset, 16, heads, 64, 64)
        experts(preset, hidden, count, per_token, rows)
        rms_norm(preset, hidden)
    attention("192-wide keys, 128-wide values", 2, 16, 192, 128)


if __name__ == "__main__":
    main()
