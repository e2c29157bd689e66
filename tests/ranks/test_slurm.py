"""Ranks as tasks of a real Slurm: munged, slurmctld and slurmd run on this machine for the time of the tests."""

import json
import os
import shlex
import shutil
import subprocess
import time

import pytest

from processes import ENVIRONMENT, PROGRAM, free_port
from runs import RUN, SOURCE, make_tiny, metrics

CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool
SlurmdPidFile={folder}/slurmd.pid
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/linear
NodeName=localhost NodeAddr=127.0.0.1 Port={node_port} CPUs={cpus}
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE OverSubscribe=FORCE:4
"""


class Slurm:
    def __init__(self, folder):
        self.environment = {**ENVIRONMENT, "SLURM_CONF": str(folder / "slurm.conf")}
        self.folder = folder
        self.daemons = []

    def daemon(self, *command):
        log = open(self.folder / f"{command[0]}.out", "w")
        self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def start(self):
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(
            folder=self.folder, controller_port=free_port(), node_port=free_port(), cpus=os.cpu_count()))
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.daemon("munged", "--foreground", "--force", "--key-file", str(key), "--socket", f"{self.folder}/munge.socket",
                    "--pid-file", f"{self.folder}/munged.pid", "--log-file", f"{self.folder}/munged.log",
                    "--seed-file", f"{self.folder}/munged.seed")
        self.wait_for(lambda: (self.folder / "munge.socket").exists())
        self.daemon("slurmctld", "-D")
        self.daemon("slurmd", "-D", "-N", "localhost")
        self.wait_for(lambda: self.run("sinfo", "--noheader", "--format=%T").stdout.strip() == "idle")

    def wait_for(self, condition):
        deadline = time.monotonic() + 60
        while not condition():
            logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.out"))
            assert time.monotonic() < deadline and all(daemon.poll() is None for daemon in self.daemons), logs
            time.sleep(0.1)

    def run(self, *command):
        return subprocess.run([*map(str, command)], env=self.environment, cwd=self.folder, text=True, capture_output=True,
                              stdin=subprocess.DEVNULL, timeout=120)

    def end(self):
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    missing = [name for name in ("munged", "slurmctld", "slurmd", "srun") if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"not installed: {', '.join(missing)}" if missing else "slurmd requires root")
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.end()


def test_srun_starts_ranks(slurm):
    done = slurm.run("srun", "-n", "2", "--overcommit", PROGRAM)
    assert (done.returncode, done.stdout, done.stderr) == (0, "sums are right on 2 ranks\n", "")


def test_srun_returns_the_code_of_the_rank_that_failed(slurm):
    done = slurm.run("srun", "-n", "2", "--overcommit", PROGRAM, "--rank", "0", "--how", "throw", "--code", "7")
    assert done.returncode == 7, done.stderr
    assert "failed: rank 0 on " in done.stderr


def test_a_batch_script_without_srun_is_one_rank(slurm):
    script = slurm.folder / "batch.sh"
    script.write_text(f"#!/bin/sh\n{PROGRAM}\n{PROGRAM} --num_gpus 2\nsrun --overcommit -n 2 {PROGRAM}\n")
    done = slurm.run("sbatch", "--wait", "--ntasks=2", "--overcommit", "--output=batch.txt", script)
    assert done.returncode == 0, done.stderr
    assert (slurm.folder / "batch.txt").read_text() == "".join(f"sums are right on {n} ranks\n" for n in (1, 2, 2))


def test_num_gpus_contradicts_several_tasks(slurm):
    done = slurm.run("srun", "-n", "2", "--overcommit", PROGRAM, "--num_gpus", "1")
    assert done.returncode == 2
    assert "--num_gpus 1 contradicts Slurm, which started 2 of 2 rank(s) on this machine" in done.stderr


def test_a_shell_in_an_allocation_may_launch(slurm):
    done = slurm.run("srun", "-n", "1", "sh", "-c", f"{PROGRAM} --num_gpus 2")
    assert (done.returncode, done.stdout) == (0, "sums are right on 2 ranks\n"), done.stderr


def documented_srun():
    """The line of docs/strategies.md that starts dsv3-run with srun, as words."""
    lines = (SOURCE / "docs/strategies.md").read_text().splitlines()
    line, = [line for line in lines if line.startswith("srun ")]
    return shlex.split(line)


def test_the_documented_srun_line_trains(slurm):
    """On one machine without GPUs, and with a small experiment. Everything else is as documented."""
    make_tiny(slurm.folder)
    words = documented_srun()
    for option, value in ("--nodes", "1"), ("--ntasks-per-node", "2"):
        words[words.index(option) + 1] = value
    gpus = words.index("--gpus-per-node")
    del words[gpus:gpus + 2]
    words = [{"dsv3-run": str(RUN), "experiment.yaml": "tiny.yaml"}.get(word, word) for word in words]
    done = slurm.run(words[0], "--overcommit", *words[1:], "--run_name", "two", "train.steps=6")
    assert done.returncode == 0, done.stderr
    one = slurm.run(RUN, "tiny.yaml", "--run_name", "one", "train.steps=6")
    assert one.returncode == 0, one.stderr
    runs = slurm.folder / "runs"
    assert json.loads((runs / "two/provenance.json").read_text())["ranks"] == 2
    for step, values in metrics(runs / "one").items():
        assert metrics(runs / "two")[step]["train/loss" if step else "val/loss"] == pytest.approx(
            values["train/loss" if step else "val/loss"], rel=1e-5)
