"""Write each ATen operator that has its own CUDA kernel in the installed LibTorch, one X("name", checks) per line.

`checks` is whether LibTorch checks before the kernel that all tensors are on the same device. Other operators do so in
TensorIterator, which accepts tensors without dimensions on the host.

usage: python3 cuda_ops.py SITE_PACKAGES OUTPUT [SOURCE...]

Omits the operators that a SOURCE registers with `library.impl("name", ...)`.

The list comes from the operator declarations that torchgen ships in the wheel, so this script needs no CUDA library. It
matches what the wheel's libtorch_cuda.so registers (test_device.py compares the two where that library can be loaded).
"""

import pathlib
import re
import sys


def operators(site_packages):
    """Return whether LibTorch checks the devices of each operator, by the operator's name."""
    sys.path.insert(0, str(site_packages))
    from torchgen.gen import parse_native_yaml
    from torchgen.model import DeviceCheckType, DispatchKey

    folder = pathlib.Path(site_packages) / "torchgen/packaged/ATen/native"
    parsed = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
    cuda = parsed.backend_indices[DispatchKey.CUDA]
    own = {str(f.func.name) for f in parsed.native_functions if cuda.has_kernel(f)}
    # The functional and in-place forms of a structured operator run the kernel of its out= form.
    return {str(f.func.name): f.device_check != DeviceCheckType.NoCheck for f in parsed.native_functions
            if str(f.func.name) in own
            or f.structured_delegate is not None and str(f.structured_delegate) in own}


def implemented(source):
    return set(re.findall(r'library\.impl\("([\w.]+)"', pathlib.Path(source).read_text()))


if __name__ == "__main__":
    site_packages, output, *sources = sys.argv[1:]
    listed = operators(site_packages)
    own = set().union(*map(implemented, sources))
    own.discard("copy_")  # its only kernel, for all devices, calls CUDA through a dispatch stub
    if unknown := own.difference(listed):
        sys.exit(f"these operators have no CUDA kernel in LibTorch: {', '.join(sorted(unknown))}")
    lines = [f'X("{name}", {str(checks).lower()})\n' for name, checks in sorted(listed.items()) if name not in own]
    pathlib.Path(output).write_text("".join(lines))
