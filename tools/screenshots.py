"""Make the pictures of docs/images: train variants of the quick start, write their report, and photograph it.

    screenshots.py BIN FOLDER [--runs RUNS]

BIN contains dsv3-run and dsv3, and FOLDER receives report.png, report-dark.png and report-phone.png. With --runs, takes
the runs in this folder instead of training new ones, which takes several minutes. Needs Debian's chromium and pngquant.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETTINGS = ["train.steps=120", "train.batch=4", "train.log_every=1", "validation.every=20", "samples.every=40",
            "checkpoint.every=60", "callback=health"]
VARIANTS = {
    "mla-adamw": [], "mla-muon": ["optimizer=muon"], "mla-muon-seed-2": ["optimizer=muon", "train.seed=2"],
    "mha-adamw": ["attention=mha"], "mha-muon": ["attention=mha", "optimizer=muon"],
}
# Name, width and height of the window, and Chromium's number of the colour scheme.
PICTURES = [("report", 1200, 1000, 1), ("report-dark", 1200, 1000, 0), ("report-phone", 400, 1000, 1)]


def train(programs, runs):
    for name, settings in VARIANTS.items():
        print(f"screenshots: training {name}", file=sys.stderr)
        subprocess.run([programs / "dsv3-run", "experiments/quickstart.yaml", *SETTINGS, *settings, "--run_name", name,
                        "--output", runs, "--quiet"], cwd=ROOT, check=True)


def photograph(page, target, width, height, scheme):
    subprocess.run(["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                    f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={width},{height}",
                    "--virtual-time-budget=3000", f"--screenshot={target}", page.as_uri()],
                   check=True, capture_output=True)
    subprocess.run(["pngquant", "--force", "--strip", "--output", target, "64", target], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", type=pathlib.Path, metavar="BIN")
    parser.add_argument("images", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--runs", type=pathlib.Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        runs = arguments.runs or folder / "runs"
        if not arguments.runs:
            train(arguments.programs.absolute(), runs)
        page = folder / "report.html"
        subprocess.run([arguments.programs / "dsv3", "report", runs, "--title", "Quick start: attention and optimizer",
                        "--output", page], check=True)
        arguments.images.mkdir(exist_ok=True)
        for name, *picture in PICTURES:
            photograph(page, arguments.images.absolute() / f"{name}.png", *picture)


main()
