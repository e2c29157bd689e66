"""Runs tracked by a real MLflow server: everything arrives once, whatever happens in between."""

import collections
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "e2e"))

from mlflow_server import MlflowServer  # noqa: E402
from support import BUILD, RUN, dsv3_run, last_checkpoint, losses, make_tiny, metrics, tensors  # noqa: E402

mlflow = pytest.importorskip("mlflow", reason="requirements-mlflow.txt is not installed")

DSV3 = BUILD / "bin/dsv3"
FULL = os.environ.get("DSV3_TEST_FULL") == "1"
AWAY_SECONDS = 120  # in the full test of a server that is away
LARGEST = 1.7976931348623157e308  # MLflow stores infinities as the largest finite number


@pytest.fixture
def folder(tmp_path, monkeypatch, request):
    make_tiny(tmp_path)
    text = (tmp_path / "tiny.yaml").read_text()
    experiment = request.node.name.split("[")[0]
    (tmp_path / "tiny.yaml").write_text(
        text.replace("tracker: [{plugin: csv}]", f"tracker: [{{plugin: mlflow, experiment: {experiment}}}]"))
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "DATABRICKS_")):
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def server(mlflow_server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    return mlflow_server


def client_of(server):
    return mlflow.MlflowClient(tracking_uri=server.url)


def remote_id(run):
    return json.loads((run / "trackers/mlflow-0.store.json").read_text())["id"]


def name_of(metric):
    """The name that MLflow accepts for a metric."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-. :/") else "_" for c in metric)


def require_same_metrics(client, run):
    """Assert that the server has every value of metrics.jsonl exactly once."""
    expected = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name not in ("step", "tokens", "time"):
                expected.setdefault(name_of(name), []).append((row["step"], value))
    assert len(expected) > 10
    for name, values in expected.items():
        points = [(point.step, point.value) for point in client.get_metric_history(remote_id(run), name)]
        assert sorted(points) == sorted(values), name


def sync(*arguments, cwd, check=0):
    done = subprocess.run([DSV3, "sync", *map(str, arguments)], cwd=cwd, text=True, capture_output=True, timeout=120)
    assert done.returncode == check, (done.stdout, done.stderr)
    return done.stdout


def test_a_run_is_complete_on_the_server(folder, server):
    subprocess.run("git init -q && git add . && git -c user.name=a -c user.email=a@b commit -q -m first", shell=True,
                   cwd=folder, check=True)
    dsv3_run("tiny.yaml", "--run_name", "whole", "samples.every=15", "--tag", "team=language",
             "samples.prompts=[" + ", ".join(["A long prompt that is repeated"] * 300) + "]", "samples.tokens=1", cwd=folder)
    run, client = folder / "runs/whole", client_of(server)
    require_same_metrics(client, run)
    stored = client.get_run(remote_id(run))
    provenance = json.loads((run / "provenance.json").read_text())
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", "whole")
    assert stored.info.start_time <= stored.info.end_time < 1000 * (time.time() + 1)
    assert stored.data.params["optimizer.1.lr"] == "0.02" and stored.data.params["model.attention.plugin"] == "mla"
    assert stored.data.params["samples.prompts"] == "see parameters/samples.prompts.txt"
    tags = stored.data.tags
    assert tags["team"] == "language" and tags["dsv3.run_uid"] == provenance["uid"]
    assert tags["mlflow.source.git.commit"] == provenance["git"]["commit"]
    files = {file.path for file in client.list_artifacts(stored.info.run_id)}
    assert {"config.yaml", "experiment.yaml", "provenance.json", "log.txt", "metrics.jsonl", "events.jsonl", "samples",
            "parameters"} <= files
    for name in "config.yaml", "metrics.jsonl", "samples/step-0000030.txt":
        path = client.download_artifacts(stored.info.run_id, name, str(folder))
        assert open(path, "rb").read() == (run / name).read_bytes()
    assert {i.tags[0].value: i.dataset.digest for i in stored.inputs.dataset_inputs} == {
        "training": provenance["documents_hash"][:36], "validation": provenance["validation_hash"][:36]}
    assert not (run / "trackers/mlflow-0.rejected.jsonl").exists()
    assert sync("runs/whole", cwd=folder) == "runs/whole: nothing to send\n"


def test_system_metrics_have_the_names_of_mlflow(folder, server):
    """Those that MLflow's own monitors record. Its page shows names that start with system/ in a tab of their own."""
    monitors = pathlib.Path(mlflow.__file__).parent / "system_metrics/metrics"
    sources = "".join((monitors / f"{kind}_monitor.py").read_text() for kind in ("cpu", "disk", "network", "gpu"))
    names = {f"system/{name}" for name in re.findall(r'self\._metrics\[f?"(\w+|gpu_{i}_\w+)"\]', sources)}
    assert len(names) == 13
    environment = {**os.environ, "LD_LIBRARY_PATH": str(BUILD / "tests/fake_cuda/lib"), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([RUN, "tiny.yaml", "--run_name", "system", "train.steps=2", "schedule.warmup=1"], cwd=folder, check=True,
                   env=environment, timeout=300)
    stored = client_of(server).get_run(remote_id(folder / "runs/system")).data.metrics
    assert {name for name in stored if name.startswith("system/")} == {name.replace("{i}", "0") for name in names}


def test_numbers_that_json_has_not_and_odd_names(folder, server):
    dsv3_run("tiny.yaml", "--run_name", "odd", "train.steps=2", "schedule.warmup=1", cwd=folder)
    run, client = folder / "runs/odd", client_of(server)
    names = ["odd/a(b)", "odd/a[b]", "odd/a_b_", "odd//double", "../up", "odd/" + "x" * 300]
    with (run / "metrics.jsonl").open("a") as file:
        row = {"step": 3, "tokens": 1, "time": 1764000000.5, "odd/nan": "NaN", "odd/up": "Infinity", "odd/down": "-Infinity",
               "odd/small": 5e-324, "odd/large": 1.7e308, "odd/exact": 0.1, **{name: i for i, name in enumerate(names)}}
        file.write(json.dumps(row) + "\n")
    assert "everything sent" in sync("runs/odd", cwd=folder)
    value = {key: client.get_metric_history(remote_id(run), key)[0].value
             for key in ("odd/nan", "odd/up", "odd/down", "odd/small", "odd/large", "odd/exact")}
    assert math.isnan(value["odd/nan"]) and (value["odd/up"], value["odd/down"]) == (LARGEST, -LARGEST)
    assert (value["odd/small"], value["odd/large"], value["odd/exact"]) == (5e-324, 1.7e308, 0.1)
    changed = json.loads(json.loads((run / "trackers/mlflow-0.store.json").read_text())["names"])
    changed = {original: name for name, original in changed.items()}
    stored = {client.get_metric_history(remote_id(run), changed.get(name, name))[0].value for name in names}
    assert stored == set(range(len(names)))  # no two of them have the same name


@pytest.fixture
def unreliable(tmp_path_factory, monkeypatch):
    """A server that the test may stop and start again."""
    server = MlflowServer(tmp_path_factory.mktemp("away"))
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    yield server
    server.stop()


def train_until(process, condition):
    while not condition():
        assert process.poll() is None
        time.sleep(0.05)


def train_while_the_server_stops_and_kill(folder, server):
    """Start the run `away`. Stop the server after 30 lines of metrics, and kill the run 20 lines later."""
    run = folder / "runs/away"

    def lines():
        return (run / "metrics.jsonl").read_text().splitlines()
    process = subprocess.Popen([RUN, "tiny.yaml", "--run_name", "away", "train.steps=400"], cwd=folder,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    train_until(process, lambda: (run / "trackers/mlflow-0.json").exists() and len(lines()) >= 30)
    server.stop()
    count = len(lines())
    train_until(process, lambda: len(lines()) >= count + 20)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return run


def test_nothing_is_lost_or_repeated_if_the_server_is_away_and_the_run_is_killed(folder, unreliable):
    run = train_while_the_server_stops_and_kill(folder, unreliable)
    done = dsv3_run("--run_id", "away", "train.log_every=2", cwd=folder)
    assert done.stderr.count("has not received everything") == 1
    assert "`dsv3 sync " in done.stderr
    unreliable.start()
    assert sync("runs/away", cwd=folder) == "runs/away: everything sent\n"
    require_same_metrics(client_of(unreliable), run)
    stored = client_of(unreliable).get_run(remote_id(run))
    assert stored.info.status == "FINISHED"
    assert stored.data.params["train.log_every"] == "1" and stored.data.tags["dsv3.changed.train.log_every"] == "2"


@pytest.mark.skipif(not FULL, reason="only with DSV3_TEST_FULL=1")
def test_a_run_that_is_killed_and_resumed_while_the_server_is_away_for_two_minutes(folder, unreliable):
    """The resumed run still trains when the server is back, and sends everything itself."""
    run = train_while_the_server_stops_and_kill(folder, unreliable)
    away_since = time.monotonic()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps_per_second = (rows[-1]["step"] - rows[0]["step"]) / (rows[-1]["time"] - rows[0]["time"])
    # Pauses between attempts reach a minute.
    steps = max(400, rows[-1]["step"] + int(steps_per_second * (AWAY_SECONDS + 90)))
    with open(folder / "error.txt", "wb") as error:
        process = subprocess.Popen([RUN, "--run_id", "away", f"train.steps={steps}"], cwd=folder, stdout=subprocess.DEVNULL,
                                   stderr=error)
    train_until(process, lambda: time.monotonic() >= away_since + AWAY_SECONDS)
    unreliable.start()
    assert process.wait(timeout=1200) == 0, (folder / "error.txt").read_text()
    sync("runs/away", cwd=folder)  # what the run could not send in its last seconds
    assert max(metrics(run)) == steps
    require_same_metrics(client_of(unreliable), run)
    assert client_of(unreliable).get_run(remote_id(run)).info.status == "FINISHED"


def spans_of(server, run):
    """{stage: trace} of the server."""
    mlflow.set_tracking_uri(server.url)
    client, identity = client_of(server), remote_id(run)
    traces = client.search_traces(locations=[client.get_run(identity).info.experiment_id],
                                  filter_string=f"attributes.run_id = '{identity}'")
    return {trace.info.tags.get("mlflow.traceName"): trace for trace in traces}


def test_a_run_has_one_trace_for_each_stage(folder, server):
    settings = ["train.trace_every=10", "validation.every=15", "samples.every=30", "samples.tokens=2", "checkpoint.every=15",
                "train.batch=4", "train.micro_batch=2"]
    dsv3_run("tiny.yaml", "--run_name", "traced", *settings, "train.steps=20", cwd=folder)
    dsv3_run("--run_id", "traced", "train.steps=30", cwd=folder)
    found = {}
    for stage, trace in spans_of(server, folder / "runs/traced").items():
        assert trace.info.state == "OK" and trace.info.tags["stage"] == stage
        names = {span.span_id: span.name for span in trace.data.spans}
        found[stage] = collections.Counter(
            (span.name, names.get(span.parent_id), span.inputs.get("step")) for span in trace.data.spans)
        assert all(span.start_time_ns <= span.end_time_ns for span in trace.data.spans)
    step = {("step", "train"): 1, ("load", "step"): 1, ("forward", "step"): 2, ("backward", "step"): 2, ("reduce", "step"): 1,
            ("optimizer", "step"): 1}
    assert found.pop("train") == {("train", None, None): 1} | {(*span, at): n for at in (10, 20, 30) for span, n in step.items()}
    data = found.pop("data")
    assert set(data) >= {("data", None, None), *((*span, at) for at in (10, 20, 30) for span in [("load", "data")])}
    assert all(data["load", "data", at] == 2 for at in (10, 20, 30)) and any(name == "tokenize" for name, _, _ in data)
    assert found == {"eval": {("eval", None, None): 1} | {("validate", "eval", at): 1 for at in (0, 15, 20, 30)} |
                             {("checkpoint", "eval", at): 1 for at in (15, 20, 30)} | {("sample", "eval", at): 1 for at in (20, 30)}}


def test_a_run_continues_on_another_machine_by_its_mlflow_id(folder, server, tmp_path_factory):
    """The server has metrics of steps after the last checkpoint that it has. They are trained again, but not sent again."""
    settings = ["train.steps=600", "schedule.plugin=constant", "checkpoint.every=20", "tracker.0.checkpoints=last"]
    process = subprocess.Popen([RUN, "tiny.yaml", "--run_name", "lost", *settings], cwd=folder, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    run, store = folder / "runs/lost", folder / "runs/lost/trackers/mlflow-0.store.json"
    while not store.exists() or "checkpoint_step" not in store.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    uploaded = int(json.loads(store.read_text())["checkpoint_step"])
    while max(metrics(run)) < uploaded + 10:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    identity, client = remote_id(run), client_of(server)
    other = tmp_path_factory.mktemp("other")
    (other / "text.txt").write_text((folder / "text.txt").read_text())
    done = dsv3_run("--run_id", identity, f"data.path={other}/text.txt", cwd=other)
    assert "downloaded run runs/lost to resume it" in done.stderr
    dsv3_run("tiny.yaml", "--run_name", "reference", *settings[:-1], "tracker=[]", cwd=folder)
    moved, reference = other / "runs/lost", folder / "runs/reference"
    assert tensors(last_checkpoint(moved)) == tensors(last_checkpoint(reference))
    after = max(uploaded, min(metrics(moved)))
    assert {k: v for k, v in losses(moved).items() if k > after} == {k: v for k, v in losses(reference).items() if k > after}
    assert sorted(point.step for point in client.get_metric_history(identity, "train/loss")) == list(range(1, 601))
    assert remote_id(moved) == identity and client.get_run(identity).info.status == "FINISHED"
    assert max(model.step for model in client.get_run(identity).outputs.model_outputs) == 600


def logged_models(client, run):
    """The logged models of a run, by step."""
    outputs = client.get_run(remote_id(run)).outputs.model_outputs
    models = {output.step: client.get_logged_model(output.model_id) for output in outputs}
    assert len(models) == len(outputs)
    return models


def require_models(client, run, steps):
    """Assert that the checkpoints of these steps are logged models with their loss on the validation documents."""
    provenance, models = json.loads((run / "provenance.json").read_text()), logged_models(client, run)
    assert sorted(models) == steps
    rows = metrics(run)
    for step, model in models.items():
        assert (model.name, model.status.value, model.source_run_id) == (f"step-{step}", "READY", remote_id(run))
        metric, = model.metrics
        assert (metric.key, metric.step, metric.value) == ("val/loss", step, rows[step]["val/loss"])
        assert (metric.dataset_name, metric.dataset_digest) == ("text", provenance["validation_hash"][:36])
    return models


def test_checkpoints_become_logged_models_with_their_loss_on_the_validation_documents(folder, server):
    name = "registered-" + folder.name
    tracker = f"tracker=[{{plugin: mlflow, experiment: models, checkpoints: last, model: {name}}}]"
    settings = [tracker, "checkpoint.every=5", "validation.every=5", "schedule.plugin=constant"]
    dsv3_run("tiny.yaml", "--run_name", "saved", *settings, "train.steps=10", cwd=folder)
    run, client = folder / "runs/saved", client_of(server)
    require_models(client, run, [5, 10])
    dsv3_run("--run_id", "saved", "train.steps=15", cwd=folder)
    models = require_models(client, run, [5, 10, 15])
    # The process was killed after an upload, before the run folder said so.
    (run / "trackers/mlflow-0.uploads.json").unlink()
    shutil.copytree(run / "checkpoints/step-15", run / "trackers/mlflow-0.uploads/step-15")
    assert sync("runs/saved", cwd=folder) == "runs/saved: everything sent\n"
    assert {step: model.model_id for step, model in require_models(client, run, [5, 10, 15]).items()} == {
        step: model.model_id for step, model in models.items()}
    versions = client.search_model_versions(f"name = '{name}'")
    assert sorted(int(version.version) for version in versions) == [1, 2, 3]
    last = client.get_model_version_by_alias(name, "last")
    assert (last.version, last.source) == ("3", f"models:/{models[15].model_id}")


def test_the_best_checkpoints_are_uploaded(folder, server):
    settings = ["tracker.0.checkpoints=best", "checkpoint.every=5", "validation.every=5", "train.steps=20"]
    dsv3_run("tiny.yaml", "--run_name", "best", *settings, cwd=folder)
    rows, best, lowest = metrics(folder / "runs/best"), [], math.inf
    for step in 5, 10, 15, 20:
        if rows[step]["val/loss"] < lowest:
            lowest = rows[step]["val/loss"]
            best.append(step)
    client = client_of(server)
    require_models(client, folder / "runs/best", best)
    points = [point.step for point in client.get_metric_history(remote_id(folder / "runs/best"), "val/loss")]
    assert sorted(points) == [0, 5, 10, 15, 20]  # not once more for each model


def test_a_branch_is_a_child_of_the_run_that_it_comes_from(folder, server):
    dsv3_run("tiny.yaml", "--run_name", "trunk", "train.steps=6", "checkpoint.keep_best=10", "validation.every=3",
             cwd=folder)

    def branch(name, *settings, source="trunk@3"):
        dsv3_run("--branch", source, "--run_name", name, *settings, cwd=folder)
        return remote_id(folder / "runs" / name)
    client, trunk = client_of(server), remote_id(folder / "runs/trunk")
    child = branch("child", "train.steps=9")
    assert client.get_parent_run(child).info.run_id == trunk
    assert client.get_run(child).data.tags["dsv3.branched_from"] == "trunk@3"
    assert client.get_parent_run(branch("grandchild", "train.steps=12", source="child@6")).info.run_id == child
    sweep = client.create_run(client.get_run(trunk).info.experiment_id).info.run_id
    assert client.get_parent_run(branch("trial", f"tracker.0.parent={sweep}")).info.run_id == sweep
    elsewhere = branch("elsewhere", "tracker.0.experiment=another")
    assert client.get_parent_run(elsewhere) is None
    assert client.get_run(elsewhere).data.tags["dsv3.branched_from"] == "trunk@3"


def test_a_run_is_resumed_by_its_mlflow_id_where_its_folder_is(folder, server):
    dsv3_run("tiny.yaml", "--run_name", "here", "train.steps=6", cwd=folder)
    dsv3_run("--run_id", remote_id(folder / "runs/here"), "train.steps=9", cwd=folder)
    assert max(metrics(folder / "runs/here")) == 9
    assert [path.name for path in (folder / "runs").iterdir()] == ["here"]


def test_an_id_without_a_checkpoint_on_the_server(folder, server, tmp_path_factory):
    dsv3_run("tiny.yaml", "--run_name", "bare", "train.steps=2", "schedule.warmup=1", cwd=folder)
    other = tmp_path_factory.mktemp("other")
    done = dsv3_run("--run_id", remote_id(folder / "runs/bare"), cwd=other, check=5)
    assert "has no checkpoint, so it cannot be resumed without its folder" in done.stderr
    assert "checkpoints: last" in done.stderr
    assert list((other / "runs").iterdir()) == []
    done = dsv3_run("--run_id", "0123456789abcdef0123456789abcdef", cwd=other, check=2)
    assert "not found" in done.stderr


def test_settings_that_cannot_work_stop_the_run_before_it_starts(folder, server, monkeypatch):
    experiment = client_of(server).create_experiment("deleted")
    client_of(server).delete_experiment(experiment)
    for setting, variables, message in [
            ("tracker.0.experiment=deleted", {}, "MLflow experiment 'deleted' was deleted; restore it"),
            ("train.seed=7", {"MLFLOW_EXPERIMENT_ID": "9999999"}, "MLflow experiment with id '9999999' not found"),
            ("tracker.0.uri=runs", {}, "does not start with http:// or https://"),
            (f"tracker.0.uri={server.url}/nothing", {}, "answered 404"),
            (f"tracker.0.experiment={'e' * 501}", {}, "longer than 500 bytes"),
            ("tracker.0.model=nano", {}, "model needs checkpoints: best or last")]:
        with monkeypatch.context() as context:
            for name, value in variables.items():
                context.setenv(name, value)
            done = dsv3_run("tiny.yaml", "--run_name", "wrong", setting, "train.steps=2", "schedule.warmup=1", cwd=folder, check=2)
        assert message in done.stderr, done.stderr
        assert not (folder / "runs/wrong").exists()


def test_sync_goes_on_after_a_run_that_was_deleted_on_the_server(folder, server):
    for name in ("deleted", "other"):
        dsv3_run("tiny.yaml", "--run_name", name, "train.steps=4", "schedule.warmup=1", cwd=folder)
        (folder / f"runs/{name}/trackers/mlflow-0.json").write_text('{"lines": 2}')
    client_of(server).delete_run(remote_id(folder / "runs/deleted"))
    printed = sync("--timeout", "1", "runs/deleted", "runs/other", cwd=folder, check=1)
    assert printed == "runs/deleted: not everything could be sent\nruns/other: everything sent\n"


def test_an_experiment_id_takes_precedence_over_a_name(folder, server, monkeypatch):
    experiment = client_of(server).create_experiment("by id")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by name")
    dsv3_run("tiny.yaml", "--run_name", "chosen", "train.steps=2", "schedule.warmup=1", cwd=folder)
    assert client_of(server).get_run(remote_id(folder / "runs/chosen")).info.experiment_id == experiment


def test_without_an_address_metrics_stay_in_the_run_folder(folder, server, monkeypatch):
    url = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    done = dsv3_run("tiny.yaml", "--run_name", "local", "train.steps=4", "schedule.warmup=1", cwd=folder)
    assert done.stderr.count("tracker 'mlflow' is not used: no MLflow server is set") == 1
    assert "no MLflow server is set" in sync("runs/local", cwd=folder, check=2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    assert sync("--all", cwd=folder) == "runs/local: everything sent\n"
    require_same_metrics(client_of(server), folder / "runs/local")


def test_the_plugin_keeps_every_promise_of_a_tracker(folder, server):
    done = subprocess.run([DSV3, "plugins", "check", "tracker/mlflow", "--set", f"uri={server.url}"], cwd=folder, text=True,
                          capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok    journal" in done.stdout and "skip" not in done.stdout
