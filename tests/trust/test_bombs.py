"""Files and settings that ask for absurd amounts of time or memory."""

import json
import os
import resource
import struct
import subprocess
import time

import pytest

from support import BUILD, RUN, dsv3_run, make_tiny

MEMORY = 8 << 30  # of address space; LibTorch alone maps about 2 GiB


def limited(program, *arguments, cwd, check):
    """Run a program with limited address space and assert its exit code. Return its output and its peak memory in MiB."""
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    before = time.monotonic()
    done = subprocess.run([BUILD / "bin" / program, *map(str, arguments)], cwd=cwd, text=True, capture_output=True,
                          timeout=60, preexec_fn=limit)
    assert done.returncode == check, f"exit {done.returncode}, not {check}:\n{done.stdout}\n{done.stderr}"
    assert time.monotonic() - before < 30
    return done.stderr


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a run `runs/a` and its export `hf`."""
    folder = tmp_path_factory.mktemp("exported")
    make_tiny(folder)
    dsv3_run("tiny.yaml", "train.steps=5", "--run_name", "a", cwd=folder)
    subprocess.run([BUILD / "bin/dsv3", "export", "runs/a", "hf"], cwd=folder, check=True, capture_output=True)
    return folder


def copy_of(exported, folder):
    subprocess.run(["cp", "-r", exported / "hf", folder / "hf"], check=True)
    return folder / "hf"


def safetensors(names, extra=""):
    """Return a file of empty tensors with these names."""
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(f'"{name}":{entry}' for name in names) + extra + "}").encode()
    return struct.pack("<Q", len(header)) + header


# safetensors headers


@pytest.mark.promise("safetensors-header")
@pytest.mark.parametrize("names", [[f"t{i}" for i in range(100_000)],
                                   [f"model.layers.{99_999 - i}.self_attn.q_proj.weight" for i in range(100_000)],
                                   [rf"m\u006fdel.layers.{i}.mlp.experts.7.up_proj.weight" for i in range(100_000)]])
def test_a_header_of_100000_tensors_takes_less_than_a_second(exported, tmp_path, names):
    weights = copy_of(exported, tmp_path) / "model.safetensors"
    command = [BUILD / "bin/dsv3", "import", "hf", "imported"]
    seconds = []
    for content in (safetensors(names[:1]), safetensors(names)):
        weights.write_bytes(content)
        before = os.times()
        done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=60)
        assert done.returncode == 5 and "lacks the tensors" in done.stderr, done.stderr
        after = os.times()  # processor time, which does not depend on other processes
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert seconds[1] - seconds[0] < 1, seconds


@pytest.mark.promise("safetensors-header")
def test_a_duplicate_among_many_tensors_is_rejected(exported, tmp_path):
    (copy_of(exported, tmp_path) / "model.safetensors").write_bytes(safetensors([f"t{i}" for i in range(50_000)] + ["t777"]))
    assert "duplicate key \"t777\"" in limited("dsv3", "import", "hf", "imported", cwd=tmp_path, check=5)


@pytest.mark.promise("safetensors-header")
def test_an_index_of_a_million_tensors_is_read(exported, tmp_path):
    hf = copy_of(exported, tmp_path)
    index = {"weight_map": {f"tensor.{i}": "model.safetensors" for i in range(1_000_000)}}
    (hf / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "index" in limited("dsv3", "import", "hf", "imported", cwd=tmp_path, check=5)


# Counts


@pytest.mark.promise("counts")
@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "kv_lora_rank",
                                 "qk_nope_head_dim", "v_head_dim", "n_routed_experts", "n_shared_experts",
                                 "moe_intermediate_size", "num_nextn_predict_layers", "max_position_embeddings", "n_group"])
@pytest.mark.parametrize("value", [10**9, 2**62])
def test_absurd_counts_in_config_json(exported, tmp_path, key, value):
    hf = copy_of(exported, tmp_path)
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(config | {key: value}))
    assert "config.json" in limited("dsv3", "import", "hf", "imported", cwd=tmp_path, check=2)


@pytest.mark.promise("counts")
def test_many_experts_in_many_layers(exported, tmp_path):
    hf = copy_of(exported, tmp_path)
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9999, "n_routed_experts": 16384}))
    assert "n_routed_experts" in limited("dsv3", "import", "hf", "imported", cwd=tmp_path, check=2)
    assert "n_routed_experts" in limited("dsv3", "eval", "hf", "--text", "x", cwd=tmp_path, check=2)


SETTINGS = ["model.hidden", "model.layers", "model.vocab", "model.attention.heads", "model.attention.kv_lora_rank",
            "model.attention.qk_nope_dim", "model.attention.v_dim", "model.feed_forward.1.routed", "model.feed_forward.1.top_k",
            "model.feed_forward.1.shared", "model.feed_forward.1.hidden", "model.feed_forward.0.hidden", "model.mtp.depth",
            "train.batch", "train.micro_batch", "train.sequence", "train.threads", "samples.tokens", "checkpoint.keep_best"]


@pytest.mark.promise("counts")
@pytest.mark.parametrize("key", SETTINGS)
def test_absurd_settings(tmp_path, key):
    make_tiny(tmp_path)
    for mode, value in (("--check", 10**9), ("--dry-run", 10**12)):
        error = limited("dsv3-run", "tiny.yaml", f"{key}={value}", mode, cwd=tmp_path, check=2)
        assert key.split(".")[-1] in error and "at most" in error


@pytest.mark.promise("counts")
@pytest.mark.parametrize("settings", [["model.layers=1000"], ["model.feed_forward.1.routed=16384"],
                                      ["model.hidden=1048576", "model.attention.heads=65536", "model.attention.v_dim=65536"]])
def test_the_largest_settings_are_checked_in_little_memory(tmp_path, settings):
    make_tiny(tmp_path)
    for mode in ("--check", "--dry-run"):
        done = subprocess.run([RUN, "tiny.yaml", *settings, mode], cwd=tmp_path, text=True, capture_output=True, timeout=120,
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)))
        assert done.returncode in (0, 2, 4, 8), f"exit {done.returncode}:\n{done.stderr}"


@pytest.mark.promise("counts")
def test_deeply_nested_json(exported, tmp_path):
    hf = copy_of(exported, tmp_path)
    (hf / "config.json").write_text('{"a":' * 200_000 + "1" + "}" * 200_000)
    assert "nested deeper than 64" in limited("dsv3", "import", "hf", "imported", cwd=tmp_path, check=5)
