"""Runs in TensorBoard: its own reader and web server show what the tracker `tensorboard` has written."""

import contextlib
import datetime
import html
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request

import numpy
import pytest
from tensorboard import program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from support import BUILD, RUN, dsv3_run, make_tiny

DSV3 = BUILD / "bin/dsv3"
EVERYTHING = {name: 0 for name in ("scalars", "tensors")}
SAMPLES = ["samples.every=10", "samples.tokens=8"]


def parsed(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def accumulated(run):
    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance=EVERYTHING)
    accumulator.Reload()
    return accumulator


def journal_scalars(run):
    """Return the (time, step, value) of each metric in metrics.jsonl, with values as 32-bit floats."""
    scalars = {}
    for line in parsed(run / "metrics.jsonl"):
        time, step, _ = (line.pop(key) for key in ("time", "step", "tokens"))
        for name, value in line.items():
            with numpy.errstate(over="ignore"):
                value = float(numpy.float32(value))
            scalars.setdefault(name, []).append((time, step, repr(value)))
    return scalars


def tensorboard_scalars(run):
    accumulator = accumulated(run)
    return {tag: [(e.wall_time, e.step, repr(e.value)) for e in accumulator.Scalars(tag)]
            for tag in accumulator.Tags()["scalars"]}


def shown(markup):
    """Return the text that a browser shows for the markup."""
    return html.unescape(markup.replace("<br>", "\n")).replace("\xa0", " ")


def tensorboard_samples(run):
    accumulator = accumulated(run)
    tables = []
    for event in accumulator.Tensors("samples"):
        texts = [shown(text.decode()) for text in event.tensor_proto.string_val]
        assert [dim.size for dim in event.tensor_proto.tensor_shape.dim] == [len(texts) / 2, 2]
        assert texts[:2] == ["<strong>prompt</strong>", "<strong>text</strong>"]
        tables.append((event.wall_time, event.step, list(zip(texts[2::2], texts[3::2]))))
    return tables


# Control characters are shown as pictures, and tabs as spaces.
PICTURES = {code: chr(0x2400 + code) for code in range(32) if code != ord("\n")} | {127: "\u2421", ord("\t"): "    "}


def journal_samples(run):
    return [(record["time"], record["step"], [(s["prompt"], s["text"].translate(PICTURES)) for s in record["samples"]])
            for record in parsed(run / "events.jsonl") if record["type"] == "samples"]


def session(run, tag):
    content = accumulated(run).SummaryMetadata(f"_hparams_/{tag}").plugin_data.content
    return getattr(plugin_data_pb2.HParamsPluginData.FromString(content), tag)


def hparams(run):
    return {key: getattr(value, value.WhichOneof("kind"))
            for key, value in session(run, "session_start_info").hparams.items()}


@contextlib.contextmanager
def tensorboard(logdir):
    """Serve the runs in a folder, and yield a function that requests a path."""
    # TensorBoard's Python reader, because its other one shortens long series.
    server = program.TensorBoard()
    server.configure(argv=["tensorboard", "--logdir", str(logdir), "--port", "0", "--load_fast", "false"])
    url = server.launch()

    def request(path, body=None, **query):
        address = f"{url}data/plugin/{path}?{urllib.parse.urlencode(query)}"
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(
                urllib.request.Request(address, data, {"Content-Type": "application/json"}), timeout=60) as reply:
            return json.load(reply)

    deadline = time.monotonic() + 60
    while not request("scalars/tags") and time.monotonic() < deadline:
        time.sleep(0.1)
    yield request


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorboard")
    experiment = make_tiny(folder)
    experiment.write_text(experiment.read_text().replace("{plugin: csv}", "{plugin: tensorboard}"))
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    dsv3_run("tiny.yaml", "--run_name", "whole", *SAMPLES, cwd=folder)
    return folder / "runs/whole"


def copied(run, name):
    """Copy a run to `name`, as if its tracker had received nothing."""
    copy = run.parent / name
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "tensorboard")
    shutil.rmtree(copy / "trackers")
    return copy


def sync(run):
    done = subprocess.run([DSV3, "sync", run], text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_every_value_and_sample_is_in_tensorboard(finished):
    scalars = tensorboard_scalars(finished)
    assert scalars == journal_scalars(finished)
    assert len(scalars["train/loss"]) == 30 and len(scalars["val/loss"]) >= 3
    samples = tensorboard_samples(finished)
    assert samples == journal_samples(finished)
    assert [step for _, step, _ in samples] == [10, 20, 30]
    assert [path.name for path in (finished / "tensorboard").iterdir()] == ["events.out.tfevents.dsv3"]


def test_parameters_and_status_are_hparams(finished):
    parameters, = (record["values"] for record in parsed(finished / "events.jsonl") if record["type"] == "parameters")
    values = hparams(finished)
    assert set(values) == set(parameters)
    assert values["optimizer.1.lr"] == 0.02 and values["train.steps"] == 30 and values["optimizer.1.plugin"] == "muon"
    for key, value in values.items():
        text = parameters[key]
        assert value == {"true": True, "false": False}.get(text, float(text) if isinstance(value, float) else text), key
    assert any(isinstance(value, bool) for value in values.values())
    start_time = json.loads((finished / "provenance.json").read_text())["time"]
    start = session(finished, "session_start_info").start_time_secs
    assert start == datetime.datetime.fromisoformat(start_time).timestamp()
    end = session(finished, "session_end_info")
    state, = (r for r in parsed(finished / "events.jsonl") if r["type"] == "state" and r["name"] == "finished")
    assert end.status == api_pb2.STATUS_SUCCESS and end.end_time_secs == state["time"]


def test_a_killed_run_has_every_step_once(folder):
    process = subprocess.Popen([RUN, "tiny.yaml", "--run_name", "killed", *SAMPLES, "train.steps=400"],
                               cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = folder / "runs/killed"
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_bytes().count(b"\n") < 60:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    dsv3_run("--run_id", "killed", "train.steps=400", cwd=folder)
    scalars = tensorboard_scalars(run)
    assert scalars == journal_scalars(run)
    assert [step for _, step, _ in scalars["train/loss"]] == list(range(1, 401))
    assert tensorboard_samples(run) == journal_samples(run)
    assert session(run, "session_end_info").status == api_pb2.STATUS_SUCCESS


def test_what_a_killed_process_wrote_without_acknowledgement_is_not_repeated(finished):
    run = finished.parent / "torn"
    shutil.copytree(finished, run)
    file = run / "tensorboard/events.out.tfevents.dsv3"
    with file.open("ab") as stream:
        stream.write(file.read_bytes()[:100])  # complete records and a part of one
    for name in "tensorboard-0.json", "tensorboard-0.records.json":
        (run / "trackers" / name).write_text('{"lines": 2}')
    assert not sync(run)
    assert tensorboard_scalars(run) == journal_scalars(run)
    assert tensorboard_samples(run) == journal_samples(run)


def test_a_removed_file_begins_again_with_a_warning(finished):
    run = finished.parent / "removed"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "tensorboard")
    (run / "trackers/tensorboard-0.json").write_text('{"lines": 2}')
    assert "lacks earlier metrics" in sync(run)
    assert hparams(run) == hparams(finished)


NAMES = ["a b", "é/ü", "<script>alert(1)</script>", "x\x00y", "../../up", "a//b", "n" * 5000, "_hparams_/other", "%2e",
         "😀"]
NUMBERS = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 5e-324, 1e300, -1e-40, 16777217.0]
TEXTS = ["<script>alert(1)</script>", "<img src=http://evil.example/x.png>", "![a](http://evil.example/y.png)",
         "[a](javascript:alert(1))", "<http://evil.example>", "# heading\n\n* list\n1. first\n\n    code\n\n```\nfence",
         "&lt;b&gt; &amp;lt; &#60;", "\\*a\\* **b** _c_ `d`", "a | b\n--- | ---\nc | d", "</td></tr></table><h1>",
         "<!-- open", "  two  spaces \n and lines\n\n\nend", "tab\tin\tit", "[ref]: http://evil.example", "a\r\nb\rc",
         "nul\x00 \x02wzxhzdk:0\x03 \x1b[31m",
         "\u2028 line \u202e turned", "é😀", "", "=====", "    indented", "x" * 300_000]


def visible(text):
    """Return the text with pictures of control characters."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", lambda m: chr(0x2421 if m[0] == "\x7f" else 0x2400 + ord(m[0])),
                  text).replace("\t", "    ")


def json_number(value):
    return value if numpy.isfinite(value) else str(value).replace("inf", "Infinity").replace("nan", "NaN")


@pytest.fixture(scope="module")
def hostile(finished):
    run = copied(finished, "hostile")
    with (run / "metrics.jsonl").open("a") as file:
        for step, value in enumerate(NUMBERS, 100):
            line = {"step": step, "tokens": 0, "time": 1.8e9 + step} | {name: json_number(value) for name in NAMES}
            file.write(json.dumps(line) + "\n")
    with (run / "events.jsonl").open("a") as file:
        samples = [{"prompt": text, "text": text[::-1] if len(text) < 9 else text} for text in TEXTS]
        file.write(json.dumps({"type": "samples", "step": 200, "time": 1.8e9, "samples": samples}) + "\n")
    sync(run)
    return run


def test_odd_names_and_numbers_stay_as_they_are(hostile):
    scalars = tensorboard_scalars(hostile)
    for name in NAMES:
        with numpy.errstate(over="ignore"):
            expected = [repr(float(numpy.float32(value))) for value in NUMBERS]
        assert [value for _, _, value in scalars[name]] == expected, name
        assert [time for time, _, _ in scalars[name]] == [1.8e9 + 100 + i for i in range(len(NUMBERS))]


def test_texts_with_markup_are_shown_as_they_are(hostile):
    table = tensorboard_samples(hostile)[-1][2]
    assert [prompt for prompt, _ in table] == [visible(text) for text in TEXTS]
    with tensorboard(hostile.parent) as request:
        for markdown in "true", "false":
            event = request("text/text", run="hostile/tensorboard", tag="samples", markdown=markdown)[-1]
            tags = set(re.findall(r"</?[a-z0-9]+[^>]*>|<!--", event["text"]))
            allowed = {"table", "tbody", "tr", "td", "p", "strong", "br"}
            assert tags <= {f"<{tag}>" for tag in allowed} | {f"</{tag}>" for tag in allowed}, markdown
            cells = re.findall(r"<td>(?:<p>)?(.*?)(?:</p>)?</td>", event["text"], re.DOTALL)[2:]
            texts = [shown(re.sub(r"<br>\n?", "<br>", cell)) for cell in cells]
            assert [text.strip() for text in texts[0::2]] == [visible(text).strip() for text in TEXTS], markdown


def test_tensorboards_server_shows_runs_and_compares_parameters(folder, finished):
    dsv3_run("tiny.yaml", "--run_name", "other", "optimizer.1.lr=0.01", "samples.every=0", cwd=folder)
    with tensorboard(folder / "runs") as request:
        for run in "whole", "other":
            points = request("scalars/scalars", run=f"{run}/tensorboard", tag="train/loss")
            journal = journal_scalars(folder / "runs" / run)["train/loss"]
            assert [(time, step, repr(value)) for time, step, value in points] == journal
        experiment = request("hparams/experiment", body={})
        rates, = (info for info in experiment["hparamInfos"] if info["name"] == "optimizer.1.lr")
        assert rates["type"] == "DATA_TYPE_FLOAT64"
        metrics = [{"group": "", "tag": tag} for tag in ("train/loss", "val/loss")]
        assert all(name in [info["name"] for info in experiment["metricInfos"]] for name in metrics)
        groups = request("hparams/session_groups", body={
            "allowedStatuses": ["STATUS_SUCCESS"], "startIndex": 0, "sliceSize": 100,
            "colParams": [{"hparam": "optimizer.1.lr", "includeInResult": True}] + [{"metric": name} for name in metrics],
        })
    sessions = {session["name"]: (group, session) for group in groups["sessionGroups"] for session in group["sessions"]}
    for run, rate in ("whole", 0.02), ("other", 0.01):
        group, session = sessions[f"{run}/tensorboard"]
        assert group["hparams"]["optimizer.1.lr"] == rate
        values = {value["name"]["tag"]: repr(value["value"]) for value in session["metricValues"]}
        journal = journal_scalars(folder / "runs" / run)
        for tag in "train/loss", "val/loss":
            assert values[tag] == journal[tag][-1][2]


def test_a_million_values_need_no_more_memory(finished):
    peaks = []
    for name, lines in ("few", 200), ("many", 20_000):
        run = copied(finished, name)
        with (run / "metrics.jsonl").open("w") as file:
            for step in range(lines):
                line = {"step": step, "tokens": 0, "time": step} | {f"m/{i}": step + i for i in range(50)}
                file.write(json.dumps(line) + "\n")
        process = subprocess.Popen([DSV3, "sync", run], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peaks.append(usage.ru_maxrss)
    assert peaks[1] - peaks[0] < 64 * 1024  # KiB
    scalars = tensorboard_scalars(finished.parent / "many")
    assert sum(len(values) for values in scalars.values()) == 1_000_000


@pytest.mark.parametrize("path", ["/tmp", "../outside", "a/../../b", '""'])
def test_folders_outside_the_run_are_rejected(folder, path):
    done = dsv3_run("tiny.yaml", "--check", f"tracker=[{{plugin: tensorboard, folder: {path}}}]", cwd=folder, check=2)
    assert "folder must be a path inside the run folder" in done.stderr
