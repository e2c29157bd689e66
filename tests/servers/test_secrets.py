"""Secrets stay where they are set: no file, request, command line, output or other program gets them."""

import base64
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from fake_mlflow import FakeMlflow

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from support import BUILD, RUN, make_tiny  # noqa: E402

DSV3 = BUILD / "bin/dsv3"
PLACES = ["experiment", "prompt", "config.yaml", ".env", "login", "unused login", "other variable", "git"]
CANARIES = {place: f"canary{i}x{os.urandom(8).hex()}" for i, place in enumerate(PLACES)}
USER = "somebody"
# Records what it was started with, and then is git.
GIT = """\
#!/bin/sh
{ env; echo "argument $*"; } >>"$(dirname "$0")/started"
exec /usr/bin/git "$@"
"""


def encodings():
    for canary in CANARIES.values():
        yield canary.encode()
        yield base64.b64encode(f"{USER}:{canary}".encode())


def assert_no_secret(content, place):
    if isinstance(content, str):
        content = content.encode()
    assert not any(text in content for text in encodings()), place


class CommandLines(threading.Thread):
    """Reads the command lines of all processes until stop(), and keeps those that contain a secret."""

    def __init__(self):
        super().__init__(daemon=True)
        self.leaks, self.programs, self.ended = set(), set(), threading.Event()

    def run(self):
        while not self.ended.wait(0.01):
            for process in pathlib.Path("/proc").glob("[0-9]*"):
                try:
                    words = (process / "cmdline").read_bytes()
                except OSError:
                    continue  # it has ended
                self.programs.add(words.split(b"\0")[0])
                if any(text in words for text in encodings()):
                    self.leaks.add(words)

    def stop(self):
        self.ended.set()
        self.join()


@pytest.fixture
def place(tmp_path):
    """A folder with secrets in every place that may contain one."""
    experiment = make_tiny(tmp_path)
    experiment.write_text(experiment.read_text().replace("tracker: [{plugin: csv}]", "tracker: [mlflow, tensorboard, csv]")
                          .replace("samples: {every: 0}", "samples: {every: 10, tokens: 4, prompts: ['${env:PROMPT}']}")
                          + "tags: {note: 'by ${env:NOTE}'}\n")
    (tmp_path / ".env").write_text("MLFLOW_TRACKING_URI=http://127.0.0.1:9\n"
                                   f"MLFLOW_TRACKING_TOKEN={CANARIES['.env']}\n")
    (tmp_path / "config.yaml").write_text(f"databricks_host: https://127.0.0.1:9\ndatabricks_token: {CANARIES['config.yaml']}\n")
    for name in ".env", "config.yaml":
        (tmp_path / name).chmod(0o600)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "git").write_text(GIT)
    (programs / "git").chmod(0o755)
    subprocess.run("git init -q && git add text.txt && git -c user.name=a -c user.email=a@b commit -q -m first && "
                   f"git remote add origin https://{USER}:{CANARIES['git']}@example.com/x.git", shell=True, cwd=tmp_path, check=True)
    return tmp_path


def environment_for(folder, url):
    names = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DATABRICKS_"))}
    return names | {"PATH": f"{folder / 'programs'}:{os.environ['PATH']}", "MLFLOW_TRACKING_URI": url,
                    "MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": CANARIES["login"],
                    "DATABRICKS_CLIENT_SECRET": CANARIES["unused login"], "LICENCE": CANARIES["other variable"],
                    "NOTE": CANARIES["experiment"], "PROMPT": CANARIES["prompt"]}


def commands(folder):
    """Every command that shows or copies what a run has stored."""
    yield [RUN, "tiny.yaml", "--run_name", "secrets", "strategy=ddp", "--num_gpus", "2"]
    yield [RUN, "--run_id", "secrets", "train.steps=33", "--num_gpus", "2"]
    (folder / "runs/secrets/trackers/mlflow-0.json").write_text('{"lines": 7}')
    yield [DSV3, "sync", "runs/secrets"]
    yield [DSV3, "runs", "--json"]
    yield [DSV3, "report", "runs", "--output", "report.html"]
    for format in "markdown", "csv":
        yield [DSV3, "compare", "runs/secrets", "tiny.yaml", "--format", format]
    yield [DSV3, "generate", "runs/secrets", "--prompt", "a", "--tokens", "2"]
    yield [DSV3, "export", "runs/secrets", "exported", "--no-mtp"]
    yield [RUN, "tiny.yaml", "--print-config"]
    yield [RUN, "tiny.yaml", "train.steps=none"]  # an error


def test_no_file_request_command_line_or_program_gets_a_secret(place):
    server, watcher = FakeMlflow(), CommandLines()
    watcher.start()
    try:
        environment = environment_for(place, server.url)
        for command in commands(place):
            done = subprocess.run(command, cwd=place, env=environment, capture_output=True, timeout=120)
            expected = 2 if command[-1] == "train.steps=none" else 0
            assert done.returncode == expected, (command, done.stdout, done.stderr)
            assert_no_secret(done.stdout + done.stderr, command)
    finally:
        watcher.stop()
        server.close()
    assert str(RUN).encode() in watcher.programs and not watcher.leaks

    sources = {place / ".env", place / "config.yaml", place / ".git/config"}
    files = {path for path in place.rglob("*") if path.is_file()} - sources
    names = {path.name for path in files}
    assert {"metrics.jsonl", "events.jsonl", "log.txt", "metrics.csv", "manifest.json", "provenance.json", "report.html",
            "config.json", "mlflow-0.store.json"} <= names and any("tfevents" in name for name in names), names
    for path in files:
        assert_no_secret(path.read_bytes(), path)

    assert any("/artifacts/" in request.path for request in server.requests) and server.runs
    for request in server.requests:
        assert_no_secret(request.body, request.path)
        headers = {name: value for name, value in request.headers.items() if name != "Authorization"}
        assert_no_secret(f"{request.path} {request.query} {headers}", request.path)
        login = base64.b64encode(f"{USER}:{CANARIES['login']}".encode()).decode()
        assert request.headers["Authorization"] == f"Basic {login}"

    # Ranks are this program, so they get the environment as it is. Other programs get what they need.
    started = (place / "programs/started").read_text()
    assert "PATH=" in started and "rev-parse HEAD" in started
    assert not any(f"{name}=" in started for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "LICENCE"))
