"""Ranks that are killed, hang, throw, stop or disagree: the run says which, ends as promised and leaves no process, and
its resumed result is bit-identical to that of an undisturbed run."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

import pytest

from processes import free_port, is_alive, two_namespaces  # noqa: F401
from runs import BUILD, ENVIRONMENT, EXPERTS, RUN, command, last_checkpoint, losses, make_tiny, rank_processes, run, start, train, wait_for_step
from support import SEED, seal, tensors

FULL = os.environ.get("DSV3_TEST_FULL") == "1"
FAULTS = BUILD / "tests/plugins/faults"
ODD = ["--plugin-path", FAULTS, "model.feed_forward.0=odd_rank"]
TIMEOUT = 4
SETTINGS = ["train.steps=40", "checkpoint.every=4", "validation.every=0", f"strategy.timeout={TIMEOUT}"]
WAYS = [(2, ["strategy=ddp"]), (4, ["strategy=fsdp"]), (2, ["strategy=zero", "strategy.stage=2", EXPERTS])]
HOWS = ["kill", "stop", "throw", "term"]
COUNT = 20 if FULL else 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an undisturbed run for each way."""
    folder = tmp_path_factory.mktemp("faults")
    text = make_tiny(folder).read_text()
    (folder / "variable.yaml").write_text(text.replace("seed: 7", 'seed: "${env:TEST_SEED}"'))
    for number, (ranks, settings) in enumerate(WAYS):
        train(folder, f"calm{number}", *ODD, "model.feed_forward.0.step=0", *SETTINGS, *settings, ranks=ranks)
    return folder


def disturb(process, how, victim, seed):
    """Do to one rank what the test asks for, and return when it happened."""
    if how != "throw":
        number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[how]
        os.kill(rank_processes(process.pid, seed[0])[victim], number)
    return time.monotonic()


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("trial", range(COUNT))
def test_a_disturbed_run_is_finished_bit_identically(folder, how, trial):
    rng = random.Random(f"{SEED} {how} {trial}")
    number = rng.randrange(len(WAYS))
    ranks, settings = WAYS[number]
    victim, step = rng.randrange(ranks), rng.randrange(2, 24)
    name = f"{how}{trial}"
    print(f"DSV3_TEST_SEED={SEED}: {how} rank {victim} of {ranks} after step {step}, {settings}")
    fault = [f"model.feed_forward.0.step={step}", f"model.feed_forward.0.rank={victim}"] if how == "throw" else \
        ["model.feed_forward.0.step=0"]
    process = start(folder, *command(name, *ODD, *fault, *SETTINGS, *settings, ranks=ranks))
    processes = list(rank_processes(process.pid, ranks).values())
    if how != "throw":
        wait_for_step(folder / "runs" / name, step, process)
    begin = disturb(process, how, victim, (ranks,))
    _, err = process.communicate(timeout=60)
    seconds = time.monotonic() - begin
    check_end(how, victim, process.returncode, err, seconds)
    status = json.loads((folder / "runs" / name / "status.json").read_text())
    assert status["state"] != "running" and status["exit_code"] == process.returncode, status
    assert not any(map(is_alive, processes))
    resume_to_the_end(folder, name, ranks)
    calm, disturbed = folder / f"runs/calm{number}", folder / "runs" / name
    assert losses(disturbed) == losses(calm)
    assert stored(disturbed) == stored(calm)


def check_end(how, victim, code, err, seconds):
    """Check the exit code, what is said, and after how many seconds."""
    if how == "kill":
        assert code == 6 and seconds < 5, (code, seconds, err)
        assert f"error: rank {victim} failed first: it was killed by signal 9 (SIGKILL)" in err, err
    if how == "stop":
        assert code == 6 and seconds < TIMEOUT + 5, (code, seconds, err)
        assert f"error: rank {victim} failed first: it was suspended by SIGSTOP" in err, err
    if how == "throw":
        assert code == 4, err
        assert "a fault of one rank" in err, err
    if how == "term":
        assert code == 75, err
        assert "stopped at step" in err, err
    if how in ("kill", "stop"):
        assert "frame #" not in err and "Exception raised" not in err, err


def resume_to_the_end(folder, name, ranks):
    run(folder, RUN, "--run_id", name, "--plugin-path", FAULTS, "model.feed_forward.0.step=0", "--num_gpus", ranks)


def stored(folder):
    """Return every tensor of the last checkpoint, by rank and name."""
    checkpoint = last_checkpoint(folder)
    return {path.name: tensors(checkpoint, path.name) for path in checkpoint.glob("*.safetensors")}


def test_restarts_finish_the_run(folder):
    ranks, settings = WAYS[1]
    process = start(folder, *command("restarted", *ODD, "model.feed_forward.0.step=0", *SETTINGS, *settings, "--max_restarts",
                                     2, ranks=ranks))
    for step in (5, 20):
        wait_for_step(folder / "runs/restarted", step, process)
        os.kill(rank_processes(process.pid, ranks)[1], signal.SIGKILL)
        time.sleep(0.5)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.count("rank 1 failed first") == 2, err
    assert losses(folder / "runs/restarted") == losses(folder / "runs/calm1")


def start_rank(folder, rank, port, *arguments, file="tiny.yaml", world=2, variables=None, prefix=(), address="127.0.0.1"):
    environment = {**ENVIRONMENT, "RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world,
                   "MASTER_ADDR": address, "MASTER_PORT": port, **(variables or {})}
    return subprocess.Popen([*map(str, [*prefix, RUN, file, *arguments])], cwd=folder, text=True,
                            env={k: str(v) for k, v in environment.items()}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def changed_plugins(folder):
    """A copy of the test plugins with another digest."""
    copy = folder / "changed"
    if not copy.exists():
        shutil.copytree(FAULTS, copy)
        for library in copy.rglob("*.so"):
            library.write_bytes(library.read_bytes()[:-79] + b"\0" * 16)
            seal(library)
    return copy


DISAGREEMENTS = {
    "setting": ([], ["train.batch=8"], {}, "train.batch: 8 instead of 4"),
    "environment": ([], [], {"TEST_SEED": "2"}, 'train.seed: "${env:TEST_SEED}" ('),
    "shape": ([*ODD, "model.feed_forward.0.how=shape"], [*ODD, "model.feed_forward.0.how=shape"], {},
              "parameter layers.0.feed_forward.down.weight: shape [32, 40]"),
    "optimizer": ([], ["optimizer.1.lr=0.03"], {}, "optimizer.1.lr: 0.03 instead of 0.02"),
    "plugin": ([*ODD, "model.feed_forward.0.step=0"], None, {}, "plugin faults: "),
}


@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_ranks_that_disagree_exit_with_2(folder, what):
    first, second, variables, text = DISAGREEMENTS[what]
    if second is None:
        second = ["--plugin-path", changed_plugins(folder), *first[2:]]
    port = free_port()
    name = ["--run_name", f"disagree-{what}", "strategy=ddp", "strategy.timeout=20"]
    file = "variable.yaml" if variables else "tiny.yaml"
    ranks = [start_rank(folder, 0, port, *name, *first, file=file, variables={"TEST_SEED": "1"}),
             start_rank(folder, 1, port, *name, *second, file=file, variables={"TEST_SEED": "1", **variables})]
    for rank in ranks:
        out, err = rank.communicate(timeout=60)
        assert rank.returncode == 2, (out, err)
        assert "rank 1 on " in err and " differs from rank 0" in err and text in err, err
        assert "Start all ranks with the same command, files and installation" in err
    assert not (folder / f"runs/disagree-{what}").exists()


def test_a_rank_with_other_values_is_named(folder):
    err = train(folder, "odd", *ODD, "model.feed_forward.0.how=change", "model.feed_forward.0.step=30", "train.steps=120",
                "optimizer=adamw", "strategy=ddp", "validation.every=0", ranks=4, code=1)
    assert "the values of layers.0.feed_forward.up.weight on rank 1 (" in err, err
    assert "differ from their copies on other ranks" in err
    assert "Checkpoints after step 0 may contain wrong values" in err
    status = json.loads((folder / "runs/odd/status.json").read_text())
    assert status["state"] == "failed" and "rank 1" in status["message"]


def test_two_machines_survive_a_cut_link(folder, two_namespaces):
    """Two ranks on each of two machines, whose network is cut and then repaired."""
    settings = ["--run_name", "cut", "--resume", "auto", *ODD, "model.feed_forward.0.step=0", *SETTINGS, "strategy=fsdp"]

    def start_all():
        port = free_port()
        return [start_rank(folder, rank, port, *settings, world=4, address="10.99.0.1", prefix=two_namespaces[rank // 2],
                           variables={"LOCAL_RANK": rank % 2, "LOCAL_WORLD_SIZE": 2}) for rank in range(4)]

    def set_link(state):
        subprocess.run([*two_namespaces[0], "ip", "link", "set", "dsv3a", state], check=True)

    ranks = start_all()
    wait_for_step(folder / "runs/cut", 6, ranks[0])
    set_link("down")
    begin = time.monotonic()
    for rank in ranks:
        _, err = rank.communicate(timeout=60)
        assert rank.returncode == 6, err
        assert "did not" in err or "not respond" in err or "failed" in err, err
    assert time.monotonic() - begin < TIMEOUT + 5
    set_link("up")
    for rank in start_all():
        _, err = rank.communicate(timeout=120)
        assert rank.returncode == 0, err
    assert losses(folder / "runs/cut") == losses(folder / "runs/calm1")


def test_a_busy_port_and_a_missing_rank(folder):
    port = free_port()
    rank = start_rank(folder, 1, port, "--run_name", "alone", "strategy=ddp", "strategy.timeout=2")
    _, err = rank.communicate(timeout=60)
    assert rank.returncode == 6 and len(err.strip().splitlines()) == 1, err
    rank = start_rank(folder, 0, port, "--run_name", "alone", "strategy=ddp", "strategy.timeout=2", world=4)
    _, err = rank.communicate(timeout=60)
    assert rank.returncode == 6 and "missing: rank 1, 2, 3" in err and len(err.strip().splitlines()) == 1, err
    assert not (folder / "runs/alone").exists()
