"""Write each ATen operator that has its own CUDA kernel in the installed LibTorch, one X("name") per line.

usage: python3 cuda_ops.py SITE_PACKAGES OUTPUT [SOURCE...]

Omits the operators that a SOURCE registers with `library.impl("name", ...)`.

The list comes from the operator declarations that torchgen ships in the wheel, so this script needs no CUDA library. It
matches what the wheel's libtorch_cuda.so registers (test_device.py compares the two where that library can be loaded).
"""

import pathlib
import re
import sys


def names(site_packages):
    sys.path.insert(0, str(site_packages))
    from torchgen.gen import parse_native_yaml
    from torchgen.model import DispatchKey

    folder = pathlib.Path(site_packages) / "torchgen/packaged/ATen/native"
    parsed = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
    cuda = parsed.backend_indices[DispatchKey.CUDA]
    own = {str(f.func.name) for f in parsed.native_functions if cuda.has_kernel(f)}
    # The functional and in-place forms of a structured operator run the kernel of its out= form.
    return sorted(own | {str(f.func.name) for f in parsed.native_functions
                         if f.structured_delegate is not None and str(f.structured_delegate) in own})


def implemented(source):
    return set(re.findall(r'library\.impl\("([\w.]+)"', pathlib.Path(source).read_text()))


if __name__ == "__main__":
    site_packages, output, *sources = sys.argv[1:]
    listed = names(site_packages)
    own = set().union(*map(implemented, sources))
    own.discard("copy_")  # its only kernel, for all devices, calls CUDA through a dispatch stub
    if unknown := own.difference(listed):
        sys.exit(f"these operators have no CUDA kernel in LibTorch: {', '.join(sorted(unknown))}")
    pathlib.Path(output).write_text("".join(f'X("{name}")\n' for name in listed if name not in own))
