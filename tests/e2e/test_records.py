"""What a run records in events.jsonl, with tags, and what dsv3 sync sends later."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from support import BUILD, RUN, dsv3_run, make_tiny

DSV3 = BUILD / "bin/dsv3"
SAMPLES = ["samples.every=10", "samples.tokens=8"]


def records(run):
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def of_type(run, name):
    return [record for record in records(run) if record["type"] == name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    make_tiny(folder)
    with (folder / "tiny.yaml").open("a") as file:
        file.write("tags: {team: language, mlflow: {note: {content: first}}}\n")
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    dsv3_run("tiny.yaml", "--run_name", "whole", *SAMPLES, "--tag", "purpose=a test", "--tag", "team=vision", cwd=folder)
    return folder / "runs/whole"


def test_a_run_records_everything_but_metrics(finished):
    parameters, = of_type(finished, "parameters")
    assert parameters["step"] == 0
    assert parameters["values"]["optimizer.1.lr"] == "0.02" and parameters["values"]["name"] == "tiny"
    assert not any(key.startswith("tags.") for key in parameters["values"])
    tags, = of_type(finished, "tags")
    assert tags["values"] == {"team": "vision", "mlflow.note.content": "first", "purpose": "a test"}
    provenance = json.loads((finished / "provenance.json").read_text())
    assert [(d["context"], d["name"], d["digest"]) for d in of_type(finished, "dataset")] == [
        ("training", "text", provenance["documents_hash"]), ("validation", "text", provenance["validation_hash"])]
    assert [record["name"] for record in of_type(finished, "state")] == ["running", "finished"]
    files = [record["path"] for record in of_type(finished, "file")]
    assert {"config.yaml", "experiment.yaml", "provenance.json", "log.txt", "metrics.jsonl", "events.jsonl"} <= set(files)
    assert all((finished / path).is_file() for path in files)
    assert len(provenance["uid"]) == 32


def spans_by_id(run):
    """The last span of each id, which replaces earlier ones."""
    return {record["id"]: record for record in of_type(run, "span")}


def test_traces_time_the_parts_of_every_nth_step(folder):
    """A step that a resumed run repeats keeps its spans' ids."""
    settings = ["train.trace_every=5", "checkpoint.every=10", "checkpoint.keep_best=3", "train.steps=20"]
    dsv3_run("tiny.yaml", "--run_name", "traced", *settings, cwd=folder)
    run = folder / "runs/traced"
    first = spans_by_id(run)
    assert len(first) == len(of_type(run, "span")) and len({span["trace"] for span in first.values()}) == 3
    for span in first.values():
        assert len(span["trace"]) == 32 and len(span["id"]) == 16 and span["start"] <= span["end"]
        if span["parent"]:
            parent = first[span["parent"]]
            assert parent["trace"] == span["trace"]
            assert parent["start"] <= span["start"] + 1e-5 and span["end"] <= parent["end"] + 1e-5
    roots = [span for span in first.values() if not span["parent"]]
    assert sorted(span["name"] for span in roots) == ["data", "eval", "train"]
    assert {span["attributes"]["status"] for span in roots} == {"finished"}
    steps = [span["step"] for span in first.values() if span["name"] == "step"]
    assert steps == [5, 10, 15, 20]
    shutil.rmtree(run / "checkpoints/step-20")
    dsv3_run("--run_id", "traced", cwd=folder)
    assert set(spans_by_id(run)) == set(first)
    repeated = [span["step"] for span in of_type(run, "span") if span["name"] == "step"]
    assert repeated == [5, 10, 15, 20, 15, 20]


def test_a_trace_says_what_failed(folder):
    dsv3_run("tiny.yaml", "--run_name", "failed", "train.trace_every=1", "optimizer.0.lr=1e30", "train.steps=9", cwd=folder, check=7)
    failed = [span["name"] for span in of_type(folder / "runs/failed", "span") if span["attributes"].get("status") == "failed"]
    assert {"step", "train", "data", "eval"} <= set(failed)


def test_no_traces_without_an_interval(folder):
    dsv3_run("tiny.yaml", "--run_name", "untraced", "train.trace_every=0", "train.steps=4", "schedule.warmup=1", cwd=folder)
    assert not of_type(folder / "runs/untraced", "span")


def test_samples_and_checkpoints_are_recorded_with_their_steps(finished):
    samples = of_type(finished, "samples")
    assert [record["step"] for record in samples] == [10, 20, 30]
    for record in samples:
        text = (finished / f"samples/step-{record['step']:07}.txt").read_text()
        assert text == "---\n".join(s["prompt"] + s["text"] + "\n" for s in record["samples"])
    saved = of_type(finished, "checkpoint")
    assert [record["step"] for record in saved] == list(range(3, 31, 3))
    removed = {record["path"] for record in of_type(finished, "checkpoint_removed")}
    left = {f"checkpoints/{path.name}" for path in (finished / "checkpoints").iterdir()}
    assert {record["path"] for record in saved} == removed | left and not removed & left


def test_a_resumed_run_repeats_nothing(folder):
    process = subprocess.Popen([RUN, "tiny.yaml", "--run_name", "killed", *SAMPLES, "train.steps=600", "schedule.warmup=5"],
                               cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = folder / "runs/killed"
    while not (run / "events.jsonl").exists() or not any(r["step"] >= 30 for r in of_type(run, "samples")):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    step = max(int(path.name.split("-")[1]) for path in (run / "checkpoints").glob("step-*") if path.suffix == "")
    dsv3_run("--run_id", "killed", "--tag", "team=audio", "train.steps=600", "checkpoint.every=1000", "samples.every=500",
             cwd=folder, timeout=300)
    for name in "samples", "checkpoint":
        steps = [record["step"] for record in of_type(run, name)]
        assert steps == sorted(set(steps)), name
    assert max(record["step"] for record in of_type(run, "checkpoint")) == 600
    resumed = next(record for record in of_type(run, "state") if record["name"] == "resumed")
    assert resumed["step"] == step
    changed = of_type(run, "parameters")[1]
    assert changed["values"] == {"checkpoint.every": "1000", "samples.every": "500"}
    assert [record["values"]["team"] for record in of_type(run, "tags")] == ["language", "audio"]


def test_environment_variables_in_tags_are_not_recorded(folder, monkeypatch):
    monkeypatch.setenv("CANARY", "canary-in-a-tag")
    dsv3_run("tiny.yaml", "--run_name", "canary", "tags.user=${env:CANARY}", "train.steps=2", "schedule.warmup=1", cwd=folder)
    run = folder / "runs/canary"
    assert of_type(run, "tags")[0]["values"]["user"] == "${env:CANARY}"
    for path in run.rglob("*"):
        assert path.is_dir() or b"canary-in-a-tag" not in path.read_bytes(), path


def test_other_programs_do_not_get_secrets(folder, tmp_path, monkeypatch):
    (tmp_path / "git").write_text(f"#!/bin/sh\nenv >> {tmp_path}/environment\nexit 1\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "DATABRICKS_CLIENT_SECRET":
        monkeypatch.setenv(name, "canary-of-a-child")
    dsv3_run("tiny.yaml", "--run_name", "child", "train.steps=2", "schedule.warmup=1", cwd=folder)
    seen = (tmp_path / "environment").read_text()
    assert "PATH=" in seen and "canary-of-a-child" not in seen


@pytest.mark.parametrize("tag, message", [
    ("team", "expected NAME=VALUE"), ("=x", "expected NAME=VALUE"), ("a b=x", "invalid name of a tag: 'a b'")])
def test_invalid_tags(folder, tag, message):
    assert message in dsv3_run("tiny.yaml", "--tag", tag, "--check", cwd=folder, check=2).stderr


def sync(*arguments, cwd, check=0):
    done = subprocess.run([DSV3, "sync", *map(str, arguments)], cwd=cwd, text=True, capture_output=True, timeout=60)
    assert done.returncode == check, (done.stdout, done.stderr)
    return done.stdout


def test_sync_says_that_a_run_has_no_tracker(folder):
    dsv3_run("tiny.yaml", "--run_name", "alone", "tracker=[]", "train.steps=2", "schedule.warmup=1", cwd=folder)
    assert sync("runs/alone", cwd=folder) == "runs/alone: the run has no tracker, so there is nowhere to send it\n"


def test_reserved_tags_are_rejected(folder):
    done = dsv3_run("tiny.yaml", "--run_name", "reserved", "--tag", "dsv3.run_uid=x", cwd=folder, check=2)
    assert "tags that start with 'dsv3.' are reserved" in done.stderr
    assert not (folder / "runs/reserved").exists()


def test_a_tag_that_is_not_text_is_rejected(folder):
    done = subprocess.run([RUN, "tiny.yaml", "--tag", b"team=\xff"], cwd=folder, capture_output=True, timeout=60)
    assert done.returncode == 2 and b"is not valid UTF-8" in done.stderr, done.stderr


def test_sync_sends_what_is_left(folder, finished):
    assert sync("runs/whole", cwd=folder) == "runs/whole: nothing to send\n"
    offset = finished / "trackers/csv-0.json"
    table = (finished / "metrics.csv").read_text()
    offset.write_text('{"lines": 7}')
    assert sync("runs/whole", cwd=folder) == "runs/whole: everything sent\n"
    assert (finished / "metrics.csv").read_text() == table
    assert sync("--all", cwd=folder).count("runs/whole: nothing to send\n") == 1


def test_sync_names_folders_that_are_no_runs(folder):
    assert "is not a run folder" in sync("runs/missing", cwd=folder, check=2)
    done = subprocess.run([DSV3, "sync"], cwd=folder, text=True, capture_output=True)
    assert done.returncode == 2 and "pass the folders of runs, or --all" in done.stderr
    done = subprocess.run([DSV3, "sync", "--all", "--output", "missing"], cwd=folder, text=True, capture_output=True)
    assert done.returncode == 2 and "pass the folder that contains your runs with --output" in done.stderr
