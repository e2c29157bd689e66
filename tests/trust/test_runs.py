"""Runs travel to other folders and machines, can be extended and branched, and print commands that work."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess

import pytest
import yaml

from stored import dsv3, prefix, tiny_run
from support import BUILD, RUN, dsv3_run, last_checkpoint, losses, make_tiny, metrics, tensors
from test_paths import small_bpe

WSD = ["schedule={plugin: wsd, warmup: 2, decay: 0.5}", "validation.every=4", "checkpoint.every=4", "checkpoint.keep_best=50"]


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A run with a BPE tokenizer, moved away from its text and tokenizer, which no longer exist."""
    home, away = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("away")
    make_tiny(home)
    (home / "in").mkdir()
    small_bpe(home / "in/tok.json")
    shutil.copy(home / "text.txt", home / "in/text.txt")
    tiny_run(home, "tokenizer={plugin: bpe, file: in/tok.json}", "data.path=in/text.txt")
    shutil.move(home / "runs/r", away / "r")
    shutil.move(home / "in/text.txt", away / "text.txt")
    shutil.rmtree(home)
    return away


@pytest.mark.promise("travelling-runs")
@pytest.mark.parametrize("what", ["r", "r/checkpoints/step-4"])
def test_a_moved_run_generates(moved, what):
    done = dsv3("generate", moved / what, "--prompt", "the", "--tokens", "3", cwd="/")
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.promise("travelling-runs")
def test_a_moved_run_is_evaluated(moved, tmp_path):
    done = dsv3("eval", moved / "r", "--text", moved / "text.txt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.promise("travelling-runs")
def test_a_moved_run_resumes_with_its_text_elsewhere(moved, tmp_path):
    shutil.copytree(moved / "r", tmp_path / "other/r")
    done = dsv3_run("--run_id", "r", "--output", "other", cwd=tmp_path, check=4)
    assert "no such" in done.stderr and "text.txt" in done.stderr
    dsv3_run("--run_id", "r", "--output", "other", "train.steps=6", f"data.path={moved}/text.txt", cwd=tmp_path)
    assert max(metrics(tmp_path / "other/r")) == 6
    # The path is stored, and so it is not needed again.
    dsv3_run("--run_id", "r", "--output", "other", "train.steps=7", cwd=tmp_path)


@pytest.mark.promise("travelling-runs")
def test_paths_are_resolved_when_the_run_starts(tmp_path):
    make_tiny(tmp_path)
    (tmp_path / "deep/down").mkdir(parents=True)
    dsv3_run("../../tiny.yaml", "data.path=../../text.txt", "train.steps=4", "schedule.warmup=0", "validation.every=2", "checkpoint.every=2",
             "--run_name", "r", "--output", "../runs", cwd=tmp_path / "deep/down")
    shutil.rmtree(tmp_path / "deep/runs/r/checkpoints/step-4")
    dsv3_run("--run_id", "r", "--output", tmp_path / "deep/runs", cwd="/")


def stopped(folder, *arguments):
    """Start a run, stop it, and return what it printed."""
    process = subprocess.Popen([RUN, *map(str, arguments)], cwd=folder, stderr=subprocess.PIPE, text=True)
    text = ""
    while "step 2/" not in text:
        text += process.stderr.readline()
        assert process.poll() is None, text
    process.send_signal(signal.SIGTERM)
    errors = text + process.communicate(timeout=60)[1]
    assert process.returncode == 75, errors
    return errors


@pytest.mark.promise("hints")
@pytest.mark.parametrize("output", ["runs", "my runs", "/tmp"])
def test_the_command_to_resume_works(tmp_path, output):
    make_tiny(tmp_path)
    output = tmp_path / "abs" if output == "/tmp" else output
    prefix(tmp_path / "plug in", "good")
    errors = stopped(tmp_path, "tiny.yaml", "schedule={plugin: halving}", "--plugin-path", "plug in", "--output", output,
                     "--run_name", "r", "train.steps=100000", "validation.every=0")
    command = re.search(r"resume with (.*)", errors)[1]
    path = f"{BUILD / 'bin'}:{os.environ['PATH']}"
    process = subprocess.Popen(["bash", "-c", "exec " + command], cwd=tmp_path, env={**os.environ, "PATH": path},
                               stderr=subprocess.PIPE, text=True)
    while "resuming from step" not in (line := process.stderr.readline()):
        assert line
    process.kill()
    process.communicate()


@pytest.mark.promise("hints")
@pytest.mark.parametrize("command", ["generate", "eval", "compare"])
def test_a_run_says_which_plugin_path_it_needs(tmp_path, command):
    prefix(tmp_path / "plug in", "good")
    tiny_run(tmp_path, "schedule={plugin: halving}", "--plugin-path", "plug in")
    arguments = {"generate": ["runs/r", "--prompt", "a", "--tokens", "2"], "eval": ["runs/r"], "compare": ["runs/r", "runs/r"]}[command]
    failed = dsv3(command, *arguments, cwd=tmp_path)
    assert failed.returncode in (2, 3), failed.stderr
    hint = re.search(r"--plugin-path '.+", failed.stderr)
    assert hint, failed.stderr
    done = dsv3(command, *arguments, *shlex.split(hint[0]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.promise("hints")
def test_the_command_for_an_existing_run_works(tmp_path):
    tiny_run(tmp_path, "--output", "my runs")
    failed = dsv3_run("tiny.yaml", "--run_name", "r", "--output", "my runs", cwd=tmp_path, check=2)
    command = re.search(r"--run_id r --output '.*?'", failed.stderr)
    assert command, failed.stderr
    done = subprocess.run(["bash", "-c", f"{RUN} {command[0]}"], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def up_to(run, step):
    return {number: row for number, row in losses(run).items() if number <= step}


@pytest.mark.promise("extended-runs")
@pytest.mark.parametrize("schedule", [["schedule={plugin: constant, warmup: 2}"], WSD[:1]])
def test_a_run_extended_twice(tmp_path, schedule):
    make_tiny(tmp_path)
    common = ["tiny.yaml", *schedule, *WSD[1:]]
    dsv3_run(*common, "train.steps=16", "--run_name", "whole", cwd=tmp_path)
    dsv3_run(*common, "train.steps=8", "--run_name", "grown", cwd=tmp_path)
    dsv3_run("--run_id", "grown", "train.steps=12", cwd=tmp_path)
    dsv3_run("--run_id", "grown", "train.steps=16", cwd=tmp_path)
    grown, whole = tmp_path / "runs/grown", tmp_path / "runs/whole"
    constant = "constant" in schedule[0]
    last = 16 if constant else 4  # wsd of 8 steps begins to decay after step 4
    assert up_to(grown, last) == up_to(whole, last) and max(losses(grown)) == 16
    if constant:
        assert tensors(last_checkpoint(grown)) == tensors(last_checkpoint(whole))
    resumes = json.loads((grown / "provenance.json").read_text())["resumes"]
    assert [r["changes"][0]["after"] for r in resumes] == ["12", "16"]
    assert yaml.safe_load((grown / "config.yaml").read_text())["train"]["steps"] == 16


@pytest.mark.promise("extended-runs")
@pytest.mark.parametrize("setting, message", [("train.steps=3", "a run can only become longer"), ("train.seed=3", "train.seed"),
                                              ("schedule.min_ratio=0.5", "schedule.min_ratio"), ("train.batch=8", "train.batch")])
def test_what_defines_the_run_does_not_change(tmp_path, setting, message):
    tiny_run(tmp_path)
    before = (tmp_path / "runs/r/config.yaml").read_text()
    failed = dsv3_run("--run_id", "r", setting, cwd=tmp_path, check=2)
    assert message in failed.stderr and f"--branch {tmp_path}/runs/r" in failed.stderr
    assert (tmp_path / "runs/r/config.yaml").read_text() == before


@pytest.mark.promise("extended-runs")
def test_how_a_run_computes_may_change(tmp_path):
    tiny_run(tmp_path)
    changes = ["train.steps=6", "train.micro_batch=2", "train.threads=2", "train.log_every=3", "checkpoint.every=1", "tracker=[]",
               "samples.every=5"]
    dsv3_run("--run_id", "r", *changes, cwd=tmp_path)
    [resume] = json.loads((tmp_path / "runs/r/provenance.json").read_text())["resumes"]
    assert {change["key"] for change in resume["changes"]} >= {"train.steps", "train.micro_batch", "train.threads"}


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trunk")
    make_tiny(folder)
    dsv3_run("tiny.yaml", *WSD, "train.steps=24", "--run_name", "whole", cwd=folder)
    return folder


@pytest.mark.promise("branches")
@pytest.mark.parametrize("step", [4, 8, 12])
def test_a_branch_equals_its_trunk_until_it_changes(trunk, step):
    """The trunk decays from step 12 on, the branch from the middle of its own length on."""
    same, shorter = f"same-{step}", f"shorter-{step}"
    dsv3_run("--branch", f"whole@{step}", "--run_name", same, cwd=trunk)
    runs, whole = trunk / "runs", losses(trunk / "runs/whole")
    assert losses(runs / same) == {s: row for s, row in whole.items() if s > step}
    assert tensors(last_checkpoint(runs / same)) == tensors(last_checkpoint(runs / "whole"))
    dsv3_run("--branch", f"whole@{step}", "train.steps=20", "--run_name", shorter, cwd=trunk)
    changed = 10  # 20 steps decay after step 10, 24 after step 12
    branch = losses(runs / shorter)
    assert {s: r for s, r in branch.items() if s <= changed} == {s: r for s, r in whole.items() if step < s <= changed}
    assert max(branch) == 20 and branch[20]["train/loss"] != whole[20]["train/loss"]
    origin = json.loads((runs / shorter / "provenance.json").read_text())["branched_from"]
    assert origin["step"] == step and pathlib.Path(origin["run"]) == runs / "whole"


@pytest.mark.promise("branches")
def test_a_branch_resumes_by_itself(trunk):
    dsv3_run("--branch", "whole@8", "train.steps=9", "--run_name", "cut", cwd=trunk)
    shutil.rmtree(trunk / "runs/cut/checkpoints/step-9")
    resumed = dsv3_run("--run_id", "cut", cwd=trunk)
    assert "resuming from step 8" in resumed.stderr


@pytest.mark.promise("branches")
@pytest.mark.parametrize("branch, message", [("whole@5", "it has "), ("whole@x", "no checkpoint of step 'x'"), ("nothing", "not found"),
                                             ("whole@24", "raise train.steps"), ("@4", "not found")])
def test_a_branch_that_does_not_exist(trunk, branch, message):
    failed = dsv3_run("--branch", branch, "--run_name", "none", cwd=trunk, check=2)
    assert message in failed.stderr and not (trunk / "runs/none").exists()


@pytest.mark.promise("branches")
def test_an_existing_run_is_resumed_only_as_the_branch_that_it_is(trunk):
    words = ["--branch", "whole@4", "--run_name"]
    dsv3_run(*words, "repeated", cwd=trunk)
    dsv3_run(*words, "repeated", "--resume", "auto", cwd=trunk)
    for branch, name in (("whole@4", "whole"), ("whole@8", "repeated"), ("repeated", "repeated")):
        done = dsv3_run("--branch", branch, "--run_name", name, "--resume", "auto", cwd=trunk, check=2)
        assert f"was not branched from {branch}" in done.stderr


@pytest.mark.promise("branches")
def test_a_branch_warns_of_validation_on_trained_documents(trunk):
    done = dsv3_run("--branch", "whole@4", "--run_name", "shared", "validation.share=0.5", cwd=trunk)
    assert "may be in the validation split" in done.stderr and "validation.share changes from 0.1 to 0.5" in done.stderr
