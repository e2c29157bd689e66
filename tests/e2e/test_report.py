"""dsv3 report: the page contains what the run folders recorded, as data only, and stays small."""

import base64
import hashlib
import html.parser
import json
import math
import random
import re
import shutil

import pytest

from support import dsv3_run, make_tiny, metrics
from test_runs import dsv3

HOSTILE = """</script><script>alert(1)</script><!--<script>"'`&lt;\u2028\\u003c<img src=x onerror=alert(2)>"""


class Page(html.parser.HTMLParser):
    """The scripts, styles, attributes and data of a report."""

    def __init__(self, path):
        super().__init__()
        self.scripts, self.styles, self.elements, self.data = [], [], [], None
        self.open = []
        self.content = path.read_bytes()
        self.feed(self.content.decode())
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, text):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if tag == "style":
            self.styles.append(text)
        elif tag == "script" and attributes.get("type") == "application/json":
            assert self.data is None
            self.data = json.loads(text)
        elif tag == "script":
            self.scripts.append(text)

    @property
    def policy(self):
        [policy] = [a["content"] for _, a in self.elements if a.get("http-equiv") == "Content-Security-Policy"]
        return dict(part.strip().split(" ", 1) for part in policy.split(";"))


def curve(run, name):
    """Return {step: value} of a metric in the page, with "NaN" and so on as texts."""
    axis, values, recorded = run["curves"]["metrics"][name]
    steps, sum_ = [], 0
    for difference in run["curves"]["x"][axis]:
        sum_ += difference
        steps.append(sum_)
    assert len(steps) == len(values) <= recorded
    return dict(zip(steps, values, strict=True))


def report(folder, *arguments):
    dsv3("report", *arguments, cwd=folder)
    return Page(folder / "report.html")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    make_tiny(folder)
    short = ["samples.every=10", "train.steps=20"]
    dsv3_run("tiny.yaml", *short, "--run_name", "a", cwd=folder)
    dsv3_run("tiny.yaml", *short, "attention=mha", "train.seed=8", "--run_name", "b", cwd=folder)
    return folder


def test_the_page_has_the_recorded_values(runs):
    page = report(runs, "runs/a", "runs/b")
    assert [run["about"]["name"] for run in page.data["runs"]] == ["a", "b"]
    for run in page.data["runs"]:
        recorded = metrics(runs / "runs" / run["about"]["name"])
        names = {name for row in recorded.values() for name in row} - {"step", "tokens", "time"}
        assert set(run["curves"]["metrics"]) == names and "moe/load_max/1" in names
        for name in names:
            shown = curve(run, name)
            expected = {step: row[name] for step, row in recorded.items() if name in row}
            assert shown == pytest.approx(expected, rel=1e-4, abs=1e-12), name
        about = run["about"]
        assert about["state"] == "finished" and about["step"] == about["steps"] == 20
        assert about["val"]["best"] == min(row["val/loss"] for row in recorded.values() if "val/loss" in row)
        assert about["train"]["last"] == recorded[20]["train/loss"]
        assert about["flops_per_token"] > about["parameters"] > 10_000
        assert [sample["file"] for sample in about["samples"]] == ["step-0000010", "step-0000020"]
        sample = (runs / "runs" / about["name"] / "samples/step-0000020.txt").read_bytes()  # of an untrained model: any bytes
        assert about["samples"][1]["text"].encode("ascii", "ignore") == sample.decode("ascii", "ignore").encode()
        assert ["host", json.loads((runs / "runs" / about["name"] / "provenance.json").read_text())["host"]] in about["provenance"]
        steps, tokens = run["curves"]["tokens"]
        assert (sum(steps), tokens[-1]) == (20, 20 * 4 * 48)
        assert 0 < run["curves"]["time"][1][-1] < 600


def test_the_page_has_the_differing_settings(runs):
    settings = report(runs, "runs").data["settings"]
    differing = {entry["key"]: [entry["values"][i] if i >= 0 else None for i in entry["of"]] for entry in settings["differing"]}
    assert differing["model.attention.plugin"] == ["mla", "mha"]
    assert differing["train.seed"] == ["7", "8"]
    assert differing["model.attention.kv_lora_rank"] == ["16", None]
    assert ["train.steps", "20"] in settings["common"]
    assert not {key for key, _ in settings["common"]} & set(differing)


def test_the_page_needs_nothing_from_outside(runs):
    page = report(runs, "runs/a")
    for tag, attributes in page.elements:
        assert not {"src", "onclick", "onload", "onerror", "style"} & set(attributes), (tag, attributes)
        assert attributes.get("href", "#").startswith("#")
    for text in page.scripts + page.styles:
        assert not re.search(r"https?:|url\(|@import|\binnerHTML\b|\beval\(|new Function|\bfetch\(|XMLHttpRequest|import\(", text)


def test_the_policy_allows_only_the_pages_own_script_and_style(runs):
    page = report(runs, "runs/a")

    def digest(text):
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
    [script], [style] = page.scripts, page.styles
    assert page.policy == {"default-src": "'none'", "script-src": digest(script), "style-src": digest(style),
                           "base-uri": "'none'", "form-action": "'none'"}


def test_text_from_a_run_folder_is_neither_markup_nor_code(runs):
    shutil.copytree(runs / "runs/a", run := runs / "hostile" / "</title><script>alert(3)</script>".replace("/", "∕"))
    (run / "samples/step-0000030.txt").write_text(HOSTILE)
    (run / "samples/step-0000040.txt").write_bytes(b"\xff\xfe\0 not UTF-8")
    (run / "metrics.jsonl").open("a").write(json.dumps({"step": 21, "tokens": 1, "time": 1.0, HOSTILE: 1.5, "__proto__": 2.0}) + "\n")
    (run / "log.txt").open("a").write(f"12:00:00 warning {HOSTILE}\n")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "message": HOSTILE, "state": HOSTILE}))
    provenance = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps({**provenance, "host": HOSTILE, "command": [HOSTILE], "git": {"commit": [HOSTILE]}}))
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + f"unknown: {json.dumps(HOSTILE)}\n")
    clean, page = report(runs, "runs/a"), report(runs, str(run), "--title", HOSTILE)
    assert [element[0] for element in page.elements] == [element[0] for element in clean.elements]
    assert (page.scripts, page.styles, page.policy) == (clean.scripts, clean.styles, clean.policy)
    assert page.content.count(b"<script") == 2 == page.content.count(b"</script")
    assert b"<!--" not in page.content
    about = page.data["runs"][0]["about"]
    assert page.data["title"] == about["message"] == about["state"] == HOSTILE
    assert [sample["text"] for sample in about["samples"] if sample["file"] == "step-0000030"] == [HOSTILE]
    assert HOSTILE in page.data["runs"][0]["curves"]["metrics"] and HOSTILE in about["messages"][-1]
    assert "</script>" in dict(page.data["settings"]["common"])["unknown"]


def test_damaged_runs_are_shown_with_what_is_wrong(runs):
    shutil.copytree(runs / "runs/a", run := runs / "damaged/d")
    (run / "config.yaml").unlink()
    (run / "status.json").write_text("{")
    (run / "metrics.jsonl").write_text('{"step": 1, "tokens": 8, "time": 5.0, "train/loss": "NaN"}\nx\n{"step": 2, "tokens": 16, "ti')
    done = dsv3("report", "damaged", "--output", "damaged.html", cwd=runs)
    [run] = Page(runs / "damaged.html").data["runs"]
    assert run["about"]["state"] == "damaged" and len(run["about"]["problems"]) == 3
    assert curve(run, "train/loss") == {1: "NaN"}
    assert run["about"]["faults"]["not_finite"] == 1 and run["about"]["parameters"] is None
    assert "config.yaml is missing" in done.stderr
    empty = runs / "empty/run"
    empty.mkdir(parents=True)
    (empty / "metrics.jsonl").write_text("")
    assert report(runs, "empty").data["runs"][0]["curves"]["metrics"] == {}


def test_usage_errors(runs):
    assert "neither a run folder" in dsv3("report", ".", cwd=runs, check=2).stderr
    assert "cannot list nothing" in dsv3("report", "nothing", cwd=runs, check=2).stderr
    before = (runs / "runs/a/config.yaml").read_bytes()
    assert dsv3("report", "runs/a", "--output", "runs/a/config.yaml", cwd=runs, check=2).stderr
    assert (runs / "runs/a/config.yaml").read_bytes() == before
    assert dsv3("report", "runs/a", "--output", "/dev/stdout", cwd=runs).stdout.startswith("<!doctype html>")


def synthetic_run(folder, number, lines):
    """Write a run of `lines` logged steps; run 3 has a gap of NaN."""
    rng = random.Random(number)
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps({"state": "finished", "step": lines, "time": "2026-01-01T05:00:00Z"}))
    (folder / "provenance.json").write_text('{"time": "2026-01-01T00:00:00Z"}')
    (folder / "config.yaml").write_text(f"dsv3: 1\nname: s\ntrain: {{steps: {lines}, seed: {number}, batch: 8, sequence: 64}}\n")
    (folder / "samples").mkdir()
    (folder / "samples/step-1.txt").write_text("sample " * 1000)
    losses = {}
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, lines + 1):
            losses[step] = 2 + 5 * math.exp(-step / 2000) + rng.gauss(0, 0.1)
            loss = '"NaN"' if number == 3 and 4000 < step < 4300 else f"{losses[step]:.6f}"
            extra = "".join(f', "moe/load_max/{i}": {1 + rng.random():.5f}' for i in range(6))
            file.write(f'{{"step": {step}, "tokens": {step * 512}, "time": {1767225600 + step}.5, "train/loss": {loss}, '
                       f'"train/grad_norm": {rng.random():.6f}, "throughput/tokens_per_s": {rng.random() * 1e5:.2f}{extra}}}\n')
    return losses


def test_a_hundred_long_runs_stay_below_a_megabyte(tmp_path):
    losses = [synthetic_run(tmp_path / f"runs/{number:03}", number, 10_000) for number in range(100)]
    page = report(tmp_path, "runs")
    assert 500_000 < len(page.content) < 1_000_000
    assert len(page.data["runs"]) == 100
    for number, run in enumerate(page.data["runs"]):
        shown = curve(run, "train/loss")
        assert min(shown) == 1 and max(shown) == 10_000 and len(shown) > 100
        finite = {step: y for step, y in shown.items() if y != "NaN"}
        assert finite == pytest.approx({step: losses[number][step] for step in finite}, rel=1e-4)
        assert max(finite.values()) == pytest.approx(max(losses[number].values()), rel=1e-4)
        assert ("NaN" in shown.values()) == (number == 3)
    assert report(tmp_path, "runs/003").data["runs"][0]["about"]["faults"]["not_finite"] == 299
