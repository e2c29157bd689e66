"""dsv3 runs: one line for each run, whatever its folder contains."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from support import BUILD, RUN, dsv3_run, make_tiny, metrics


def dsv3(*arguments, cwd, check=0):
    done = subprocess.run([BUILD / "bin/dsv3", *map(str, arguments)], cwd=cwd, text=True, capture_output=True, timeout=300)
    assert done.returncode == check, f"exit {done.returncode}, not {check}:\n{done.stdout}\n{done.stderr}"
    return done


def listed(folder, *arguments):
    """Return the runs that `dsv3 runs --json` lists, by name, in its order."""
    return {run["name"]: run for run in json.loads(dsv3("runs", *arguments, "--json", cwd=folder).stdout)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_tiny(folder)
    dsv3_run("tiny.yaml", "train.steps=12", "--run_name", "muon", cwd=folder)
    dsv3_run("tiny.yaml", "train.steps=9", "optimizer=adamw", "optimizer.lr=1e-3", "--run_name", "adamw", cwd=folder)
    dsv3_run("tiny.yaml", "train.steps=6", "attention=mha", "--run_name", "mha", cwd=folder)
    dsv3_run("--run_id", "mha", "train.steps=8", cwd=folder)
    dsv3_run("tiny.yaml", "optimizer.0.lr=1e30", "optimizer.1.lr=1e30", "schedule.warmup=0", "--run_name", "diverged", cwd=folder, check=7)
    return folder


def test_the_list_shows_state_progress_and_last_metrics(folder):
    runs = listed(folder)
    assert set(runs) == {"muon", "adamw", "mha", "diverged"}
    for name, steps in {"muon": 12, "adamw": 9, "mha": 8}.items():
        run, recorded = runs[name], metrics(folder / "runs" / name)
        assert (run["state"], run["step"], run["steps"], run["tokens"]) == ("finished", steps, steps, steps * 192)
        assert run["metrics"]["train/loss"] == recorded[steps]["train/loss"]
        assert run["metrics"]["val/loss"] == recorded[steps]["val/loss"]
        assert run["experiment"] == "tiny" and run["problems"] == []
        assert 0 < run["duration"] < 300
    assert runs["diverged"]["state"] == "failed" and "not finite" in runs["diverged"]["message"]
    lines = dsv3("runs", cwd=folder).stdout.splitlines()
    assert lines[0].split() == ["name", "state", "step", "tokens", "train/loss", "val/loss", "age", "duration", "tokens/s", "experiment", "note"]
    [row] = [line.split() for line in lines if line.startswith("muon")]
    assert row[1:3] == ["finished", "12/12"] and row[5] == f"{runs['muon']['metrics']['val/loss']:.4f}"


def test_sort_and_filter(folder):
    by_loss = list(listed(folder, "--sort", "val/loss"))
    recorded = {name: run["metrics"]["val/loss"] for name, run in listed(folder).items()}
    assert by_loss == sorted(recorded, key=recorded.get)
    assert list(listed(folder, "--sort", "-step")) == ["muon", "adamw", "mha", "diverged"]
    assert list(listed(folder, "--sort", "name")) == ["adamw", "diverged", "mha", "muon"]
    assert list(listed(folder)) == ["diverged", "mha", "adamw", "muon"] or \
        sorted(run["started"] for run in listed(folder).values()) == [run["started"] for run in listed(folder).values()][::-1]
    assert set(listed(folder, "--filter", "optimizer=muon")) == {"muon", "mha", "diverged"}
    assert set(listed(folder, "--filter", "optimizer!=muon")) == {"adamw"}
    assert set(listed(folder, "--filter", "attention=mla", "--filter", "state=finished")) == {"muon", "adamw"}
    assert set(listed(folder, "--filter", "train.steps>=9", "--filter", "step<12")) == {"adamw", "diverged"}
    assert set(listed(folder, "--filter", "optimizer.lr=0.001")) == {"adamw"}
    assert "no runs in runs satisfy" in dsv3("runs", "--filter", "val/loss<0", cwd=folder).stdout
    assert "did you mean 'attention'" in dsv3("runs", "--filter", "attension=mla", cwd=folder, check=2).stderr
    assert "is not a condition" in dsv3("runs", "--filter", "optimizer", cwd=folder, check=2).stderr
    assert "'low' is not a number" in dsv3("runs", "--filter", "val/loss<low", cwd=folder, check=2).stderr
    assert "no run has" in dsv3("runs", "--sort", "nonsense/metric", cwd=folder, check=2).stderr


def test_the_configured_output_folder_is_the_default(folder, tmp_path):
    (tmp_path / "config.yaml").write_text(f"output: {folder / 'runs'}\n")
    assert set(listed(tmp_path)) == set(listed(folder))
    assert "cannot list nowhere" in dsv3("runs", "nowhere", cwd=tmp_path, check=2).stderr
    (tmp_path / "none").mkdir()
    assert dsv3("runs", "none", cwd=tmp_path).stdout == "no runs in none\n"


def test_damaged_folders_have_a_line_with_what_is_wrong(folder, tmp_path):
    def copy(name):
        return copied(folder / "runs/muon", tmp_path / "runs" / name)
    (copy("status") / "status.json").write_text('{"state"')
    (copy("config") / "config.yaml").write_bytes(b"\xff\0: [")
    (copy("metrics") / "metrics.jsonl").open("a").write("torn\n{\"step\": 9")
    fifo = copy("fifo")
    (fifo / "metrics.jsonl").unlink()
    os.mkfifo(fifo / "metrics.jsonl")
    bare = tmp_path / "runs/bare"
    bare.mkdir()
    (bare / "metrics.jsonl").write_text("")
    (tmp_path / "runs/not-a-run").mkdir()
    runs = listed(tmp_path)
    assert {name: run["state"] for name, run in runs.items()} == {
        "status": "damaged", "config": "finished", "metrics": "finished", "fifo": "finished", "bare": "damaged"}
    for name, words in {"status": "status.json", "config": "config.yaml", "metrics": "1 line(s) are not metrics",
                        "fifo": "not a regular file", "bare": "status.json is missing"}.items():
        assert any(words in problem for problem in runs[name]["problems"]), runs[name]["problems"]
        [line] = [line for line in dsv3("runs", cwd=tmp_path).stdout.splitlines() if line.split()[0] == name]
        assert words in line


def test_text_from_run_folders_fakes_no_line_and_moves_no_cursor(folder, tmp_path):
    run = copied(folder / "runs/muon", tmp_path / "runs" / "a\nfake  finished\x1b[2J")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "message": "one\x1b]0;title\x07\u202e\nfake  finished", "state": "odd\nfake"}))
    shown = dsv3("runs", cwd=tmp_path).stdout
    assert len(shown.splitlines()) == 2 and not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert r"a\nfake" in shown and r"odd\nfake" in shown
    assert list(listed(tmp_path)) == [run.name]


def copied(source, target):
    shutil.copytree(source, target)
    return target


def test_running_and_crashed_runs_are_told_apart_without_touching_them(folder, tmp_path):
    for name in ("tiny.yaml", "text.txt"):
        shutil.copy(folder / name, tmp_path)
    run = subprocess.Popen([RUN, "tiny.yaml", "train.steps=1000000", "--run_name", "long"], cwd=tmp_path,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while listed_step(tmp_path) < 3:
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        before = {path.name for path in (tmp_path / "runs/long").iterdir()}
        found = listed(tmp_path)["long"]
        assert found["state"] == "running" and found["steps"] == 1000000
        assert before <= {path.name for path in (tmp_path / "runs/long").iterdir()}
        assert "in use by" in dsv3_run("--run_id", "long", cwd=tmp_path, check=2).stderr
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert listed(tmp_path)["long"]["state"] == "crashed"
    (tmp_path / "runs/long/lock").unlink()
    assert listed(tmp_path)["long"]["state"] == "crashed"
    assert not (tmp_path / "runs/long/lock").exists()


def listed_step(folder):
    return listed(folder).get("long", {"step": 0})["step"] if (folder / "runs").exists() else 0


def test_the_list_fits_the_terminal_and_watch_needs_one(folder):
    for columns in (40, 60, 80, 120):
        shown = subprocess.run(["script", "-qec", f"stty cols {columns}; {BUILD / 'bin/dsv3'} runs", "/dev/null"], cwd=folder,
                               text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=60).stdout
        lines = shown.replace("\r", "").splitlines()
        assert len(lines) == 5 and all(len(line) <= columns for line in lines), shown
        assert "muon" in shown and "finished" in shown and "not finite" in shown or columns == 40
    assert "--watch redraws a terminal" in dsv3("runs", "--watch", cwd=folder, check=2).stderr
    command = ["script", "-qec", f"stty cols 80 rows 10; timeout 3 {BUILD / 'bin/dsv3'} runs --watch 0.2", "/dev/null"]
    shown = subprocess.run(command, cwd=folder, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=60).stdout
    assert shown.count("\x1b[H") > 2 and "muon" in shown
