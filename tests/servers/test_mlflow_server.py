"""The servers that other tests rely on start, keep their data and end completely."""

import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

from mlflow_server import MlflowServer, free_port

ROOT = pathlib.Path(__file__).resolve().parents[2]


def processes_of_session(leader):
    """Return the processes that still run in a session."""
    found = []
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = status.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # has ended
        if int(session) == leader and state != "Z":
            found.append(int(status.parent.name))
    return found


def client_of(url):
    mlflow = pytest.importorskip("mlflow", reason="requirements-mlflow.txt is not installed")
    return mlflow.MlflowClient(tracking_uri=url)


def test_the_pinned_server_answers(mlflow_server):
    client = client_of(mlflow_server.url)
    run = client.create_run(client.create_experiment("servers"))
    client.log_metric(run.info.run_id, "train/loss", float("nan"), step=3)
    client.log_text(run.info.run_id, "text", "folder/file.txt")
    (point,) = client.get_metric_history(run.info.run_id, "train/loss")
    assert point.step == 3 and point.value != point.value
    assert [file.path for file in client.list_artifacts(run.info.run_id, "folder")] == ["folder/file.txt"]
    assert list((mlflow_server.folder / "artifacts").rglob("file.txt")), "artifacts are not in the temporary folder"


def test_a_server_ends_completely_and_keeps_its_data(tmp_path):
    server = MlflowServer(tmp_path)
    server.start()
    try:
        session = server.process.pid
        assert len(processes_of_session(session)) >= 2  # the worker is a child
        client_of(server.url).create_experiment("kept")
        server.stop()
        assert not processes_of_session(session)
        assert not server.is_healthy()
        server.start()
        assert client_of(server.url).get_experiment_by_name("kept")
    finally:
        server.stop()


def test_a_server_that_cannot_start_is_reported_with_its_log(tmp_path):
    server = MlflowServer(tmp_path, "--no-such-option")
    with pytest.raises(RuntimeError, match="no-such-option"):
        server.start()


def test_tools_dev_starts_a_server_until_ctrl_c(tmp_path):
    """A copy of tools/dev, so that the data is not in the source tree."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/dev").write_bytes((ROOT / "tools/dev").read_bytes())
    for file in ROOT.glob("requirements*.txt"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    port = free_port()
    process = subprocess.Popen(["bash", tmp_path / "tools/dev", "mlflow", "--port", str(port)], start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        printed = ""
        for line in process.stdout:
            printed += line
            if re.search(rf"MLflow runs at http://127\.0\.0\.1:{port}\b", line):
                break
        else:
            pytest.fail(f"no address was printed:\n{printed}")
        client_of(f"http://127.0.0.1:{port}").create_experiment("local")
        assert (tmp_path / "mlruns/mlflow.db").exists()
        again = subprocess.run(["bash", tmp_path / "tools/dev", "mlflow", "--port", str(port)], capture_output=True,
                               text=True)
        assert again.returncode == 1 and "is in use" in again.stderr
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.communicate(timeout=60)
        deadline = time.monotonic() + 20
        while processes_of_session(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not processes_of_session(process.pid)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
