"""Training on text with dsv3-run: the loss falls, changing one word swaps a component, runs resume, and unintended
resumes are rejected."""

import json
import shutil
import signal
import subprocess
import time

import pytest

from support import BUILD, RUN, dsv3_run, last_checkpoint, losses, make_tiny, metrics, seal, tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    make_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    dsv3_run("tiny.yaml", "--run_name", "finished", cwd=folder)
    return folder / "runs/finished"


def provenance_of(run):
    return json.loads((run / "provenance.json").read_text())


def started(folder, *arguments):
    """Start a run in the background and return its process once it has trained a few steps."""
    run = folder / "runs" / arguments[arguments.index("--run_name") + 1]
    process = subprocess.Popen([RUN, *arguments], cwd=folder, stderr=subprocess.DEVNULL)
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 8:
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_training_lowers_the_loss(finished):
    rows = metrics(finished)
    assert sorted(rows) == list(range(31))
    assert rows[30]["val/loss"] < rows[0]["val/loss"] - 0.5
    assert "train/lr/adamw" in rows[30] and "train/lr/muon" in rows[30]
    assert rows[30]["moe/load_max/1"] >= 1 and "moe/load_max/0" not in rows[30]


def test_run_folder_is_complete(finished):
    names = {p.name for p in finished.iterdir()}
    assert {"config.yaml", "experiment.yaml", "provenance.json", "log.txt", "metrics.jsonl", "metrics.csv",
            "checkpoints", "status.json"} <= names
    status = json.loads((finished / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["step"]) == ("finished", 0, 30)
    provenance = provenance_of(finished)
    assert {"attention_mla", "optimizer_muon", "data_text"} <= {p["name"] for p in provenance["plugins"]}
    assert len(provenance["init_hash"]) == 64 and len(provenance["data_hash"]) == 64


def test_csv_tracker_has_every_value(finished):
    table = [line.split(",") for line in (finished / "metrics.csv").read_text().splitlines()]
    assert table[0] == ["id", "step", "tokens", "time", "name", "value"]
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    expected = {(i, k): v for i, row in enumerate(rows) for k, v in row.items() if k not in ("step", "tokens", "time")}
    assert {(int(r[0]), r[4]): float(r[5]) for r in table[1:]} == expected


def test_two_equal_runs_are_bit_identical(folder, finished):
    dsv3_run("tiny.yaml", "--run_name", "again", cwd=folder)
    assert losses(folder / "runs/again") == losses(finished)
    assert tensors(last_checkpoint(folder / "runs/again")) == tensors(last_checkpoint(finished))


def test_accumulation_changes_nothing(folder, finished):
    dsv3_run("tiny.yaml", "train.micro_batch=1", "--run_name", "accumulated", cwd=folder)
    ours, theirs = folder / "runs/accumulated", finished
    for step, row in metrics(theirs).items():
        for key in ("train/loss", "val/loss"):
            if key in row:
                assert abs(metrics(ours)[step][key] / row[key] - 1) < 1e-6, (step, key)
    def biases(run):
        return {k: v for k, v in tensors(last_checkpoint(run)).items() if k.startswith("buffer/")}
    assert len(biases(ours)) == 3 and biases(ours) == biases(theirs)
    assert provenance_of(ours)["data_hash"] == provenance_of(theirs)["data_hash"]


def test_data_hash_depends_on_the_rows(folder, finished):
    dsv3_run("tiny.yaml", "train.seed=8", "--run_name", "other_rows", cwd=folder)
    assert provenance_of(folder / "runs/other_rows")["data_hash"] != provenance_of(finished)["data_hash"]


def initial_weights(folder, name, *overrides):
    """Return the parameters after one step with learning rate 0, and the names of the loaded plugins."""
    dsv3_run("tiny.yaml", "optimizer=adamw", "optimizer.lr=0", "optimizer.weight_decay=0", "train.steps=1", "schedule.warmup=0", *overrides,
             "--run_name", name, cwd=folder)
    run = folder / "runs" / name
    loaded = {p["name"] for p in provenance_of(run)["plugins"]}
    return {k: v for k, v in tensors(last_checkpoint(run)).items() if k.startswith("model/")}, loaded


def test_a_swap_changes_no_other_initial_weights(folder):
    mla, mla_loaded = initial_weights(folder, "first_mla")
    mha, mha_loaded = initial_weights(folder, "first_mha", "attention=mha")
    assert "attention_mla" in mla_loaded and "attention_mha" not in mla_loaded
    assert "attention_mha" in mha_loaded and "attention_mla" not in mha_loaded
    def others(values):
        return {k: v for k, v in values.items() if ".attention." not in k}
    assert len(others(mla)) > 20 and others(mla) == others(mha)
    attention = [{k for k in values if ".attention." in k} for values in (mla, mha)]
    assert any("kv_a" in k for k in attention[0]) and not any("kv_a" in k for k in attention[1])


def test_swapped_optimizer_runs_and_prints_its_plan(folder, finished):
    done = dsv3_run("tiny.yaml", "attention=mha", "optimizer=adamw", "train.steps=3", "schedule.warmup=0", "--run_name", "swapped", cwd=folder)
    rows, muon = metrics(folder / "runs/swapped"), metrics(finished)
    assert [k for k in rows[1] if k.startswith("train/lr/")] == ["train/lr/adamw"]
    assert rows[1]["train/loss"] != muon[1]["train/loss"]
    plan = done.stderr.split("group  optimizer", 1)[1]
    assert "adamw" in plan and "muon" not in plan
    assert "optimizer: options of 'muon' were dropped: lr (tiny.yaml:" in done.stderr
    keys = tensors(last_checkpoint(folder / "runs/swapped"))
    assert any(k.startswith("optimizer/exp_avg_sq/layers.0.attention") for k in keys)


def test_signals_stop_with_a_checkpoint_and_the_run_resumes(folder):
    dsv3_run("tiny.yaml", "train.steps=400", "--run_name", "unbroken", cwd=folder)
    for sent, code in ((signal.SIGTERM, 75), (signal.SIGUSR2, 75), (signal.SIGINT, 130)):
        name = f"stopped-{sent}"
        process = started(folder, "tiny.yaml", "train.steps=400", "--run_name", name)
        run = folder / "runs" / name
        process.send_signal(sent)
        assert process.wait(60) == code
        status = json.loads((run / "status.json").read_text())
        assert status["exit_code"] == code and status["step"] < 400
        assert last_checkpoint(run).name == f"step-{status['step']}"
        dsv3_run("--run_id", name, cwd=folder)
        assert losses(run) == losses(folder / "runs/unbroken")
        assert tensors(last_checkpoint(run)) == tensors(last_checkpoint(folder / "runs/unbroken"))
        assert provenance_of(run)["data_hash"] == provenance_of(folder / "runs/unbroken")["data_hash"]


def test_unintended_starts_and_resumes_are_rejected(folder, finished):
    assert "finished" in dsv3_run("tiny.yaml", "--run_name", "finished", cwd=folder, check=2).stderr
    done = dsv3_run("--run_id", "finishd", cwd=folder, check=2)
    assert "finished" in done.stderr and not (folder / "runs/finishd").exists()
    changed = dsv3_run("tiny.yaml", "train.seed=8", "--run_id", "finished", cwd=folder, check=2)
    assert "seed" in changed.stderr and "--from" in changed.stderr
    assert changed.stderr == dsv3_run("train.seed=8", "--run_id", "finished", cwd=folder, check=2).stderr
    dsv3_run("tiny.yaml", "--run_id", "finished", cwd=folder)  # the same settings are accepted
    dsv3_run("train.seed=7", "--run_id", "finished", cwd=folder)
    (folder / "runs/early").mkdir()  # killed before anything was written
    early = dsv3_run("tiny.yaml", "--run_id", "early", cwd=folder, check=2)
    assert "--run_name early --resume auto" in early.stderr
    for _ in range(2):  # the first command trains the run, and the second finds it finished
        dsv3_run("tiny.yaml", "train.steps=2", "schedule.warmup=0", "--run_name", "auto", "--resume", "auto", cwd=folder)
    assert sorted(metrics(folder / "runs/auto")) == [0, 1, 2]


def test_machine_defaults_name_the_folder_of_a_resumed_run(tmp_path):
    make_tiny(tmp_path)
    (tmp_path / "config.yaml").write_text("output: elsewhere\n")
    dsv3_run("tiny.yaml", "train.steps=1", "schedule.warmup=0", "--run_name", "one", cwd=tmp_path)
    dsv3_run("--run_id", "one", cwd=tmp_path)
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["one"] and not (tmp_path / "runs").exists()


def test_from_starts_with_the_weights(folder, finished):
    arguments = ["tiny.yaml", "train.steps=200", "train.seed=9", "checkpoint.every=0", "--from", "runs/finished"]
    dsv3_run(*arguments, "--run_name", "tuned", cwd=folder)
    tuned = folder / "runs/tuned"
    assert metrics(tuned)[0]["val/loss"] == metrics(finished)[30]["val/loss"]
    assert provenance_of(tuned)["init_hash"] != provenance_of(finished)["init_hash"]
    # If a run is killed before its first checkpoint, it resumes from the --from weights, not from new initial weights.
    process = started(folder, *arguments, "--run_name", "killed")
    process.kill()
    process.wait()
    killed = folder / "runs/killed"
    assert last_checkpoint(killed).name == "step-0"
    dsv3_run("--run_id", "killed", cwd=folder)
    assert losses(killed) == losses(tuned)
    assert tensors(last_checkpoint(killed)) == tensors(last_checkpoint(tuned))
    assert provenance_of(killed)["init_hash"] == provenance_of(tuned)["init_hash"]
    rejected = dsv3_run("tiny.yaml", "model.position.layout=half", "--run_name", "other", "--from", "runs/finished",
                       cwd=folder, check=5)
    assert "layout" in rejected.stderr


def test_a_closed_pipe_does_not_end_the_run(folder):
    process = subprocess.Popen([RUN, "tiny.yaml", "--run_name", "piped"], cwd=folder, stderr=subprocess.PIPE)
    assert process.stderr.readline()
    process.stderr.close()
    assert process.wait(timeout=300) == 0
    assert json.loads((folder / "runs/piped/status.json").read_text())["state"] == "finished"


def rebuild(library):
    """Change a library as another build would."""
    library.write_bytes(library.read_bytes()[:-79] + b"\0")
    seal(library)


def test_a_resumed_run_warns_of_a_changed_plugin(folder):
    plugins = folder / "plugins"
    shutil.copytree(BUILD / "tests/plugins/faults", plugins)
    [library] = plugins.rglob("*.so")
    for run in ("same", "changed"):
        process = started(folder, "tiny.yaml", "attention={plugin: fused, heads: 2, kv_heads: 2}", "--run_name", run, "--plugin-path", plugins)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 75
        if run == "changed":
            rebuild(library)
        resumed = dsv3_run("--run_id", run, "--plugin-path", plugins, cwd=folder)
        warning = f"warning plugin 'faults' ({library}) has changed since the checkpoint was saved"
        assert (warning in resumed.stderr) == (run == "changed"), resumed.stderr


def test_a_comparison_names_plugins_of_different_builds(folder):
    plugins = folder / "other_plugins"
    shutil.copytree(BUILD / "tests/plugins/faults", plugins)
    [library] = plugins.rglob("*.so")
    for run in ("build1", "build2"):
        dsv3_run("tiny.yaml", "attention={plugin: fused, heads: 2, kv_heads: 2}", "train.steps=1", "schedule.warmup=0", "--run_name", run,
                 "--plugin-path", plugins, cwd=folder)
        rebuild(library)
    done = subprocess.run([BUILD / "bin/dsv3", "compare", "runs/build1", "runs/build2", "--plugin-path", plugins], cwd=folder, text=True,
                          capture_output=True, check=True)
    assert "same experiment" in done.stdout
    assert "note: runs/build1 and runs/build2 used different builds of plugin 'faults'" in done.stdout


def test_errors_have_exit_codes(folder):
    typo = dsv3_run("tiny.yaml", "model.attention.kv_lora_rnk=8", cwd=folder, check=2)
    assert "did you mean 'kv_lora_rank'" in typo.stderr
    assert "did you mean 'mla'" in dsv3_run("tiny.yaml", "attention=mlaa", cwd=folder, check=2).stderr
    missing = dsv3_run("tiny.yaml", "data.path=nowhere.txt", cwd=folder, check=4)
    assert "nowhere.txt" in missing.stderr
    assert "micro_batch" in dsv3_run("tiny.yaml", "train.micro_batch=3", cwd=folder, check=2).stderr
    dsv3_run(cwd=folder, check=2)
    dsv3_run("absent.yaml", cwd=folder, check=2)


def test_a_loss_that_is_not_finite_stops_the_run(folder):
    done = dsv3_run("tiny.yaml", "optimizer={plugin: adamw, lr: 1.0e30}", "train.clip=0", "--run_name", "exploded",
                    cwd=folder, check=7)
    assert "not finite" in done.stderr
    assert json.loads((folder / "runs/exploded/status.json").read_text())["exit_code"] == 7
