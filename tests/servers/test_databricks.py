"""Runs reach a Databricks workspace: logins, names, signed uploads, limits. The workspace is a fake one."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from fake_databricks import CLIENT, ME, SIGNATURE, TOKEN, WORKSPACE, FakeDatabricks, FakeStorage
from fake_mlflow import API, make_certificate, tls_context

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from support import BUILD, RUN, last_checkpoint, losses, make_tiny, tensors  # noqa: E402

STEPS = 6  # of each run
SECRETS = (TOKEN, CLIENT[1], SIGNATURE, "canary-oauth-")


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """(authority's certificate, TLS context of the servers)."""
    folder = tmp_path_factory.mktemp("tls")
    authority = make_certificate(folder, "authority")
    return authority[0], tls_context(*make_certificate(folder, issuer=authority))


@pytest.fixture
def workspace(tls, request):
    kind = getattr(request, "param", "AWS")
    server, store = FakeDatabricks(tls[1], kind), FakeStorage(tls[1], kind)
    server.storage, server.authority = store, tls[0]
    yield server
    server.close()
    store.close()


def train(folder, variables, tracker="mlflow", code=0, files=(), settings=()):
    experiment = make_tiny(folder)
    experiment.write_text(experiment.read_text().replace("{plugin: csv}", tracker))
    for name, text in files:
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    return program(folder, variables, RUN, "tiny.yaml", f"train.steps={STEPS}", "--output", "runs", *settings, code=code)


def program(folder, variables, *command, code=0):
    """Run a program, and return what it prints for the user. No secret may appear anywhere."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("MLFLOW_", "DATABRICKS_"))} | {"HOME": str(folder)} | variables
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert not any(secret in done.stderr for secret in SECRETS), done.stderr
    for file in filter(pathlib.Path.is_file, (folder / "runs").rglob("*")):
        assert not any(secret.encode() in file.read_bytes() for secret in SECRETS), file
    return done.stderr


def login(workspace, **more):
    return {"DATABRICKS_HOST": workspace.url, "DATABRICKS_TOKEN": TOKEN, "DATABRICKS_WORKSPACE_ID": WORKSPACE,
            "MLFLOW_TRACKING_SERVER_CERT_PATH": str(workspace.authority)} | more


def only_run(workspace):
    assert not workspace.problems and not workspace.storage.problems
    run, = workspace.runs.values()
    assert run["info"]["status"] == "FINISHED" and run["params"]["train.steps"] == str(STEPS)
    return run


def names(workspace):
    return list(workspace.experiments)


def require_last_model(workspace, run, checkpoint):
    """Assert that the run's last model has the files of a checkpoint."""
    model = run["outputs"][-1]["model_id"]
    assert workspace.models[model]["status"] == "LOGGED_MODEL_READY"
    last = f"model {model}/"
    sent = {name.removeprefix(last): content for name, content in workspace.storage.files.items()
            if name.startswith(last)}
    assert sent == {file.name: file.read_bytes() for file in checkpoint.iterdir()}


@pytest.mark.parametrize("workspace", ["AWS", "GCP", "AZURE", "ADLS"], indirect=True)
def test_a_run_arrives_complete_in_each_cloud(tmp_path, workspace):
    error = train(tmp_path, login(workspace), "{plugin: mlflow, checkpoints: last}")
    assert " warning " not in error, error
    run = only_run(workspace)
    folder, = (tmp_path / "runs").iterdir()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = {(row["step"], key) for row in rows for key in row if key not in ("step", "tokens", "time")}
    # A metric of a checkpoint's logged model is stored once more.
    assert {(point["step"], point["key"]) for point in run["metrics"]} == expected
    assert names(workspace) == [f"/Users/{ME}/dsv3"]
    files = workspace.storage.files
    prefix = f"run {run['info']['run_id']}/"
    assert files[prefix + "config.yaml"] == (folder / "config.yaml").read_bytes()
    require_last_model(workspace, run, folder / f"checkpoints/step-{STEPS}")
    assert f"MLflow run {workspace.url}/ml/experiments/1/runs/" in error


LARGE = ["model.hidden=512", "train.steps=3", "schedule.warmup=1", "checkpoint.every=3"]
PART = 5 << 20  # bytes, the smallest one that Amazon accepts
TRACKER = "{plugin: mlflow, checkpoints: last}"


def train_large(folder, workspace):
    """Train a model whose checkpoint has at least three parts. Return what dsv3-run prints, and the checkpoint."""
    variables = login(workspace, MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE=str(PART),
                      MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE=str(PART))
    error = train(folder, variables, TRACKER, settings=LARGE)
    checkpoint, = (folder / "runs").glob("*/checkpoints/step-3")
    assert max(file.stat().st_size for file in checkpoint.iterdir()) > 2 * PART
    return error, checkpoint


@pytest.mark.parametrize("workspace", ["AWS", "AZURE", "ADLS"], indirect=True)
@pytest.mark.parametrize("expires", [False, True])
def test_large_files_are_sent_in_parts(tmp_path, workspace, expires):
    """With `expires`, the address of every second request with a whole part has expired."""
    parts = []

    def expired(request):
        if len(request.body) == PART:
            parts.append(request.query)
        return expires and len(request.body) == PART and len(parts) % 2 == 1

    workspace.storage.largest, workspace.storage.expired = PART, expired
    error, checkpoint = train_large(tmp_path, workspace)
    assert " warning " not in error, error
    run, = workspace.runs.values()
    require_last_model(workspace, run, checkpoint)
    assert not workspace.problems and not workspace.storage.problems and not workspace.storage.uploads
    assert len(parts) >= (4 if expires else 2)


def test_an_upload_that_fails_leaves_no_parts_and_is_repeated(tmp_path, workspace):
    workspace.storage.expired = lambda request: request.query.get("partNumber") == "2"
    error, checkpoint = train_large(tmp_path, workspace)
    assert "answered 403 to a transfer" in error
    assert any(request.method == "DELETE" for request in workspace.storage.requests)
    assert not workspace.storage.uploads
    workspace.storage.expired = lambda request: False
    program(tmp_path, login(workspace), BUILD / "bin/dsv3", "sync", checkpoint.parents[1])
    run, = workspace.runs.values()
    require_last_model(workspace, run, checkpoint)


def test_sizes_that_are_no_numbers_end_the_run(tmp_path, workspace):
    error = train(tmp_path, login(workspace, MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE="10MB"), code=2)
    assert "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE is '10MB', which is not a number of bytes" in error


@pytest.mark.parametrize("workspace", ["AWS", "GCP", "AZURE", "ADLS"], indirect=True)
def test_a_run_continues_on_another_machine_by_its_id(tmp_path, workspace):
    """The resumed run ends with the weights of a run that was never interrupted."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    constant = ["schedule.plugin=constant", "checkpoint.every=3", "validation.every=3"]
    train(first, login(workspace), TRACKER, settings=[*constant, "--run_name", "moved"])
    identity, = workspace.runs
    make_tiny(second)
    error = program(second, login(workspace), RUN, "--run_id", identity, "train.steps=9", f"data.path={second}/text.txt")
    assert "downloaded run runs/moved to resume it" in error
    train(first, {}, "csv", settings=[*constant, "train.steps=9", "--run_name", "reference"])
    moved, reference = second / "runs/moved", first / "runs/reference"
    assert tensors(last_checkpoint(moved)) == tensors(last_checkpoint(reference))
    assert losses(moved) == losses(reference)
    run, = workspace.runs.values()
    steps = sorted(point["step"] for point in run["metrics"] if point["key"] == "train/loss")
    assert steps == list(range(1, 10))
    require_last_model(workspace, run, moved / "checkpoints/step-9")
    assert not workspace.problems and not workspace.storage.problems


@pytest.mark.parametrize("mode", ["DEFAULT_STORAGE", "CUSTOMER_HOSTED"])
def test_checkpoints_become_versions_in_unity_catalog(tmp_path, workspace, mode):
    workspace.storage_mode = mode
    error = train(tmp_path, login(workspace, DATABRICKS_UNITY_CATALOG="main.research"),
                  "{plugin: mlflow, checkpoints: last, model: nano}")
    assert " warning " not in error, error
    only_run(workspace)
    versions = workspace.versions["main.research.nano"]
    assert {version["status"] for version in versions} == {"READY"}
    assert workspace.aliases == {"last": str(len(versions))}
    folder = f"/Models/main/research/nano/{len(versions)}/"
    stored = workspace.storage.files if mode == "DEFAULT_STORAGE" else workspace.catalog
    sent = {name.removeprefix(folder): content for name, content in stored.items() if name.startswith(folder)}
    checkpoint, = (tmp_path / "runs").glob(f"*/checkpoints/step-{STEPS}")
    model = sent.pop("MLmodel")
    assert sent == {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    # The catalog's own client must be able to read it.
    mlflow = pytest.importorskip("mlflow", reason="requirements-mlflow.txt is not installed")
    (tmp_path / "MLmodel").write_bytes(model)
    signature = mlflow.models.Model.load(str(tmp_path)).signature
    assert signature.inputs.is_tensor_spec() and signature.outputs.is_tensor_spec()


def test_traces_go_to_tables_in_unity_catalog(tmp_path, workspace):
    pytest.importorskip("opentelemetry.proto", reason="requirements-mlflow.txt is not installed")
    variables = login(workspace, DATABRICKS_UNITY_CATALOG="main.research", MLFLOW_TRACING_SQL_WAREHOUSE_ID="w1")
    for _ in range(2):  # the second run finds the tables
        error = train(tmp_path, variables)
        assert " warning " not in error, error
    assert not workspace.problems and workspace.locations == {"1": "main.research"} and workspace.warehouse == "w1"
    assert {place for place, _, _ in workspace.spans} == {"main.research.mlflow_experiment_trace_otel_spans"}
    traces = {trace for _, _, trace in workspace.spans}
    assert len(traces) == 6 and set(workspace.linked) == traces and set(workspace.linked.values()) == set(workspace.runs)


def test_traces_stay_in_the_run_folder_without_unity_catalog(tmp_path, workspace):
    error = train(tmp_path, login(workspace))
    assert error.count("traces stay in the run folder") == 1 and "DATABRICKS_UNITY_CATALOG" in error
    only_run(workspace)
    assert not workspace.spans and not list((tmp_path / "runs").glob("*/trackers/*.rejected.jsonl"))


@pytest.mark.parametrize("name", ["nano", "a.b.c.d", "a..c", "a.b.c/../d", "a.b c.d"])
def test_a_name_that_unity_catalog_does_not_accept_ends_the_run(tmp_path, workspace, name):
    error = train(tmp_path, login(workspace), f'{{plugin: mlflow, checkpoints: last, model: "{name}"}}', code=2)
    assert "CATALOG.SCHEMA.MODEL" in error and not workspace.requests


@pytest.mark.parametrize("uri", ["", "databricks"])
def test_the_seeds_config_file_is_enough(tmp_path, workspace, uri):
    config = (f"databricks_host: {workspace.url}/?o={WORKSPACE}\ndatabricks_token: {TOKEN}\nworkspace_id: {WORKSPACE}\n"
              f"experiment_name: /Shared/nano\nrun_id: null\nunity_catalog: null\n")
    tracker = f"{{plugin: mlflow, uri: {uri}}}" if uri else "mlflow"
    # The certificate can only be named in the place that names the host; a system's store has real ones.
    error = train(tmp_path, {}, tracker, code=2, files=[("config.yaml", config)])
    assert "TLS failed" in error and "run_id" not in error
    environment = f"DATABRICKS_HOST={workspace.url}\nDATABRICKS_TOKEN={TOKEN}\n" \
                  f"MLFLOW_TRACKING_SERVER_CERT_PATH={workspace.authority}\n"
    train(tmp_path, {}, tracker, files=[(".env", environment), ("config.yaml", config)])
    only_run(workspace)
    assert names(workspace) == ["/Shared/nano"]


EMPTY_CONFIG = "".join(f"{key}: null\n" for key in (
    "databricks_host", "databricks_token", "experiment_name", "workspace_id", "run_id", "unity_catalog"))


def env_file(line, workspace, **more):
    values = {"DATABRICKS_HOST": "", "DATABRICKS_TOKEN": "", "MLFLOW_EXPERIMENT_ID": "",
              "MLFLOW_TRACKING_URI": "databricks"} | login(workspace) | more
    return line.format("# Databricks", "").replace("=", "") + "".join(line.format(*entry) for entry in values.items())


@pytest.mark.parametrize("line", ["{}={}\n", "export {}=\"{}\"\n", "  {} = '{}'   # a comment\n", "{}={}\r\n", "{}={} # a comment\r\n"])
def test_the_seeds_files_load_unchanged(tmp_path, workspace, line):
    error = train(tmp_path, {}, files=[(".env", env_file(line, workspace)), ("config.yaml", EMPTY_CONFIG)])
    assert " warning " not in error, error
    only_run(workspace)
    assert names(workspace) == [f"/Users/{ME}/dsv3"]


def test_the_seeds_files_without_values_send_nothing(tmp_path, workspace):
    environment = env_file("{}={}\n", workspace, DATABRICKS_HOST="", DATABRICKS_TOKEN="")
    error = train(tmp_path, {}, files=[(".env", environment), ("config.yaml", EMPTY_CONFIG)])
    assert error.count("metrics stay in the run folder") == 1 and not workspace.requests


def test_the_seeds_experiment_id_takes_precedence_over_the_name(tmp_path, workspace):
    experiment = workspace.new_experiment("/Shared/by id")
    config = EMPTY_CONFIG.replace("experiment_name: null", "experiment_name: /Shared/by name")
    environment = env_file("{}={}\n", workspace, MLFLOW_EXPERIMENT_ID=experiment)
    train(tmp_path, {}, files=[(".env", environment), ("config.yaml", config)])
    assert only_run(workspace)["info"]["experiment_id"] == experiment and names(workspace) == ["/Shared/by id"]


@pytest.mark.parametrize("profile", ["DEFAULT", "work"])
def test_a_profile_names_host_and_login(tmp_path, workspace, profile):
    text = f"[other]\nhost = https://192.0.2.1\ntoken = x\n\n[{profile}]\nhost = {workspace.url}\ntoken={TOKEN}\n" \
           f"workspace_id = {WORKSPACE}\n"
    uri = "databricks" if profile == "DEFAULT" else "databricks://work"
    train(tmp_path, {"MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_SERVER_CERT_PATH": str(workspace.authority)},
          files=[(".databrickscfg", text)])
    only_run(workspace)
    error = train(tmp_path, {"MLFLOW_TRACKING_URI": "databricks://absent"}, code=2)
    assert "profile 'absent'" in error


def test_a_service_principal_renews_its_token(tmp_path, workspace):
    workspace.token_seconds = 40  # the plugin renews it 40 s before its end, so for each request
    variables = login(workspace, DATABRICKS_CLIENT_ID=CLIENT[0], DATABRICKS_CLIENT_SECRET=CLIENT[1])
    del variables["DATABRICKS_TOKEN"]
    train(tmp_path, variables)
    only_run(workspace)
    assert len(workspace.tokens) > 10


def test_a_token_is_used_until_shortly_before_its_end(tmp_path, workspace):
    variables = login(workspace, DATABRICKS_CLIENT_ID=CLIENT[0], DATABRICKS_CLIENT_SECRET=CLIENT[1])
    del variables["DATABRICKS_TOKEN"]
    train(tmp_path, variables)
    only_run(workspace)
    assert len(workspace.tokens) <= 1 + 3  # the check, and the threads for metrics and files


@pytest.mark.parametrize("variables, text", [
    ({"DATABRICKS_TOKEN": "wrong-token-1"}, "set a valid DATABRICKS_TOKEN"),
    ({"DATABRICKS_TOKEN": "", "DATABRICKS_CLIENT_ID": "a", "DATABRICKS_CLIENT_SECRET": "b-secret"}, "answered 401"),
    ({"MLFLOW_EXPERIMENT_NAME": "/Shared/absent/nano"}, "workspace folder '/Shared/absent'"),
    ({"MLFLOW_EXPERIMENT_ID": "77"}, "correct MLFLOW_EXPERIMENT_ID"),
    ({"DATABRICKS_WORKSPACE_ID": "my-workspace"}, "is not a number"),
    ({"DATABRICKS_HOST": "http://192.0.2.1"}, "readable on the network"),
])
def test_settings_that_cannot_work_end_the_run_before_the_first_step(tmp_path, workspace, variables, text):
    error = train(tmp_path, login(workspace, **variables), code=2)
    assert text in error and f"step 1/{STEPS}" not in error


def test_the_experiments_id_wins_over_its_name(tmp_path, workspace):
    id = workspace.new_experiment("/Shared/known")
    train(tmp_path, login(workspace, MLFLOW_EXPERIMENT_ID=id, MLFLOW_EXPERIMENT_NAME="/Shared/absent/x"))
    assert only_run(workspace)["info"]["experiment_id"] == id
    assert names(workspace) == ["/Shared/known"]


@pytest.mark.parametrize("variables", [{"MLFLOW_TRACKING_URI": "databricks"}, {"DATABRICKS_HOST": "https://192.0.2.1"},
                                       {"DATABRICKS_TOKEN": TOKEN}])
def test_without_host_or_token_a_run_stays_local_and_says_so_in_one_line(tmp_path, variables):
    error = train(tmp_path, variables)
    assert error.count("metrics stay in the run folder") == 1 and f"step {STEPS}/{STEPS}" in error


def test_a_login_of_another_place_is_not_used(tmp_path, workspace):
    """The .env file of a cloned project must not direct the user's token to a host of its own."""
    variables = {"DATABRICKS_TOKEN": TOKEN, "MLFLOW_TRACKING_SERVER_CERT_PATH": str(workspace.authority)}
    error = train(tmp_path, variables, files=[(".env", f"DATABRICKS_HOST={workspace.url}\n")])
    assert "only with a host from the same place" in error and not workspace.requests


def test_a_rate_limit_delays_requests(tmp_path, workspace):
    limited = []

    def fault(request):
        if request.path != API + "runs/create" or limited:
            return False
        limited.append(request)
        request.answer(429, {"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "slow"}, Retry_After="1")
        return True
    workspace.fault = fault
    train(tmp_path, login(workspace))
    assert limited and only_run(workspace)


def test_signed_addresses_are_not_reported(tmp_path, workspace):
    """An object store's answer may quote the signature: train() looks for it."""
    workspace.storage.kind = "AZURE"  # rejects what is sent for AWS
    error = train(tmp_path, login(workspace))
    assert "answered 403 to a transfer" in error


def test_the_shipped_example_becomes_a_valid_env_file(tmp_path, workspace):
    """A user removes the # in front of some lines, and leaves some values empty."""
    example = (pathlib.Path(__file__).resolve().parents[2] / ".env.example").read_text()
    values = {"DATABRICKS_HOST": workspace.url, "DATABRICKS_TOKEN": f"{TOKEN}   # mine", "DATABRICKS_CLIENT_ID": "  # none",
              "MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_SERVER_CERT_PATH": workspace.authority,
              "DATABRICKS_WORKSPACE_ID": WORKSPACE, "MLFLOW_EXPERIMENT_NAME": "dsv3", "MLFLOW_EXPERIMENT_ID": "   # unset"}
    lines = []
    for line in example.splitlines():
        name = line.removeprefix("# ").partition("=")[0]
        lines.append(f"{name}={values.pop(name)}" if name in values else line)
    assert not values, "not in .env.example"
    train(tmp_path, {}, files=[(".env", "\n".join(lines) + "\n")])
    only_run(workspace)
