"""Ranks that other launchers start: what they say if they cannot find each other, and a network that is cut."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import pytest

from processes import ENVIRONMENT, PROGRAM, finish, free_port, pids, start, start_rank, two_namespaces  # noqa: F401


def test_ranks_find_each_other_without_the_launcher():
    port = free_port()
    ranks = [start_rank(rank, 2, port) for rank in range(2)]
    assert [finish(rank, 0) for rank in ranks] == ["", ""]


def test_missing_ranks_are_named_by_all():
    port = free_port()
    ranks = [start_rank(rank, 4, port, "--timeout", 4) for rank in (0, 2)]
    for rank in ranks:
        err = finish(rank, 6)
        assert "waited 4 s for all 4 ranks; missing: rank 1, 3" in err and len(err.splitlines()) == 1


def test_a_server_that_is_away():
    port = free_port()
    err = finish(start_rank(1, 2, port, "--timeout", 2), 6)
    assert err.endswith(f"cannot reach rank 0 at 127.0.0.1:{port} (MASTER_ADDR, MASTER_PORT): Connection refused\n")
    err = finish(start_rank(1, 2, port, "--timeout", 2, address="nowhere.invalid"), 6)
    assert f"cannot reach rank 0 at nowhere.invalid:{port} (MASTER_ADDR, MASTER_PORT): " in err


def test_a_port_of_another_program():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        err = finish(start_rank(0, 2, port), 2)
        assert err == (f"error: rank 0 cannot listen on port {port}: another program, or another process that is rank 0, "
                       "uses it; set MASTER_PORT to a free port\n")
        err = finish(start_rank(1, 2, port, "--timeout", 2), 6)
        assert err.endswith("it answers, but is not the store of a run\n")


def test_a_rank_that_is_there_twice(tmp_path):
    port = free_port()
    ranks = [start_rank(rank, 2, port, "--steps", 100_000, "--folder", tmp_path) for rank in range(2)]
    pids(tmp_path, 2)
    err = finish(start_rank(1, 2, port), 2)
    assert err == (f"error: two processes are rank 1 of the run at 127.0.0.1:{port}; stop the other run, or set another "
                   "MASTER_PORT for this one\n")
    for rank in ranks:
        rank.terminate()
    assert [finish(rank, 75) for rank in ranks] == ["", ""]


def test_ranks_of_different_worlds():
    port = free_port()
    ranks = [start_rank(rank, world, port, "--timeout", 20) for rank, world in ((0, 2), (1, 3))]
    for rank in ranks:
        err = finish(rank, 2)
        assert "is one of 2 ranks, but rank 1 on " in err and "is one of 3; set the same WORLD_SIZE for all ranks" in err


def test_a_different_cpu_capability_gets_a_warning():
    port = free_port()
    ranks = [start_rank(rank, 2, port, ATEN_CPU_CAPABILITY=capability) for rank, capability in ((0, "default"), (1, "avx2"))]
    first, second = [finish(rank, 0) for rank in ranks]
    assert "uses the CPU capability DEFAULT, rank 1 on " in first and "AVX2: the same run" in first
    assert second == ""


def test_a_rank_that_is_late_is_named_while_rank_0_waits():
    port = free_port()
    ranks = [start_rank(0, 2, port)]
    time.sleep(11)
    ranks.append(start_rank(1, 2, port))
    first, second = [finish(rank, 0) for rank in ranks]
    assert "waiting for rank 1 of 2 ranks" in first and second == ""


def test_the_error_of_rank_0_reaches_the_others_although_it_keeps_the_store():
    port = free_port()
    ranks = [start_rank(rank, 3, port, "--rank", 0, "--how", "throw", "--code", 4) for rank in range(3)]
    assert finish(ranks[0], 4) == "error: cannot read shard 7\n"
    for rank in ranks[1:]:
        assert "failed: rank 0 on " in (err := finish(rank, 6)) and " failed: cannot read shard 7 (" in err


def test_a_stopped_rank_0_that_keeps_the_store_does_not_stop_the_others():
    port = free_port()
    ranks = [start_rank(rank, 2, port, "--rank", 0, "--how", "stop", "--timeout", 3) for rank in range(2)]
    try:
        assert "failed after 3 s: rank 0 on " in finish(ranks[1], 6)
    finally:
        ranks[0].kill()
        ranks[0].communicate()


def test_torchrun_starts_ranks_and_restarts_them():
    """Its store contains what the ranks wrote in it before the restart."""
    done = subprocess.run([pathlib.Path(sys.executable).parent / "torchrun", "--no-python", "--nproc-per-node", "2",
                           "--max-restarts", "1", PROGRAM, "--rank", "1", "--how", "kill"],
                          env=ENVIRONMENT, text=True, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "sums are right on 2 ranks\n"), done.stderr


@pytest.mark.parametrize("variables, message", [
    ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
     "--num_gpus 2 contradicts torchrun, which started 4 of 4 rank(s) on this machine"),
    ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "1",
      "SLURM_STEP_TASKS_PER_NODE": "4"}, "--num_gpus 2 contradicts Slurm"),
    ({"RANK": "0"}, "environment variable WORLD_SIZE is not set, but RANK is"),
])
def test_a_launcher_that_contradicts_num_gpus(variables, message):
    assert message in finish(start("--num_gpus", 2, environment=variables), 2)


def start_in(namespaces, *arguments):
    port = free_port()
    return [start_rank(rank, 4, port, *arguments, local_world=2, local_rank=rank % 2, address="10.99.0.1",
                       prefix=namespaces[rank // 2]) for rank in range(4)]


def test_two_machines_train(two_namespaces):
    for rank in start_in(two_namespaces):
        assert finish(rank, 0) == ""


def test_a_cut_link_is_noticed_after_the_timeout(two_namespaces, tmp_path):
    ranks = start_in(two_namespaces, "--steps", 100_000, "--timeout", 8, "--folder", tmp_path)
    pids(tmp_path, 4)
    subprocess.run([*two_namespaces[0], "ip", "link", "set", "dsv3a", "down"], check=True)
    begin = time.monotonic()
    errors = [finish(rank, 6) for rank in ranks]
    assert time.monotonic() - begin < 8 + 5
    for err in errors:
        assert "of group 'world' failed" in err and len(err.splitlines()) == 1
