"""Missing machine resources: disk space, permissions, memory, a GPU."""

import functools
import os
import subprocess

from harness import GOLDEN, case, dsv3, dsv3_run, experiment

# Runs the program in a new user and mount namespace, on a disk that is small, or read-only even for root. The disk
# vanishes with the namespace, so the script lists the files left on it.
NAMESPACE = r"""
exec unshare -rm bash -c 'mount -t tmpfs -o "$DISK" none disk || exit 99
"$@"; code=$?; echo files left on disk: $(find disk -mindepth 1 ! -name lock | sort); exit $code' bash "$@"
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


@case(4, "train.device", "nvidia-smi", "train.device=cpu", needs=has_gpu)
def machine_without_gpu(folder):
    """Training on a GPU on a machine without one."""
    experiment(folder)
    return dsv3_run("tiny.yaml", "--device", "cuda", "--run_name", "new")


@case(5, GOLDEN, needs=no_namespaces)
def disk_full_checkpoint(folder):
    """A disk that is full when the first checkpoint is saved."""
    return on_disk("size=200k", folder, "tiny.yaml", "--output", "disk/runs", "--run_name", "new")


@case(1, "FOLDER/disk/runs/new/config.yaml.tmp-NONCE", "No space left on device", "SPACE free",
      stdout="files left on disk:",
      needs=no_namespaces)
def disk_full_start(folder):
    """A disk that is full when the run starts."""
    return on_disk("size=4k", folder, "tiny.yaml", "--output", "disk/runs", "--run_name", "new")


@case(1, GOLDEN, needs=no_namespaces)
def disk_full_prepare(folder):
    """A disk that is full while shards are written."""
    return on_disk("size=16k", folder, "data", "prepare", "text.txt", "--tokenizer", "bytes", "--output", "disk/shards",
                   program=dsv3)


@case(1, "FOLDER/disk/new", "Read-only file system", "user 0", stdout="files left on disk:", needs=no_namespaces)
def disk_read_only(folder):
    """Starting a run in a read-only folder."""
    return on_disk("ro", folder, "tiny.yaml", "--output", "disk", "--run_name", "new")


@case(1, "FOLDER/disk/shards.tmp-NONCE", "Read-only file system", "user 0", stdout="files left on disk:",
      needs=no_namespaces)
def disk_read_only_prepare(folder):
    """Preparing shards in a read-only folder."""
    return on_disk("ro", folder, "data", "prepare", "text.txt", "--tokenizer", "bytes", "--output", "disk/shards", program=dsv3)


@case(1, "runs")
def output_is_a_file(folder):
    """A file where the runs folder should be."""
    experiment(folder)
    (folder / "runs").write_text("notes about runs\n")
    return dsv3_run("tiny.yaml", "--run_name", "new")


@case(5, "step 3", "FOLDER/runs/new/checkpoints/step-3.tmp-NONCE/rank-00000.safetensors", "File too large", "ulimit -f",
      leaves=["new runs/"])
def file_size_limit(folder):
    """A checkpoint that exceeds the file size limit (ulimit -f)."""
    experiment(folder)
    return dsv3_run("tiny.yaml", "--run_name", "new", limits={"RLIMIT_FSIZE": 500_000})


@case(7, GOLDEN)
def loss_not_finite(folder):
    """A learning rate that is far too high."""
    experiment(folder)
    return dsv3_run("tiny.yaml", "train.steps=30", "optimizer={plugin: adamw, lr: 1e30}", "--run_name", "new")


@case(8, "cannot create parameter 'layers.0.feed_forward.gate_up.weight'", "out of memory", "train.micro_batch", "--dry-run")
def memory_model_too_large(folder):
    """A model that does not fit into memory."""
    experiment(folder)
    return dsv3_run("tiny.yaml", "model.hidden=131072", "model.feed_forward={plugin: swiglu, hidden: 1048576}", "--run_name", "new",
                    limits={"RLIMIT_AS": 16 << 30})


@case(8, GOLDEN)
def memory_batch_too_large(folder):
    """A batch that does not fit into memory."""
    experiment(folder)
    return dsv3_run("tiny.yaml", "train.batch=65536", "train.sequence=4096", "validation.batches=1", "--run_name", "new",
                    limits={"RLIMIT_AS": 8 << 30})
