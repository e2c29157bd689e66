"""Training on several fake GPUs, which copy tensors through host memory, equals training on the CPU."""

import json
import re

import pytest

from support import BUILD, execute, make_tiny, metrics, on_cpu, train

SHORT = ["schedule=constant", "schedule.warmup=0", "train.micro_batch=1", "optimizer.1.ns_dtype=fp32",
         "checkpoint.every=3", "validation.every=3", "train.deterministic=true"]
OFFLOAD = "strategy.offload=optimizer"
EXPERTS = "model.feed_forward.1.expert_parallel=2"
STRATEGIES = {
    "ddp": ["strategy=ddp"],
    "stage1": ["strategy=zero", "strategy.stage=1"],
    "stage1-offload": ["strategy=zero", "strategy.stage=1", OFFLOAD],
    "stage2": ["strategy=zero"],
    "stage2-offload": ["strategy=deepspeed_stage_2"],
    "stage3": ["strategy=fsdp"],
    "stage3-offload": ["strategy=fsdp", OFFLOAD],
    "stage3-offload-all": ["strategy=deepspeed_stage_3"],
}
RUNS = {**{f"{name}-{ranks}": (ranks, words) for name, words in STRATEGIES.items() for ranks in (1, 2)},
        "experts-2": (2, ["strategy=ddp", EXPERTS]),
        "experts-4": (4, ["strategy=deepspeed_stage_3", EXPERTS]),
        "hybrid-4": (4, ["strategy=zero", "strategy.stage=3", "strategy.shard=2", OFFLOAD, "strategy.freed=nan"])}


def on_gpus(folder, name, *words, ranks, check=0, **environment):
    """Train on `ranks` fake GPUs, and return what the run printed on stderr."""
    gpus = {"FAKE_CUDA_COUNT": ranks, **environment}
    return train("tiny.yaml", *SHORT, "--run_name", name, *words, "--num_gpus", ranks, cwd=folder, check=check, **gpus).stderr


def losses(run):
    """Return the losses and norms of every step."""
    names = ("train/loss", "train/total_loss", "train/mtp_loss", "train/grad_norm", "val/loss")
    return {step: {name: row[name] for name in names if name in row} for step, row in metrics(run).items()}


def provenance(run):
    return json.loads((run / "provenance.json").read_text())


def assert_close(run, expected, tolerance=1e-5):
    assert losses(run).keys() == losses(expected).keys()
    for step, row in losses(expected).items():
        assert losses(run)[step] == pytest.approx(row, rel=tolerance), step


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the experiment, and a run of six steps on the CPU for each precision."""
    folder = tmp_path_factory.mktemp("ranks")
    make_tiny(folder)
    for precision in ("fp32", "bf16"):
        on_cpu("dsv3-run", "tiny.yaml", *SHORT, "train.steps=6", "train.device=cpu", f"train.precision={precision}",
               "--run_name", precision, cwd=folder)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_gpus_equals_one_on_the_cpu(folder, name):
    ranks, words = RUNS[name]
    on_gpus(folder, name, "train.steps=6", *words, ranks=ranks)
    assert_close(folder / "runs" / name, folder / "runs/fp32")
    assert provenance(folder / "runs" / name)["gpu"]["name"] == "NVIDIA H100 80GB HBM3"
    assert provenance(folder / "runs" / name)["data_hash"] == provenance(folder / "runs/fp32")["data_hash"]


@pytest.mark.parametrize("words", [["strategy=ddp"], ["strategy=deepspeed_stage_3", "strategy.reduce=bf16"],
                                   ["strategy=fsdp", OFFLOAD, "strategy.reshard_after_forward=false"]], ids=" ".join)
def test_bf16_equals_the_cpu_up_to_rounding(folder, words):
    name = "bf16-" + re.sub(r"\W", "-", words[0])
    on_gpus(folder, name, "train.steps=3", "train.precision=bf16", *words, ranks=2)
    run, cpu = losses(folder / "runs" / name), losses(folder / "runs/bf16")
    for step in range(1, 4):
        assert run[step] == pytest.approx(cpu[step], rel=2e-2), step


def test_a_run_moves_between_cpu_and_gpus(folder):
    """Each part of the run has another device, strategy and number of ranks."""
    run = folder / "runs/moves"
    resume = ["--run_id", "moves"]
    on_gpus(folder, "moves", "train.steps=2", *STRATEGIES["stage3-offload-all"], ranks=2)
    on_cpu("dsv3-run", *resume, "train.steps=4", "train.device=cpu", "strategy=ddp", cwd=folder)
    for steps, words, ranks in ((5, STRATEGIES["stage1-offload"], 2), (6, STRATEGIES["stage3"], 1)):
        execute([BUILD / "bin/dsv3-run", *resume, f"train.steps={steps}", "train.device=cuda", *words, "--num_gpus", ranks],
                cwd=folder, FAKE_CUDA_COUNT=2)
    expected = losses(folder / "runs/fp32")
    for step, row in losses(run).items():
        # Each part ends with a validation.
        assert {k: v for k, v in row.items() if k in expected[step]} == pytest.approx(
            {k: v for k, v in expected[step].items() if k in row}, rel=1e-5), step
    assert sorted(losses(run)) == list(range(7))


def test_operations_are_compared_on_the_device(folder):
    on_gpus(folder, "compared", "train.steps=1", *STRATEGIES["stage3"], ranks=2, DSV3_CHECK_COLLECTIVES=1)


def test_ranks_that_share_state_need_less_memory(folder):
    one, two = (metrics(folder / "runs" / name)[6]["memory/peak_bytes"] for name in ("stage3-1", "stage3-2"))
    assert 0 < two < one


def test_each_local_rank_uses_its_gpu(folder):
    on_gpus(folder, "local", "train.steps=1", "strategy=ddp", ranks=2)
    for log, index in (("log.txt", 0), ("log-rank-1.txt", 1)):
        assert f"cuda:{index}: NVIDIA H100" in (folder / "runs/local" / log).read_text()


@pytest.mark.parametrize("gpus, code", [("0,1,2", 0), ("0,1", 4), ("2", 0)])
def test_slurm_ranks_use_their_gpus(folder, gpus, code):
    """Slurm shows a task the GPUs of all tasks on the machine, or with --gpus-per-task its own one."""
    slurm = {"SLURM_PROCID": 2, "SLURM_STEP_NUM_TASKS": 3, "SLURM_LOCALID": 2, "SLURM_STEP_TASKS_PER_NODE": "3",
             "SLURM_NODEID": 0, "MASTER_PORT": 9, "FAKE_CUDA_COUNT": 3, "CUDA_VISIBLE_DEVICES": gpus}
    done = train("tiny.yaml", "--check", "train.batch=3", "train.micro_batch=1", "strategy=ddp", cwd=folder, check=code, **slurm)
    assert ("3 ranks on one machine need as many GPUs, but 2 are visible" in done.stderr) == (code == 4)


def test_more_ranks_than_gpus_are_reported_once(folder):
    err = on_gpus(folder, "many", "train.steps=1", "strategy=ddp", ranks=2, check=4, FAKE_CUDA_COUNT=1)
    assert err.count("error:") == 1, err
    assert "2 ranks on one machine need as many GPUs, but 1 is visible\n" in err
    assert "note: pass --num_gpus 1, check CUDA_VISIBLE_DEVICES, or set train.device=cpu" in err
    assert not (folder / "runs/many").exists()


def test_a_run_on_a_gpu_continues_with_more_ranks_on_the_cpu(folder):
    on_gpus(folder, "to-cpu", "train.steps=1", "strategy=ddp", ranks=1)
    execute([BUILD / "bin/dsv3-run", "--run_id", "to-cpu", "train.steps=2", "train.device=cpu", "--num_gpus", "2"], cwd=folder)
    assert sorted(metrics(folder / "runs/to-cpu")) == [0, 1, 2]


@pytest.mark.parametrize("value, code, message", [
    ("", 4, r"several ranks on GPUs need NCCL, but its library does not load: .*undefined symbol.*or set DSV3_RANKS=gloo"),
    ("mpi", 4, "environment variable DSV3_RANKS='mpi' is neither nccl nor gloo")])
def test_ranks_that_cannot_communicate_are_reported_once(folder, value, code, message):
    """The fake device has no NCCL."""
    err = on_gpus(folder, "silent", "train.steps=1", "strategy=ddp", ranks=2, check=code, DSV3_RANKS=value)
    assert re.search(message, re.sub(r"\s+", " ", err)) and err.count("several ranks on GPUs need NCCL") <= 1, err
    assert not (folder / "runs/silent").exists()
