"""The launcher: ranks that fail, hang, or are asked to stop end as promised, and no process survives its launcher."""

import fcntl
import os
import pathlib
import pty
import signal
import subprocess
import termios
import time

import pytest

from processes import ENVIRONMENT, PROGRAM, finish, is_alive, lines, pids, start, wait_until

LONG = ["--steps", "100000"]


def launch(folder, ranks, *arguments, **options):
    return start("--num_gpus", ranks, "--folder", folder, *arguments, **options)


def seconds_to_end(process, code):
    begin = time.monotonic()
    err = finish(process, code)
    return time.monotonic() - begin, err


def test_ranks_sum_numbers(tmp_path):
    process = launch(tmp_path, 3)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "sums are right on 3 ranks\n", "")
    assert sorted(lines(tmp_path, "ended")) == ["0 0", "1 0", "2 0"]


@pytest.mark.parametrize("failing", [0, 1])
def test_the_error_of_a_rank_decides(tmp_path, failing):
    err = finish(launch(tmp_path, 2, "--rank", failing, "--how", "throw", "--code", 4), 4)
    if failing == 0:
        assert err == "error: cannot read shard 7\n"
        return
    first, *rest = err.splitlines()
    assert first.startswith("error: rank 0 of 2 on ")
    assert "of group 'world' failed: rank 1 on " in first and " failed: cannot read shard 7 (" in first
    assert rest[:2] == ["rank 1: error: cannot read shard 7", "error: rank 1 failed first: it ended with exit code 4"]


def test_a_silent_exit_code_decides(tmp_path):
    err = finish(launch(tmp_path, 2, "--rank", 1, "--how", "exit", "--code", 3), 3)
    assert "rank 1 on " in err and "ended or does not respond" in err
    assert "error: rank 1 failed first: it ended with exit code 3\n" in err


@pytest.mark.parametrize("victim", [0, 2])
def test_others_end_within_5_s_after_a_kill(tmp_path, victim):
    process = launch(tmp_path, 3, *LONG)
    os.kill(rank_pid(pids(tmp_path, 3), victim), signal.SIGKILL)
    seconds, err = seconds_to_end(process, 6)
    assert seconds < 5
    assert f"error: rank {victim} failed first: it was killed by signal 9 (SIGKILL)" in err
    if victim != 0:
        assert f"failed: rank {victim} on " in err
    assert not any(map(is_alive, map(int, lines(tmp_path, "pids"))))


def rank_pid(processes, rank):
    return next(pid for pid in processes if f"\0RANK={rank}\0" in "\0" + pathlib.Path(f"/proc/{pid}/environ").read_text())


def test_a_stopped_rank_is_noticed_after_the_timeout(tmp_path):
    process = launch(tmp_path, 2, *LONG, "--timeout", 8)
    os.kill(rank_pid(pids(tmp_path, 2), 1), signal.SIGSTOP)
    seconds, err = seconds_to_end(process, 6)
    assert 6 < seconds < 8 + 5
    assert "failed after 8 s: rank 1 on " in err
    assert "error: rank 1 failed first: it was suspended by SIGSTOP and did not respond" in err
    assert not any(map(is_alive, map(int, lines(tmp_path, "pids"))))


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_all_ranks_in_an_orderly_way(tmp_path, number, code):
    process = launch(tmp_path, 2, *LONG, "--max_restarts", 3)
    processes = pids(tmp_path, 2)
    process.send_signal(number)
    assert finish(process, code) == ""
    assert sorted(lines(tmp_path, "stopped")) == ["0", "1"]
    assert not any(map(is_alive, processes))


def test_ctrl_c_and_ctrl_z_on_a_terminal_reach_each_rank_once(tmp_path):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, "--num_gpus", "2", "--folder", tmp_path, *LONG], env=ENVIRONMENT, stdin=slave, stdout=slave, stderr=slave,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(slave)
    processes = pids(tmp_path, 2)

    def state(pid):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0]
    os.write(master, b"\x1a")
    wait_until(lambda: all(state(pid) == "T" for pid in [process.pid, *processes]))
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: not any(state(pid) == "T" for pid in [process.pid, *processes]))
    os.write(master, b"\x03")
    assert process.wait(timeout=60) == 130
    assert sorted(lines(tmp_path, "stopped")) == ["0", "1"], "a second SIGINT ends a rank at once"
    os.close(master)


def test_no_rank_survives_a_killed_launcher(tmp_path):
    process = launch(tmp_path, 3, *LONG)
    processes = pids(tmp_path, 3)
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not any(map(is_alive, processes)), timeout=5)


def test_restarts_resume_the_run_after_a_kill(tmp_path):
    err = finish(launch(tmp_path, 2, "--max_restarts", 2, "--rank", 1, "--how", "kill"), 0)
    assert lines(tmp_path, "resumed") == ["", "", "run-1", "run-1"]
    assert err.count("starting all ranks again") == 1
    assert sorted(lines(tmp_path, "ended")) == ["0 0", "1 0"]


def test_restarts_end(tmp_path):
    err = finish(launch(tmp_path, 2, "--max_restarts", 2, "--rank", 0, "--how", "kill", "--every-time"), 6)
    assert len(lines(tmp_path, "pids")) == 3 * 2
    assert "restart 2 of at most 2" in err


@pytest.mark.parametrize("code", [1, 2, 7])
def test_other_failures_are_not_repeated(tmp_path, code):
    finish(launch(tmp_path, 2, "--max_restarts", 2, "--rank", 1, "--how", "throw", "--code", code), code)
    assert len(lines(tmp_path, "pids")) == 2


def test_one_rank_can_be_restarted(tmp_path):
    finish(launch(tmp_path, 1, "--max_restarts", 1, "--rank", 0, "--how", "kill"), 0)
    assert lines(tmp_path, "resumed") == ["", "run-1"]


def test_ranks_inherit_no_descriptor_of_the_launcher(tmp_path):
    process = launch(tmp_path, 2, *LONG)
    processes = pids(tmp_path, 2)

    def sockets(pid):
        links = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        return {link for link in links if link.startswith("socket:")}
    launcher = sockets(process.pid)
    assert len(launcher) >= 3  # of the store
    for pid in processes:
        assert not launcher & sockets(pid)
    process.terminate()
    finish(process, 75)


@pytest.mark.parametrize("how, message", [
    ("size", "broadcast 5 of group 'world': ranks disagree: rank 0 of the group starts broadcast of 6 elements"),
    ("operation", "rank 1 all_gather of 7 elements of type Float"),
    ("parts", "all_to_all 5 of group 'world': ranks disagree: rank 0 of the group sends 3 elements to rank 1, which "
              "expects 2")])
def test_ranks_that_disagree_are_found(tmp_path, how, message):
    process = launch(tmp_path, 2, "--rank", 1, "--how", how, environment={"DSV3_CHECK_COLLECTIVES": "1"})
    assert message in finish(process, 1)
