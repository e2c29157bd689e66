"""Training on several ranks equals training on one: losses, hashes, checkpoints and exported models."""

import itertools
import json
import os

import pytest

from runs import BUILD, EXPERTS, SHORT, difference, losses, make_tiny, metrics, provenance, resume, run, train

FULL = os.environ.get("DSV3_TEST_FULL") == "1"
WAYS = {
    "single": (1, ["strategy=single"]),
    "ddp2": (2, ["strategy=ddp"]),
    "ddp4": (4, ["strategy=ddp"]),
    "stage1_2": (2, ["strategy=zero", "strategy.stage=1"]),
    "stage2_4": (4, ["strategy=deepspeed_stage_2"]),
    "stage3_2": (2, ["strategy=fsdp"]),
    "stage3_4": (4, ["strategy=deepspeed_stage_3"]),
    "hybrid4": (4, ["strategy=zero", "strategy.stage=3", "strategy.shard=2"]),
    "experts2": (2, ["strategy=ddp", EXPERTS]),
    "experts4": (4, ["strategy=fsdp", EXPERTS]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run of five steps for each way to distribute it, and the experiment."""
    folder = tmp_path_factory.mktemp("ranks")
    make_tiny(folder)
    for name, (ranks, settings) in WAYS.items():
        train(folder, name, *SHORT, "train.steps=5", *settings, ranks=ranks)
    return folder


@pytest.mark.parametrize("name", [name for name in WAYS if name != "single"])
def test_a_run_equals_that_of_one_rank(folder, name):
    one, many = folder / "runs/single", folder / "runs" / name
    assert difference(one, many) < 1e-5
    for key in ["data_hash", "init_hash", "initial_hashes", "documents_hash", "validation_hash"]:
        assert provenance(one)[key] == provenance(many)[key], key
    assert provenance(many)["ranks"] == WAYS[name][0]
    assert {path.name for path in many.glob("log*.txt")} == \
        {"log.txt"} | {f"log-rank-{rank}.txt" for rank in range(1, WAYS[name][0])}
    assert json.loads((many / "status.json").read_text())["state"] == "finished"


@pytest.mark.parametrize("name", ["ddp2", "hybrid4", "experts4"])
def test_the_same_run_twice_is_bit_identical(folder, name):
    ranks, settings = WAYS[name]
    train(folder, f"{name}-again", *SHORT, "train.steps=5", *settings, ranks=ranks)
    assert losses(folder / "runs" / name) == losses(folder / f"runs/{name}-again")
    assert exported(folder, f"{name}-again") == exported(folder, name)


def exported(folder, name):
    """Return the bytes of the files that `dsv3 export` writes, by name."""
    output = folder / f"export-{name}"
    if not output.exists():
        run(folder, BUILD / "bin/dsv3", "export", folder / "runs" / name, output)
    files = {path.name: path.read_bytes() for path in output.iterdir()}
    assert any(name.endswith(".safetensors") for name in files)
    return files


PAIRS = list(itertools.permutations(WAYS, 2))
# Every way saves for two others, and loads from two others.
NAMES = list(WAYS)
SOME = [(NAMES[i], NAMES[(i + shift) % len(NAMES)]) for i in range(len(NAMES)) for shift in (3, 4)]


@pytest.mark.parametrize("saved, loaded", PAIRS if FULL else SOME)
def test_any_ranks_continue_the_run_of_any_others(folder, saved, loaded, tmp_path):
    ranks, settings = WAYS[loaded]
    copy = folder / f"runs/{saved}-{loaded}"
    run(folder, "cp", "-a", folder / "runs" / saved, copy)
    if EXPERTS not in settings:
        settings = [*settings, "model.feed_forward.1.expert_parallel=1"]
    resume(folder, copy.name, "train.steps=9", *settings, ranks=ranks)
    own = folder / f"runs/{saved}-on"
    if not own.exists():
        run(folder, "cp", "-a", folder / "runs" / saved, own)
        resume(folder, own.name, "train.steps=9", ranks=WAYS[saved][0])
    assert difference(own, copy, first=6) < 1e-6
    assert provenance(own)["data_hash"] == provenance(copy)["data_hash"]


@pytest.mark.parametrize("name", WAYS)
def test_a_model_that_is_loaded_and_saved_is_exported_unchanged(folder, name):
    ranks, settings = WAYS[name]
    still = ["optimizer.0.lr=0", "optimizer.1.lr=0", "train.steps=1"]
    train(folder, f"{name}-still", "--from", "runs/single", *SHORT, *still, *settings, ranks=ranks)
    # The router's bias changes in every step.
    assert {key: value for key, value in weights(folder, f"{name}-still").items() if "bias" not in key} == \
        {key: value for key, value in weights(folder, "single").items() if "bias" not in key}
    assert provenance(folder / f"runs/{name}-still")["init_hash"] == \
        provenance(folder / "runs/single-still")["init_hash"]


def weights(folder, name):
    """Return the bytes of every exported tensor."""
    tensors = {}
    for content in exported(folder, name).values():
        if content[:1] in b"{[" or len(content) < 8:
            continue
        size = int.from_bytes(content[:8], "little")
        if size > len(content):
            continue
        for key, entry in json.loads(content[8:8 + size]).items():
            if key != "__metadata__":
                begin, end = entry["data_offsets"]
                tensors[key] = content[8 + size + begin:8 + size + end]
    assert len(tensors) > 10
    return tensors


def test_a_chosen_strategy_is_written_to_the_run(folder):
    err = train(folder, "auto", *SHORT, "train.steps=2", "--strategy", "auto", ranks=2)
    assert "strategy auto, " in err and "ddp: " in err and "zero stage: 3: " in err and "(chosen)" in err
    assert "plugin: ddp" in (folder / "runs/auto/config.yaml").read_text()


def test_a_rank_whose_experts_get_no_token_takes_part(folder):
    # With equal scores, every token chooses the first two of four experts.
    settings = [*SHORT, "train.steps=3", "model.init.std=0", "optimizer.0.lr=0", "optimizer.1.lr=0",
                "model.feed_forward.1.bias_rate=0", "model.feed_forward.1.balance_alpha=0"]
    train(folder, "idle", *settings, EXPERTS, "strategy=ddp", ranks=2)
    train(folder, "idle-one", *settings)
    assert difference(folder / "runs/idle", folder / "runs/idle-one") < 1e-5
    assert metrics(folder / "runs/idle")[3]["moe/dead_experts"] == 2 * 3  # of three layers


def test_metrics_are_those_of_all_ranks(folder):
    many = metrics(folder / "runs/ddp2")[5]
    one = metrics(folder / "runs/single")[5]
    assert many["tokens"] == one["tokens"]
    assert many.keys() == one.keys()
