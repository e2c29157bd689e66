"""Runs an optimizer plugin on given values and gradients, with optimizer_driver.cpp."""

import json
import os
import struct
import subprocess

import torch


def updates(name, options, values, grads, factors, plugin_path=None):
    """Return lists of the values after each update.

    grads[u] are the gradients of update u, and factors[u] is its learning-rate factor. If the optimizer has evaluation
    weights, they follow the values in each list.
    """
    data = struct.pack("q", len(values))
    for value in values:
        data += struct.pack("qq", *value.shape) + value.numpy().tobytes()
    data += struct.pack("q", len(grads))
    for factor, update in zip(factors, grads, strict=True):
        data += struct.pack("d", factor) + b"".join(grad.numpy().tobytes() for grad in update)
    driver = os.path.join(os.environ.get("DSV3_BUILD_DIR", "build"), "bin/optimizer_driver")
    command = [driver, name, json.dumps(options), *([plugin_path] if plugin_path else [])]
    done = subprocess.run(command, input=data, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    flat = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32)
    sizes = [value.numel() for value in values]
    copies, rest = divmod(flat.numel(), len(grads) * sum(sizes))
    assert rest == 0 and copies in (1, 2)
    pieces = flat.split(sizes * copies * len(grads))
    per_update = copies * len(values)
    shaped = [piece.view(values[i % len(values)].shape) for i, piece in enumerate(pieces)]
    return [shaped[i * per_update:(i + 1) * per_update] for i in range(len(grads))]
