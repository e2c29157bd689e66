"""What a run has recorded is not lost or contradicted silently."""

import json
import os
import re
import shutil
import subprocess

import pytest

from stored import dsv3, edit, reseal, tiny_run
from support import RUN, dsv3_run, last_checkpoint, losses, make_tiny, metrics


@pytest.fixture
def folder(tmp_path):
    """A folder with a finished run, runs/r."""
    tiny_run(tmp_path, "model.mtp.depth=0")
    return tmp_path


LOST = {
    "all metrics": (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl ends at step 0"),
    "the last metrics": (lambda run: edit(run / "metrics.jsonl", *[(line, "") for line in lines(run)[-2:]]),
                         "metrics.jsonl ends at step 3"),
    "a line of metrics": (lambda run: edit(run / "metrics.jsonl", (lines(run)[1][:30], "\0" * 30)),
                          "metrics.jsonl:2: not a line of metrics"),
    "the origin": (lambda run: (run / "provenance.json").unlink(), "provenance.json is missing"),
}


def lines(run):
    return (run / "metrics.jsonl").read_text().splitlines(keepends=True)


@pytest.mark.promise("lost-records")
@pytest.mark.parametrize("case", LOST)
def test_a_resumed_run_warns_of_lost_records(folder, case):
    lose, warning = LOST[case]
    assert " warning " not in dsv3_run("--run_id", "r", "train.steps=5", cwd=folder).stderr
    lose(folder / "runs/r")
    assert warning in dsv3_run("--run_id", "r", "train.steps=6", cwd=folder).stderr
    assert "resumes" in (folder / "runs/r/provenance.json").read_text() or case == "the origin"


@pytest.mark.promise("lost-records")
@pytest.mark.parametrize("content", ["", "[]", '{"resumes": 3}', '{"time": '])
def test_a_damaged_origin_is_not_overwritten(folder, content):
    (folder / "runs/r/provenance.json").write_text(content)
    done = dsv3_run("--run_id", "r", "train.steps=6", cwd=folder, check=5)
    assert "provenance.json" in done.stderr and "restore it from a copy, or remove it" in done.stderr
    assert (folder / "runs/r/provenance.json").read_text() == content


@pytest.mark.promise("lost-records")
def test_compare_reads_no_damaged_metrics(folder):
    shutil.copytree(folder / "runs/r", folder / "runs/other")
    edit(folder / "runs/other/metrics.jsonl", (lines(folder / "runs/r")[1], "{}}\n"))
    done = dsv3("compare", "runs/r", "runs/other", cwd=folder)
    assert done.returncode == 1 and "metrics.jsonl:2: not a line of metrics" in done.stderr
    (folder / "runs/other/metrics.jsonl").unlink()
    done = dsv3("compare", "runs/r", "runs/other", cwd=folder)
    assert done.returncode == 0 and "metrics.jsonl is missing" in done.stderr


@pytest.mark.promise("lost-records")
@pytest.mark.parametrize("lose", [os.unlink, lambda file: os.truncate(file, 10)])
def test_metrics_that_are_lost_during_a_run_are_reported(tmp_path, lose):
    make_tiny(tmp_path)
    process = subprocess.Popen([RUN, "tiny.yaml", "train.steps=300", "checkpoint.every=0", "validation.every=0", "--run_name", "r"],
                               cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while "step 20/" not in process.stderr.readline():
        assert process.poll() is None
    lose(tmp_path / "runs/r/metrics.jsonl")
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and errors.count("was removed, replaced or cut short") == 1
    assert max(metrics(tmp_path / "runs/r")) == 300


def copies(folder, *names):
    for name in names:
        shutil.copytree(folder / "runs/r", folder / "runs" / name)


@pytest.mark.promise("compare-records")
def test_runs_with_another_history_are_another_group(folder):
    dsv3_run("tiny.yaml", "model.mtp.depth=0", "train.steps=4", "schedule.warmup=0", "validation.every=0", "checkpoint.every=2",
             "--from", "runs/r", "--run_name", "from", cwd=folder)
    dsv3_run("--branch", "runs/r", "train.steps=6", "--run_name", "branch", cwd=folder)
    copies(folder, "same")
    for name, factor in (("from", "one factor: history"), ("branch", "history"), ("same", "same experiment")):
        assert factor in dsv3("compare", "runs/r", f"runs/{name}", cwd=folder).stdout
    dsv3_run("--run_id", "same", "train.steps=6", cwd=folder)
    dsv3_run("tiny.yaml", "model.mtp.depth=0", "train.steps=6", "schedule.warmup=0", "validation.every=0", "checkpoint.every=2",
             "--run_name", "straight", cwd=folder)
    assert "history" in dsv3("compare", "runs/straight", "runs/same", cwd=folder).stdout


@pytest.mark.promise("compare-records")
def test_runs_on_edited_documents_are_another_group(folder):
    edit(folder / "text.txt", ("wizards", "wombats"))
    tiny_run(folder, "model.mtp.depth=0", name="edited")
    tiny_run(folder, "model.mtp.depth=0", "train.seed=8", name="other_seed")
    assert "documents_hash" in dsv3("compare", "runs/r", "runs/edited", cwd=folder).stdout
    assert "same experiment" in dsv3("compare", "runs/other_seed", "runs/edited", cwd=folder).stdout


@pytest.mark.promise("compare-records")
def test_a_mean_says_of_how_many_runs_it_is(folder):
    copies(folder, "other")
    (folder / "runs/other/metrics.jsonl").write_text("")
    done = dsv3("compare", "runs/r", "runs/other", cwd=folder)
    assert "(1 of 2 runs)" in done.stdout and "is empty" in done.stderr
    (folder / "runs/other/metrics.jsonl").write_text("".join(lines(folder / "runs/r")[:-1]))
    assert "the run finished at step 4" in dsv3("compare", "runs/r", "runs/other", cwd=folder).stderr
    (folder / "runs/other/metrics.jsonl").write_text("".join(reversed(lines(folder / "runs/r"))))
    assert "not in order" in dsv3("compare", "runs/r", "runs/other", cwd=folder).stderr


@pytest.mark.promise("same-documents")
def test_changed_validation_documents_are_reported(folder):
    warning = "validation documents have changed"
    # The first new document is for training. Among so many, some are for validation.
    for steps, numbers in ((6, range(1)), (7, range(1, 60)), (8, [])):
        with open(folder / "text.txt", "a") as text:
            text.write("".join(f"\n\nZ new document number {i} qqq." for i in numbers))
        done = dsv3_run("--run_id", "r", f"train.steps={steps}", cwd=folder)
        assert (warning in done.stderr) == (steps == 7)


@pytest.mark.promise("same-documents")
@pytest.mark.parametrize("file, old, new", [("text.txt", "wizards", "wombats"), ("runs/r/config.yaml", "lr: 0.02", "lr: 0.01")])
def test_a_run_without_checkpoint_starts_its_metrics_again(folder, file, old, new):
    shutil.rmtree(folder / "runs/r/checkpoints")
    before = losses(folder / "runs/r")
    (folder / file).write_text((folder / file).read_text().replace(old, new))
    assert "no checkpoint yet: the run starts again" in dsv3_run("--run_id", "r", cwd=folder).stderr
    assert losses(folder / "runs/r") != before
    dsv3_run("runs/r/config.yaml", "--run_name", "fresh", cwd=folder)
    assert losses(folder / "runs/r") == losses(folder / "runs/fresh")
    origins = [json.loads((folder / f"runs/{name}/provenance.json").read_text()) for name in ("r", "fresh")]
    assert origins[0]["documents_hash"] == origins[1]["documents_hash"]
    assert len((folder / "runs/r/metrics.csv").read_text().splitlines()) == len((folder / "runs/fresh/metrics.csv").read_text().splitlines())


@pytest.mark.promise("consistent-state")
def test_a_checkpoint_of_another_run_is_rejected(folder):
    dsv3_run("tiny.yaml", "model.mtp.depth=0", "train.steps=4", "schedule.warmup=0", "validation.every=0", "checkpoint.every=2",
             "--from", "runs/r", "--run_name", "other", cwd=folder)
    shutil.rmtree(folder / "runs/r/checkpoints/step-4")
    shutil.copytree(folder / "runs/other/checkpoints/step-4", folder / "runs/r/checkpoints/step-4")
    assert "is of another run" in dsv3_run("--run_id", "r", "train.steps=6", cwd=folder, check=5).stderr


@pytest.mark.promise("consistent-state")
def test_an_existing_run_is_resumed_only_with_the_weights_that_it_started_from(folder):
    words = ["tiny.yaml", "model.mtp.depth=0", "train.steps=4", "schedule.warmup=0", "validation.every=0", "checkpoint.every=2"]
    dsv3_run(*words, "--from", "runs/r", "--run_name", "from", cwd=folder)
    dsv3_run(*words, "--from", "runs/r", "--run_name", "from", "--resume", "auto", cwd=folder)
    done = dsv3_run(*words, "--from", "runs/from", "--run_name", "from", "--resume", "auto", cwd=folder, check=2)
    assert "was not started from runs/from" in done.stderr
    dsv3_run(*words, "--from", "runs/from", "--run_name", "r", "--resume", "auto", cwd=folder, check=2)


@pytest.mark.promise("consistent-state")
def test_metrics_past_the_end_are_rejected(folder):
    with open(folder / "runs/r/metrics.jsonl", "a") as file:
        file.write('{"step": 999999, "tokens": 1, "time": 1.0, "train/loss": 1.0}\n')
    assert "ends at step 999999" in dsv3_run("--run_id", "r", "train.steps=6", cwd=folder, check=5).stderr


FORGED = {"updates": lambda manifest: manifest["state"].update(updates=10**9),
          "negative": lambda manifest: manifest["state"].update(updates=-5),
          "position": lambda manifest: manifest["state"]["data"].update(document=-1)}


@pytest.mark.promise("consistent-state")
@pytest.mark.parametrize("case", FORGED)
def test_numbers_that_contradict_each_other_are_rejected(folder, case):
    reseal(last_checkpoint(folder / "runs/r"), FORGED[case])
    done = dsv3_run("--run_id", "r", "train.steps=6", cwd=folder, check=None)
    assert done.returncode in (4, 5) and "error: " in done.stderr
    assert 5 not in metrics(folder / "runs/r")


@pytest.mark.promise("consistent-state")
def test_a_checkpoint_past_the_end_is_rejected(folder):
    checkpoint = last_checkpoint(folder / "runs/r")
    reseal(checkpoint, lambda manifest: manifest.update(step=40))
    checkpoint.rename(checkpoint.with_name("step-40"))
    done = dsv3_run("--run_id", "r", cwd=folder, check=5)
    assert "is of step 40, but the run has only 4 steps" in done.stderr


@pytest.mark.promise("secrets")
@pytest.mark.parametrize("setting", ["optimizer.1.name=${env:TOKEN_IN_A_NAME}", "optimizer.0.name=my-${env:TOKEN_IN_A_NAME}"])
def test_names_do_not_contain_values_of_the_environment(tmp_path, setting):
    make_tiny(tmp_path)
    done = subprocess.run([RUN, "tiny.yaml", "train.steps=1", "schedule.warmup=0", setting], cwd=tmp_path, text=True,
                          capture_output=True, env={**os.environ, "TOKEN_IN_A_NAME": "hunter-two-2"})
    assert done.returncode == 0, done.stderr
    run, = (tmp_path / "runs").iterdir()
    stored = [str(file) + file.read_text(errors="replace") for file in run.rglob("*") if file.is_file()]
    assert len(stored) > 6 and "hunter-two-2" not in done.stderr + "".join(stored)
    assert re.search("TOKEN_IN_A_NAME", done.stderr + "".join(stored))


FULL_DISK = """
mkdir disk && mount -t tmpfs -o size=350k none disk || exit 99
"$0" tiny.yaml --output disk --run_name r tracker=[] validation.every=0 checkpoint.every=1000 train.steps=100000
code=$?
cp disk/r/status.json . && exit $code
"""


@pytest.mark.promise("failed-status")
@pytest.mark.parametrize("fill", ["metrics", "checkpoint"])
def test_status_is_written_on_a_full_disk(tmp_path, fill):
    make_tiny(tmp_path)
    script = FULL_DISK if fill == "metrics" else FULL_DISK.replace("checkpoint.every=1000", "checkpoint.every=1")
    done = subprocess.run(["unshare", "-rm", "bash", "-c", script, RUN], cwd=tmp_path, text=True, capture_output=True, timeout=120)
    assert done.returncode in (1, 5) and "No space left" in done.stderr, done.stderr
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed" and status["exit_code"] == done.returncode
