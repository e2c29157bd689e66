"""One real MLflow server for all tests of a pytest run: `from mlflow_server import mlflow_server`, the fixture.

The module is not named mlflow, because its folder is on sys.path and would hide the package.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

START_SECONDS = 300  # 5 s on a quiet machine


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class MlflowServer:
    """`mlflow server` with SQLite and artifacts in `folder`. `url` is its address, without a final slash."""

    def __init__(self, folder, *options):
        self.folder, self.options = folder, options
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        """Start the server, or start it again with the same address and data."""
        # Without jobs: they take eight more processes and 0.8 GB. Variables of the user must not reach the server.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                   "--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
                   "--artifacts-destination", str(self.folder / "artifacts"), *self.options]
        with open(self.folder / "server.log", "ab") as log:
            # A session of its own, so that stop() reaches the worker, and Ctrl-C in the terminal only pytest.
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while not self.is_healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the MLflow server does not start:\n{self.log()}")
            time.sleep(0.1)

    def is_healthy(self):
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self):
        """End the server and its worker, at once if they do not end by themselves."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all have ended
        self.process.wait()
        self.process = None

    def log(self):
        return (self.folder / "server.log").read_text(errors="replace")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """A running server. Tests share it, so each test uses its own experiment."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()
