"""Checkpoints in pieces, as several ranks save them: every reader must read the same tensors as from one file. The pieces
are cut here, by the description of the format in docs/checkpoints.md."""

import hashlib
import json
import shutil
import struct
import subprocess

import pytest

from support import BUILD, dsv3_run, last_checkpoint, make_tiny, tensors

RANKS = 3


def write_tensors(file, content):
    """Write a safetensors file of {name: (dtype, shape, bytes)}."""
    header, offset = {}, 0
    for name, (dtype, shape, data) in content.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in content.values()))


def cut(checkpoint):
    """Rewrite a checkpoint as RANKS ranks would save it. Optimizer state for matrices has owners; all other tensors of more
    than one element are cut in unequal pieces, and scalar state is repeated for each piece."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    files = [{} for _ in range(RANKS)]
    pieces = {}
    for number, (name, (dtype, shape, data)) in enumerate(tensors(checkpoint).items()):
        count = len(data) // {"F32": 4, "I64": 8}[dtype]
        size = len(data) // max(count, 1)
        if name.startswith("optimizer/momentum") or name.startswith("buffer/") or count < 2:
            files[number % RANKS][name] = (dtype, shape, data)
            continue
        bounds = sorted({0, count // 5, count // 2, count})
        pieces[name] = {"shape": shape, "pieces": []}
        for part, (begin, end) in enumerate(zip(bounds, bounds[1:])):
            rank = (number + part) % RANKS
            files[rank][f"{name}/{begin}"] = (dtype, [end - begin], data[begin * size:end * size])
            pieces[name]["pieces"].append([f"rank-{rank:05}.safetensors", begin, end])
    manifest["files"] = [entry for entry in manifest["files"] if not entry["name"].startswith("rank-")]
    for rank, content in enumerate(files):
        file = checkpoint / f"rank-{rank:05}.safetensors"
        write_tensors(file, content)
        data = file.read_bytes()
        manifest["files"].append({"name": file.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    assert len(pieces) > 20 and all(files)
    manifest |= {"format": 2, "pieces": pieces}
    del manifest["sha256"]
    compact = json.dumps(manifest, separators=(",", ":"), ensure_ascii=False, sort_keys=True)
    manifest["sha256"] = hashlib.sha256(compact.encode()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the run `whole`, and `cut` with the same checkpoint in pieces."""
    folder = tmp_path_factory.mktemp("pieces")
    make_tiny(folder)
    dsv3_run("tiny.yaml", "train.steps=4", "validation.every=0", "checkpoint.every=0", "schedule.warmup=0", "--run_name", "whole", cwd=folder)
    shutil.copytree(folder / "runs/whole", folder / "runs/cut")
    cut(last_checkpoint(folder / "runs/cut"))
    return folder


def dsv3(folder, *arguments):
    done = subprocess.run([BUILD / "bin/dsv3", *map(str, arguments)], cwd=folder, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def content(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_export_writes_the_same_bytes(folder):
    for run in ("whole", "cut"):
        dsv3(folder, "export", f"runs/{run}", f"hf-{run}")
    assert (folder / "hf-whole/model.safetensors").stat().st_size > 100_000
    assert content(folder / "hf-whole") == content(folder / "hf-cut")


def test_generate_and_logits_read_pieces(folder):
    (folder / "ids.json").write_text("[[1, 2, 3, 4, 5]]")
    texts = []
    for run in ("whole", "cut"):
        texts.append(dsv3(folder, "generate", f"runs/{run}", "--prompt", "the quick", "--tokens", "20"))
        dsv3(folder, "logits", f"runs/{run}", "--tokens", "ids.json", "--output", f"{run}.safetensors")
    assert texts[0] == texts[1]
    assert (folder / "whole.safetensors").read_bytes() == (folder / "cut.safetensors").read_bytes()


@pytest.mark.parametrize("flags", [
    ["tiny.yaml", "--from", "runs/RUN"], ["--branch", "runs/RUN"], ["--run_id", "RUN"]], ids=["from", "branch", "resume"])
def test_training_continues_from_pieces(folder, flags):
    results = []
    for run in ("whole", "cut"):
        words = [word.replace("RUN", run) for word in flags]
        name = run if "--run_id" in flags else f"{flags[-2].strip('-')}-{run}"
        new = [] if "--run_id" in flags else ["--run_name", name]
        dsv3_run(*words, *new, "train.steps=6", "validation.every=0", "checkpoint.every=0", "schedule.warmup=0", cwd=folder)
        results.append(tensors(last_checkpoint(folder / "runs" / name)))
    assert results[0] == results[1]
