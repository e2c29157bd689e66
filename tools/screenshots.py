"""Make the pictures of docs/images: train variants of the quick start, and photograph their report and MLflow's pages.

    screenshots.py BIN FOLDER [--runs RUNS]

BIN contains dsv3-run and dsv3, and FOLDER receives the pictures. An MLflow server that exists only for the pictures gets
the runs. With --runs, photographs only the report, of the runs in this folder, instead of training new ones, which takes
several minutes. Needs Debian's chromium and pngquant, and the wheels of requirements-mlflow.txt.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

from browser import Browser

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETTINGS = ["train.steps=120", "train.batch=4", "train.log_every=1", "validation.every=20", "samples.every=40",
            "checkpoint.every=60", "callback=health", "tracker=mlflow"]
VARIANTS = {
    "mla-adamw": [], "mla-muon": ["optimizer=muon"], "mla-muon-seed-2": ["optimizer=muon", "train.seed=2"],
    "mha-adamw": ["attention=mha"], "mha-muon": ["attention=mha", "optimizer=muon"],
}
COMPARED = ["mla-adamw", "mla-muon", "mha-adamw"]  # in MLflow
# Name, width and height of the window, and colour scheme.
REPORTS = [("report", 1200, 1000, "light"), ("report-dark", 1200, 1000, "dark"), ("report-phone", 400, 1000, "light")]


@contextlib.contextmanager
def mlflow_server(folder):
    """Start a server, and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", "--backend-store-uri",
         f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", folder / "artifacts"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        while not is_healthy(url):
            if server.poll() is not None:
                sys.exit("screenshots: error: the MLflow server does not start")
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # it has a worker
        server.wait()


def is_healthy(url):
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(url + "/health", timeout=5).status == 200
    return False


def train(programs, runs, url):
    """Train the variants. MLflow gets them in two experiments."""
    for name, settings in VARIANTS.items():
        print(f"screenshots: training {name}", file=sys.stderr)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        environment |= {"MLFLOW_TRACKING_URI": url, "MLFLOW_EXPERIMENT_NAME": "quickstart" if name in COMPARED else "more"}
        subprocess.run([programs / "dsv3-run", "experiments/quickstart.yaml", *SETTINGS, *settings, "--run_name", name,
                        "--output", runs, "--quiet"], cwd=ROOT, env=environment, check=True)


def photograph_reports(browser, page, images):
    for name, width, height, scheme in REPORTS:
        browser.resize(width, height, scheme)
        browser.open(page.as_uri())
        browser.wait("document.readyState == 'complete'")
        browser.photograph(images / f"{name}.png")


def click(browser, component):
    browser.evaluate(f"document.querySelector('[data-component-id=\"{component}\"]').click()")


def photograph_mlflow(browser, url, runs, images):
    """Photograph MLflow's charts of the runs' losses, and its comparison of the runs."""
    stores = [json.loads((runs / name / "trackers/mlflow-0.store.json").read_text()) for name in COMPARED]
    experiment = "1"  # the first one on a new server
    browser.resize(1200, 1140)
    browser.open(f"{url}/#/experiments/{experiment}/runs?compareRunsMode=CHART")
    browser.wait("document.querySelector('[data-component-id=\"mlflow.assistant.chat_panel.close\"]')")
    click(browser, "mlflow.assistant.chat_panel.close")
    click(browser, "mlflow_header.toggle_sidebar_button")
    search = "document.querySelector('input[placeholder=\"Search metric charts\"]')"
    browser.wait(search)
    browser.evaluate(search + ".focus()")
    browser.write("loss")
    browser.wait("document.querySelectorAll('.main-svg .scatterlayer .trace').length >= 4 * 3")
    browser.photograph(images / "mlflow-charts.png")
    query = urllib.parse.urlencode({"runs": json.dumps([store["id"] for store in stores]),
                                    "experiments": json.dumps([experiment])})
    browser.resize(1200, 1000)
    browser.open(f"{url}/#/compare-runs?{query}")
    browser.wait("document.querySelector('.parcoords')")
    browser.photograph(images / "mlflow-compare.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", type=pathlib.Path, metavar="BIN")
    parser.add_argument("images", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--runs", type=pathlib.Path)
    arguments = parser.parse_args()
    programs, images = arguments.programs.absolute(), arguments.images.absolute()
    images.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, Browser() as browser:
        folder = pathlib.Path(temporary)
        runs = arguments.runs or folder / "runs"
        if not arguments.runs:
            with mlflow_server(folder) as url:
                train(programs, runs, url)
                photograph_mlflow(browser, url, runs, images)
        page = folder / "report.html"
        subprocess.run([programs / "dsv3", "report", runs, "--title", "Quick start: attention and optimizer", "--output",
                        page], check=True)
        photograph_reports(browser, page, images)


main()
