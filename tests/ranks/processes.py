"""Start the test program as several ranks, and look at its processes."""

import os
import pathlib
import shutil
import socket
import subprocess
import time

import pytest

BUILD = pathlib.Path(os.environ.get("DSV3_BUILD_DIR", pathlib.Path(__file__).resolve().parents[2] / "build"))
PROGRAM = BUILD / "bin/rank_program"
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_", "TORCH"))},
               "OMP_NUM_THREADS": "1"}


def start(*arguments, prefix=(), **options):
    """Start the program. `prefix` is a command that starts it."""
    environment = {**ENVIRONMENT, **options.pop("environment", {})}
    return subprocess.Popen([*prefix, PROGRAM, *map(str, arguments)], text=True, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options)


def start_rank(rank, world, port, *arguments, local_world=None, local_rank=None, address="127.0.0.1", prefix=(), **more):
    """Start one rank, as torchrun would."""
    variables = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank if local_rank is None else local_rank,
                 "LOCAL_WORLD_SIZE": local_world or world, "MASTER_ADDR": address, "MASTER_PORT": port, **more}
    return start(*arguments, prefix=prefix, environment={k: str(v) for k, v in variables.items()})


def finish(process, code, timeout=60):
    """Return what the process printed on stderr, after asserting its exit code and that no line is from LibTorch."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == code, f"exit {process.returncode}, not {code}:\n{out}\n{err}"
    for line in err.splitlines():
        assert "Exception raised from" not in line and "frame #" not in line and not line.startswith("["), err
    return err


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, timeout=60):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def lines(folder, name):
    path = folder / name
    return path.read_text().split("\n")[:-1] if path.exists() else []


def pids(folder, count, timeout=60):
    """Return the process ids of `count` ranks as soon as they train."""
    wait_until(lambda: len(lines(folder, "training")) == count, timeout)
    return [int(line) for line in lines(folder, "pids")]


def is_alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def two_namespaces():
    """Two network namespaces that a pair of virtual interfaces connects, as the prefixes of commands in them."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces require root, and ip from iproute2")
    holders = [subprocess.Popen(["unshare", "--net", "sleep", "600"]) for _ in range(2)]
    inside = [["nsenter", f"--net=/proc/{holder.pid}/ns/net"] for holder in holders]
    own = os.readlink("/proc/self/ns/net")
    try:
        deadline = time.monotonic() + 10
        while any(os.readlink(f"/proc/{holder.pid}/ns/net") == own for holder in holders):
            if time.monotonic() > deadline or any(holder.poll() is not None for holder in holders):
                pytest.skip("this machine does not allow network namespaces")
            time.sleep(0.02)
        made = subprocess.run([*inside[0], "ip", "link", "add", "dsv3a", "type", "veth", "peer", "name", "dsv3b", "netns",
                               str(holders[1].pid)], text=True, capture_output=True)
        if made.returncode != 0:
            pytest.skip(f"this kernel has no virtual interfaces: {made.stderr}")
        for number, name in enumerate(["dsv3a", "dsv3b"]):
            for command in (["addr", "add", f"10.99.0.{number + 1}/24", "dev", name], ["link", "set", name, "up"],
                            ["link", "set", "lo", "up"]):
                subprocess.run([*inside[number], "ip", *command], check=True)
        yield inside
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
