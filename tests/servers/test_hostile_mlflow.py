"""Training survives MLflow servers that misbehave, and no credential reaches another server.

Settings that can never work end the run before its first step (exit 2): a wrong login, an untrusted certificate, an
address that is not that of MLflow. Whatever may pass costs nothing but a warning: the rest is sent by `dsv3 sync`.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

from fake_mlflow import API, ClosingServer, FakeMlflow, make_certificate, tls_context

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from support import BUILD, RUN, make_tiny  # noqa: E402

# By the place that sets them.
CANARIES = {"environment": "canary-in-environment-9131", ".env": "canary-in-dotenv-5527", "config.yaml": "canary-in-config-7713"}
USER = "canary-user"
END_SECONDS = 10  # the promise


@dataclasses.dataclass
class Outcome:
    code: int
    error: str
    seconds_after_last_step: float
    run: pathlib.Path
    server: object
    synced: subprocess.CompletedProcess = None
    other: object = None  # the server that must receive nothing

    def warnings(self):
        return [line for line in self.error.splitlines() if " warning " in line]


def environment_for(url, **more):
    names = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DATABRICKS_"))}
    return names | {"MLFLOW_TRACKING_URI": url, "MLFLOW_TRACKING_USERNAME": USER,
                    "MLFLOW_TRACKING_PASSWORD": CANARIES["environment"], **more}


def write_settings(folder, other_url):
    """Other places have logins of their own, for another server."""
    (folder / ".env").write_text(f"MLFLOW_TRACKING_URI={other_url}\nMLFLOW_TRACKING_TOKEN={CANARIES['.env']}\n")
    (folder / ".env").chmod(0o600)
    (folder / "config.yaml").write_text(f"tracking_uri: {other_url}\ndatabricks_token: {CANARIES['config.yaml']}\n")
    (folder / "config.yaml").chmod(0o600)


def train(folder, server, other=None, sync=False, **variables):
    """Run the tiny experiment with the server, and then send what is left when the server has no fault any more."""
    folder.mkdir(parents=True)
    experiment = make_tiny(folder)
    experiment.write_text(experiment.read_text().replace("tracker: [{plugin: csv}]", "tracker: [mlflow]"))
    write_settings(folder, other.url if other else "https://127.0.0.1:9")
    environment = environment_for(server.url, **variables)
    done = subprocess.run([RUN, "tiny.yaml", "--output", "runs"], cwd=folder, env=environment, text=True,
                          capture_output=True, timeout=120)
    ended = time.time()
    runs = list((folder / "runs").glob("tiny*"))
    outcome = Outcome(done.returncode, done.stderr, 0, runs[0] if runs else None, server, other=other)
    if done.returncode == 0:
        last = json.loads((outcome.run / "metrics.jsonl").read_text().splitlines()[-1])
        outcome.seconds_after_last_step = ended - last["time"]
    if sync:
        server.fault = None
        outcome.synced = subprocess.run([BUILD / "bin/dsv3", "sync", outcome.run, "--timeout", "60"], cwd=folder,
                                        env=environment, text=True, capture_output=True, timeout=120)
    return outcome


# Faults ------------------------------------------------------------------------------------------


def answer(status, body, content_type="text/html", **headers):
    def fault(request):
        request.answer(status, body, content_type, **headers)
        return True
    return fault


def after_check(fault):
    """The server is sound until the run has found out whether its experiment exists."""
    def delayed(request):
        first = request.path == API + "experiments/get-by-name" and not delayed.checked
        delayed.checked = True
        return False if first else fault(request)
    delayed.checked = False
    return delayed


def endless(request):
    request.client.send_response(200)
    request.client.end_headers()
    while True:
        request.client.wfile.write(b" " * 1000)
        time.sleep(0.05)


def cut(request):
    request.client.send_response(200)
    request.client.send_header("Content-Length", "1000")
    request.client.end_headers()
    request.client.wfile.write(b'{"run":')
    request.client.close_connection = True
    return True


def late(request):
    request.client.server.wait(30)
    return False


def only(endpoint, fault):
    return lambda request: request.path == API + endpoint and fault(request)


def wrong_run(**info):
    """runs/create stores the run, and answers with other values."""
    def fault(request):
        body = {"run_id": "a" * 32, "experiment_id": "1", "artifact_uri": "mlflow-artifacts:/1/a/artifacts",
                "lifecycle_stage": "active"} | info
        request.answer(200, {"run": {"info": body, "data": {}}})
        return True
    return only("runs/create", fault)


def in_turn(*faults):
    def fault(request):
        fault.count += 1
        return faults[fault.count % len(faults)](request)
    fault.count = -1
    return fault


DEEP = '{"run":' * 100_000 + "0" + "}" * 100_000
HOSTILE = {
    "huge body": answer(200, b"{" + b" " * (20 << 20) + b"}", "application/json"),
    "endless body": endless,
    "deep JSON": in_turn(answer(200, DEEP, "application/json"), answer(400, DEEP, "application/json")),
    "HTML 500": answer(500, "<html>" + "down " * 1000),
    "HTML 200": answer(200, "<html>welcome</html>"),
    "redirect": None,  # to the other server, set below
    "run ids": in_turn(*[wrong_run(run_id=value) for value in
                         (7, "", None, "../../x", "a/b", "a\n12:00:00 error x", "x" * (4 << 20), ["a"])]),
    "artifact_uri": in_turn(*[wrong_run(artifact_uri=value) for value in
                              ("mlflow-artifacts:/../../etc", "mlflow-artifacts:/1/%2e%2e/x", 5, {"a": 1})]),
    "types": in_turn(*[answer(200, body, "application/json") for body in
                       ('{"run": []}', "[]", '"text"', "null", '{"run": {"info": 3}}', '{"experiment_id": {}}',
                        '{"runs": {}}', '{"runs": [[]]}', '{"run": {"info": {"run_id": true}}}')]),
    "late": late,
    "cut": cut,
    "429": answer(429, '{"error_code": "REQUEST_LIMIT_EXCEEDED"}', "application/json", Retry_After="3600"),
    "400": only("runs/log-batch", answer(400, '{"error_code": "BAD_REQUEST", "message": "no"}', "application/json")),
    "file store": wrong_run(artifact_uri="file:///etc"),
}


def run_case(folder, name, fault):
    other = FakeMlflow()
    if name == "redirect":
        fault = answer(307, "", Location=other.url + API + "runs/create")
    server = FakeMlflow(fault=after_check(fault))
    server.server.wait = server.ended.wait
    return train(folder / name.replace(" ", "-"), server, other, sync=True)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The outcome of each hostile case. They mostly wait, so they run at the same time."""
    folder = tmp_path_factory.mktemp("hostile")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        jobs = {name: pool.submit(run_case, folder, name, fault) for name, fault in HOSTILE.items()}
        results = {name: job.result() for name, job in jobs.items()}
    yield results
    for outcome in results.values():
        outcome.server.close()
        outcome.other.close()


def assert_no_secret(outcome):
    for file in filter(pathlib.Path.is_file, outcome.run.rglob("*")):
        assert not any(canary.encode() in file.read_bytes() for canary in CANARIES.values()), file
    assert not any(canary in outcome.error for canary in CANARIES.values())
    for request in outcome.server.requests:
        for canary in CANARIES.values():
            assert canary.encode() not in request.body and canary not in request.path
        shown = " ".join(f"{name}: {value}" for name, value in request.headers.items() if name != "Authorization")
        assert not any(canary in shown for canary in CANARIES.values())


@pytest.mark.parametrize("name", HOSTILE)
def test_training_survives_a_hostile_server(outcomes, name):
    outcome = outcomes[name]
    assert outcome.code == 0, outcome.error
    assert "step 30/30" in outcome.error
    # 3 s for the last checkpoint on a busy machine.
    assert outcome.seconds_after_last_step < END_SECONDS + 3, outcome.error
    assert sum("retrying" in line for line in outcome.warnings()) <= 2, outcome.warnings()  # metrics and files
    assert len(outcome.warnings()) <= 5 and max(map(len, outcome.warnings())) < 2000, outcome.warnings()
    assert not re.search(r"^12:00:00 error x", outcome.error, re.M)
    assert not outcome.other.requests, "another server received a request"
    assert_no_secret(outcome)


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "file store"])
def test_what_a_hostile_server_missed_is_sent_later(outcomes, name):
    outcome = outcomes[name]
    assert outcome.synced.returncode == 0, outcome.synced.stdout + outcome.synced.stderr
    stored = {json.loads((outcome.run / "trackers/mlflow-0.store.json").read_text())["id"]}
    run, = [outcome.server.runs[id] for id in stored]
    assert run["info"]["status"] == "FINISHED"
    rows = [json.loads(line) for line in (outcome.run / "metrics.jsonl").read_text().splitlines()]
    expected = sorted((row["step"], key) for row in rows for key in row if key not in ("step", "tokens", "time"))
    assert sorted((point["step"], point["key"]) for point in run["metrics"]) == expected
    assert run["params"]["train.steps"] == "30" and len(run["inputs"]) >= 2
    assert any(path.endswith("/config.yaml") for path in outcome.server.files)
    assert not list(outcome.run.glob("trackers/*rejected*"))


def test_files_stay_in_the_run_folder_if_the_server_does_not_serve_them(outcomes):
    assert not outcomes["file store"].server.files
    assert sum("does not serve its artifact store" in line for line in outcomes["file store"].warnings()) <= 1


@pytest.mark.parametrize("status", [400, 413])
def test_a_file_that_the_server_rejects_does_not_keep_others_waiting(tmp_path, status):
    def fault(request):
        if request.method != "PUT" or not request.path.endswith("/experiment.yaml"):
            return False
        request.answer(status, {"error_code": "INVALID_PARAMETER_VALUE", "message": "not this file"})
        return True
    server = FakeMlflow(fault=fault)
    try:
        outcome = train(tmp_path / "case", server)
        assert outcome.code == 0 and len(outcome.warnings()) == 1, outcome.error
        names = {path.rpartition("/")[2] for path in server.files}
        assert {"config.yaml", "log.txt", "metrics.jsonl"} <= names and "experiment.yaml" not in names
        rejected, = (outcome.run / "trackers/mlflow-0.rejected.jsonl").read_text().splitlines()
        assert json.loads(rejected)["entry"] == "experiment.yaml" and "not this file" in json.loads(rejected)["reason"]
    finally:
        server.close()


# Settings that cannot work -----------------------------------------------------------------------

REJECTED = {
    "401 HTML": (answer(401, "<html>login</html>"), "MLFLOW_TRACKING_USERNAME"),
    "403 host": (answer(403, '{"detail": "Invalid Host header"}'), "--allowed-hosts"),
    "407": (answer(407, "<html>proxy</html>"), "answered 407"),
    "login page": (answer(302, "", Location="/login"), "final address"),
    "404 HTML": (answer(404, "<html>not found</html>"), "address of an MLflow server"),
    "HTML": (answer(200, "<html>welcome</html>"), "not the address of an MLflow server"),
    "list": (answer(200, '{"experiment": []}', "application/json"), "not the address of an MLflow server"),
    "deep": (answer(200, DEEP, "application/json"), "not the address of an MLflow server"),
}


def assert_rejected(outcome, text):
    assert outcome.code == 2, outcome.error
    assert text in outcome.error and "step 1/30" not in outcome.error, outcome.error
    assert not any(canary in outcome.error for canary in CANARIES.values())


@pytest.mark.parametrize("name", REJECTED)
def test_a_server_that_can_never_work_ends_the_run_before_the_first_step(tmp_path, name):
    fault, text = REJECTED[name]
    server, other = FakeMlflow(fault=fault), FakeMlflow()
    try:
        assert_rejected(train(tmp_path / "case", server, other), text)
        assert not other.requests
    finally:
        server.close()
        other.close()


def test_an_unknown_experiment_id_ends_the_run_before_the_first_step(tmp_path):
    server = FakeMlflow()
    try:
        assert_rejected(train(tmp_path / "case", server, MLFLOW_EXPERIMENT_ID="77"), "correct MLFLOW_EXPERIMENT_ID")
    finally:
        server.close()


@pytest.mark.parametrize("fault", ["expired", "self-signed", "wrong host", "plain http"])
def test_a_certificate_that_is_not_trusted_ends_the_run(tmp_path, fault):
    authority = make_certificate(tmp_path, "authority")
    subject = "DNS:elsewhere.example" if fault == "wrong host" else "IP:127.0.0.1"
    server_files = make_certificate(tmp_path, "server", subject, days=-1 if fault == "expired" else 1, issuer=authority)
    if fault == "self-signed":
        server_files = make_certificate(tmp_path, "own")
    server = FakeMlflow(tls=None if fault == "plain http" else tls_context(*server_files))
    server.url = server.url.replace("http:", "https:")
    try:
        outcome = train(tmp_path / "case", server, MLFLOW_TRACKING_SERVER_CERT_PATH=str(authority[0]))
        assert_rejected(outcome, "MLFLOW_TRACKING_SERVER_CERT_PATH")
        assert not server.requests
    finally:
        server.close()


def test_a_trusted_certificate_works(tmp_path):
    authority = make_certificate(tmp_path, "authority")
    server = FakeMlflow(tls=tls_context(*make_certificate(tmp_path, issuer=authority)))
    try:
        outcome = train(tmp_path / "case", server, MLFLOW_TRACKING_SERVER_CERT_PATH=str(authority[0]))
        assert outcome.code == 0 and not outcome.warnings(), outcome.error
        assert next(iter(server.runs.values()))["info"]["status"] == "FINISHED"
        assert {request.headers["Authorization"].split()[0] for request in server.requests} == {"Basic"}
    finally:
        server.close()


def test_a_handshake_that_the_server_closes_does_not_end_the_run(tmp_path):
    """A load balancer without servers does this, and recovers."""
    server = ClosingServer()
    try:
        outcome = train(tmp_path / "case", server)
        assert outcome.code == 0 and "step 30/30" in outcome.error, outcome.error
        assert outcome.seconds_after_last_step < END_SECONDS + 3
    finally:
        server.close()


@pytest.mark.parametrize("address", ["ftp://user:canary-in-address@host", "https://user:canary-in-address@host",
                                     "http://192.0.2.1", "http://[", "https://host/?a=b", "databricksx"])
def test_an_address_that_cannot_work_is_reported_without_its_password(tmp_path, address):
    server = ClosingServer()
    server.url = address
    outcome = train(tmp_path / "case", server)
    assert outcome.code == 2 and "canary" not in outcome.error, outcome.error
    assert CANARIES["environment"] not in outcome.error
