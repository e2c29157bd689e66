"""What a machine lacks: space, rights, memory, a GPU."""

import functools
import os
import subprocess

from harness import dsv3, dsv3_run, experiment, mistake

# A user and mount namespace of its own: a disk to fill, and a read-only one that stops root too. What is left on the disk
# goes with it, so it is listed.
NAMESPACE = r"""
exec unshare -rm bash -c 'mount -t tmpfs -o "$DISK" none disk || exit 99
"$@"; code=$?; echo left on the disk: $(find disk -mindepth 1 ! -name lock | sort); exit $code' bash "$@"
"""


@functools.cache
def no_namespaces():
    done = subprocess.run(["unshare", "-rm", "true"], capture_output=True)
    return "" if done.returncode == 0 else "user namespaces are not allowed here"


def has_gpu():
    return "this machine has a GPU" if os.path.exists("/dev/nvidiactl") else ""


def on_disk(options, folder, *words, program=dsv3_run):
    experiment(folder)
    (folder / "disk").mkdir(exist_ok=True)
    return program(*words, shell=NAMESPACE, environment={"DISK": options})


@mistake(2, needs=has_gpu)
def machine_no_gpu(folder):
    """A GPU is asked for where there is none."""
    experiment(folder)
    return dsv3_run("tiny.yaml", "--device", "cuda", "--run_name", "new")


@mistake(5, needs=no_namespaces)
def disk_full_checkpoint(folder):
    """The disk is full when the first checkpoint is saved."""
    return on_disk("size=200k", folder, "tiny.yaml", "--output", "disk/runs", "--run_name", "new")


@mistake(1, needs=no_namespaces)
def disk_full_start(folder):
    """The disk is full when the run starts."""
    return on_disk("size=4k", folder, "tiny.yaml", "--output", "disk/runs", "--run_name", "new")


@mistake(1, needs=no_namespaces)
def disk_full_prepare(folder):
    """The disk is full while shards are written."""
    return on_disk("size=16k", folder, "data", "prepare", "text.txt", "--tokenizer", "bytes", "--out", "disk/shards",
                   program=dsv3)


@mistake(1, needs=no_namespaces)
def disk_read_only(folder):
    """Runs are to go to a folder that cannot be written."""
    return on_disk("ro", folder, "tiny.yaml", "--output", "disk", "--run_name", "new")


@mistake(1, needs=no_namespaces)
def disk_read_only_prepare(folder):
    """Shards are to go to a folder that cannot be written."""
    return on_disk("ro", folder, "data", "prepare", "text.txt", "--tokenizer", "bytes", "--out", "disk/shards", program=dsv3)


@mistake(1)
def output_is_a_file(folder):
    """The folder of runs is a file."""
    experiment(folder)
    (folder / "runs").write_text("notes about runs\n")
    return dsv3_run("tiny.yaml", "--run_name", "new")


@mistake(5)
def file_size_limit(folder):
    """The shell limits the size of files (ulimit -f)."""
    experiment(folder)
    return dsv3_run("tiny.yaml", "--run_name", "new", limits={"RLIMIT_FSIZE": 100_000})


@mistake(7)
def loss_not_finite(folder):
    """The learning rate is far too high."""
    experiment(folder)
    return dsv3_run("tiny.yaml", "train.steps=30", "optimizer={plugin: adamw, lr: 1e30}", "--run_name", "new")


@mistake(1)
def memory_giant_model(folder):
    """The model does not fit into memory."""
    experiment(folder)
    return dsv3_run("tiny.yaml", "model.hidden=32768", "model.feed_forward={plugin: swiglu, hidden: 4194304}", "--run_name", "new",
                    limits={"RLIMIT_AS": 16 << 30})


@mistake(1)
def memory_during_training(folder):
    """The batch does not fit into memory."""
    experiment(folder)
    return dsv3_run("tiny.yaml", "train.batch=65536", "train.sequence=4096", "validation.batches=1", "--run_name", "new",
                    limits={"RLIMIT_AS": 8 << 30})
