"""Tests what the programs print and store: escaped text, hidden secrets, errors of standard output, closed descriptors."""

import json
import os
import pathlib
import pty
import re
import shutil
import subprocess

import pytest
import yaml

from support import BUILD, RUN, dsv3_run, make_tiny

DSV3 = BUILD / "bin/dsv3"
# What no text from outside may contain when it reaches a terminal or a log.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufffd]")
HOSTILE = {"erase": "\x1b[2J", "title": "\x1b]0;owned\x07", "c1": "\x9b2J", "overwrite": "safe\r", "delete": "\x7f\x7f",
           "bidi": "\u202ecod.txt", "isolate": "\u2066a\u2069", "invisible": "a\u200bb", "bytes": b"\xff\xc2"}


def run(*command, cwd, check=None, **options):
    done = subprocess.run([str(c) if isinstance(c, os.PathLike) else c for c in command], cwd=cwd, capture_output=True,
                          timeout=120, **options)
    if check is not None:
        assert done.returncode == check, f"exit {done.returncode}, not {check}:\n{done.stdout}\n{done.stderr}"
    return done


def assert_safe(*texts):
    for text in texts:
        shown = text.decode() if isinstance(text, bytes) else text  # fails for bytes that are not UTF-8
        found = UNSAFE.search(shown)
        assert not found, f"{found.group()!r} in {shown!r}"


def hostile_bytes(name):
    text = HOSTILE[name]
    return text if isinstance(text, bytes) else text.encode()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with tiny.yaml and a run of one step, so that its text is random bytes."""
    folder = tmp_path_factory.mktemp("trained")
    make_tiny(folder)
    dsv3_run("tiny.yaml", "--run_name", "new", "train.steps=1", "schedule.warmup=0", "validation.every=0", cwd=folder)
    return folder


# --- escaped

@pytest.mark.promise("escaped")
@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_files_are_escaped_in_errors(tmp_path, name):
    make_tiny(tmp_path)
    evil = hostile_bytes(name)
    for command in ([RUN, evil + b".yaml"], [RUN, b"tiny.yaml", b"data.path=" + evil, b"--check"], [RUN, b"tiny.yaml", b"--from", evil],
                    [RUN, b"tiny.yaml", b"optimizer=" + evil], [DSV3, b"compare", evil, b"tiny.yaml"], [DSV3, b"eval", evil],
                    [DSV3, b"data", b"inspect", evil], [DSV3, evil], [DSV3, b"plugins", b"describe", evil]):
        done = run(*command, cwd=tmp_path)
        assert done.returncode not in (0, -6, -11) and done.stderr, command
        assert_safe(done.stdout, done.stderr)


@pytest.mark.promise("escaped")
def test_experiment_files_are_escaped_in_excerpts_and_origins(tmp_path):
    make_tiny(tmp_path)
    text = (tmp_path / "tiny.yaml").read_text()
    for evil in HOSTILE.values():
        if isinstance(evil, bytes) or "\r" in evil:
            continue
        (tmp_path / "a.yaml").write_text(text + f'unknown: 1 # {evil}\n')
        done = run(RUN, "a.yaml", "--check", cwd=tmp_path, check=2)
        assert_safe(done.stdout, done.stderr)
    named = tmp_path / "or\x1b[1migin\nx.yaml"
    named.write_text(text)
    done = run(RUN, named.name, "--print-config", cwd=tmp_path, check=0)
    assert_safe(done.stdout)
    assert yaml.safe_load(done.stdout)["model"]["hidden"] == 32


@pytest.mark.promise("escaped")
def test_registries_are_escaped_in_lists(tmp_path):
    shutil.copytree(BUILD / "registries", tmp_path / "registries")
    file = tmp_path / "registries/builtin.toml"
    lines = [r'summary = "\u001b[31mred\u0007 \u202Eabc\nfake/plugin  1.0  stable  a fake line"' if line.startswith("summary") else line
             for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines) + "\n")
    for arguments in (["list"], ["describe", "optimizer/adamw"]):
        done = run(DSV3, "plugins", *arguments, "--plugin-path", file, cwd=tmp_path)
        assert_safe(done.stdout, done.stderr)
        assert b"\nfake/plugin" not in done.stdout
    listed = json.loads(run(DSV3, "plugins", "list", "--json", "--plugin-path", file, cwd=tmp_path, check=0).stdout)
    assert any("\x1b[31m" in plugin["summary"] for plugin in listed)


@pytest.mark.promise("escaped")
def test_newlines_in_names_fake_no_line(tmp_path):
    make_tiny(tmp_path)
    fake = "a\nerror: the disk is full\n12:00:00 info step 30/30  loss 0.0000\n"
    for command in ([RUN, fake], [RUN, "tiny.yaml", "--run_name", "x", "--from", fake], [RUN, "tiny.yaml", "optimizer=" + fake],
                    [RUN, "tiny.yaml", "data.path=" + fake], [DSV3, "data", "inspect", fake], [DSV3, "generate", fake, "--prompt", "a"],
                    [DSV3, "compare", "tiny.yaml", fake]):
        lines = run(*command, cwd=tmp_path).stderr.decode().splitlines()
        assert lines and not any(line.startswith(("error: the disk", "12:00:00")) for line in lines), lines
    (tmp_path / "b\nC  runs").mkdir()
    shutil.copy(tmp_path / "tiny.yaml", tmp_path / "b\nC  runs/tiny.yaml")
    shown = run(DSV3, "compare", "tiny.yaml", "b\nC  runs/tiny.yaml", cwd=tmp_path, check=0).stdout.decode()
    assert not any(line.startswith("C ") for line in shown.splitlines()) and r"b\nC  runs/tiny.yaml" in shown


@pytest.mark.promise("escaped")
def test_a_hostile_model_is_escaped(tmp_path):
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "\x1b[2J\u202e\x9b", "architectures": ["A\nerror: fake"]}))
    header = json.dumps({"w\x1b[31m\u2066\x85": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    for command in ([DSV3, "import", "hf", "checkpoint"], [DSV3, "eval", "hf"], [DSV3, "generate", "hf", "--prompt", "a"]):
        done = run(*command, cwd=tmp_path)
        assert done.returncode > 0 and done.stderr
        assert_safe(done.stdout, done.stderr)
        assert b"\nerror: fake" not in done.stderr


# --- escaped-samples

def on_terminal(*command, cwd):
    """Run a command with its standard output on a terminal, and return the bytes that the terminal receives."""
    master, slave = pty.openpty()
    process = subprocess.Popen([str(c) for c in command], cwd=cwd, stdout=slave, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    os.close(slave)
    received = b""
    try:
        while part := os.read(master, 1 << 16):
            received += part
    except OSError:  # the program has closed the terminal
        pass
    errors = process.communicate(timeout=120)[1]
    os.close(master)
    assert process.returncode == 0, errors
    return received.replace(b"\r\n", b"\n")  # what the terminal makes of a newline


@pytest.mark.promise("escaped-samples")
@pytest.mark.parametrize("prompts", [["a\x1b]52;c;cm0gLXJm\x07\n\tb"], ["\x9b2J \u202e", "second\x7f"]])
def test_generated_text_is_escaped_on_a_terminal(trained, prompts):
    command = [DSV3, "generate", "runs/new", "--tokens", "40", "--temperature", "5", "--seed", "3",
               *(word for prompt in prompts for word in ("--prompt", prompt))]
    shown = on_terminal(*command, cwd=trained).decode()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown), repr(shown)
    assert all(text in shown for text in ([r"a\u001b]52;c;cm0gLXJm\u0007" + "\n\tb"] if len(prompts) == 1 else [r"\u009b2J \u202e"]))
    # A pipe receives the text as it is.
    piped = run(*command, cwd=trained, check=0).stdout.decode()
    assert all(prompt in piped for prompt in prompts)
    assert re.search("[\x00-\x08\x0e-\x1f]", piped.split(prompts[-1])[1]), "the model generates no control characters"


@pytest.mark.promise("escaped-samples")
def test_samples_of_a_run_are_escaped_in_the_log(tmp_path):
    make_tiny(tmp_path)
    text = (tmp_path / "tiny.yaml").read_text()
    prompt = r'"\x1b[2J\u202e\x9b\n2026-01-01 00:00:00.000 info step 5/5  loss 0.0000"'
    (tmp_path / "a.yaml").write_text(text.replace("samples: {every: 0}", f"samples: {{every: 1, tokens: 100, temperature: 5, prompts: [{prompt}]}}"))
    done = run(RUN, "a.yaml", "--run_name", "new", "train.steps=2", "schedule.warmup=0", cwd=tmp_path, check=0)
    log = (tmp_path / "runs/new/log.txt").read_bytes()
    for shown in (done.stderr, log):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown.decode()), shown
        assert rb"\u001b[2J\u202e\u009b" in shown and b"\n2026-01-01" not in shown


# --- secrets

SECRET = "hunter2-s3cret"


def with_value(folder, key, value, name="secret.yaml"):
    experiment = yaml.safe_load((folder / "tiny.yaml").read_text())
    *outer, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    node = experiment
    for part in outer:
        node = node[part]
    node[last] = value
    (folder / name).write_text(yaml.safe_dump(experiment))
    return name


@pytest.mark.promise("secrets")
@pytest.mark.parametrize("key", [
    "train.steps", "train.precision", "train.threads", "data.plugin", "data.path", "data.tokenizer.plugin", "data.tokenizer", "model.hidden",
    "model.attention.heads", "model.attention.plugin", "model.feed_forward.1.layers", "model.init.std", "optimizer.0.role",
    "optimizer.0.lr", "optimizer.1.plugin", "optimizer.1.library", "optimizer.1.match", "schedule", "validation.share", "checkpoint.every",
    "tracker.0.plugin", "log", "name"])
def test_errors_do_not_show_secrets(tmp_path, key):
    make_tiny(tmp_path)
    if key == "log":
        key, value = "log", {"level": "${env:SECRET}"}
    else:
        value = "${env:SECRET}"
    file = with_value(tmp_path, key, value)
    for flag in ("--check", "--print-config", "--dry-run"):
        for secret in (SECRET, "adamx["):
            done = run(RUN, file, flag, cwd=tmp_path, env={**os.environ, "SECRET": secret})
            shown = (done.stdout + done.stderr).decode()
            assert secret not in shown and "did you mean 'adamw'" not in shown, shown
            assert done.returncode == 0 or "${env:SECRET}" in shown, shown


@pytest.mark.promise("secrets")
def test_runs_do_not_store_secrets_and_read_them_again(tmp_path):
    make_tiny(tmp_path)
    with_value(tmp_path, "data.path", "${env:DATA}", "tiny.yaml")
    with_value(tmp_path, "name", "${env:NAME}", "tiny.yaml")
    with_value(tmp_path, "samples", {"every": 2, "tokens": 4, "prompts": ["${env:PROMPT}"]}, "tiny.yaml")
    first = {"DATA": "first-place.txt", "NAME": "private-name", "PROMPT": "private prompt"}
    second = {**first, "DATA": str(tmp_path / "second-place.txt")}
    (tmp_path / "text.txt").rename(tmp_path / "first-place.txt")
    outputs = [run(RUN, "tiny.yaml", "--run_name", "new", "train.steps=4", "schedule.warmup=0", cwd=tmp_path, env={**os.environ, **first}, check=0)]
    shutil.rmtree(tmp_path / "runs/new/checkpoints/step-4")
    (tmp_path / "first-place.txt").rename(tmp_path / "second-place.txt")
    outputs.append(run(RUN, "--run_id", "new", cwd=tmp_path, env={**os.environ, **second}, check=0))
    outputs.append(run(DSV3, "compare", "runs/new", "tiny.yaml", cwd=tmp_path, env={**os.environ, **second}, check=0))
    assert json.loads((tmp_path / "runs/new/status.json").read_text())["step"] == 4
    stored = {str(p): p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    for value in {*first.values(), *second.values()}:
        assert not [name for name, text in stored.items() if value.encode() in text], value
        assert not [done for done in outputs if value.encode() in done.stdout + done.stderr], value
    assert b"${env:DATA}" in stored[str(tmp_path / "runs/new/config.yaml")]


@pytest.mark.promise("secrets")
def test_messages_of_components_do_not_show_secrets(tmp_path):
    make_tiny(tmp_path)
    with_value(tmp_path, "data.path", "${env:DATA}", "tiny.yaml")
    where = tmp_path / "token-0123456789abcdef"
    where.mkdir()
    environment = {**os.environ, "DATA": str(where)}
    for content in (b"", b"\xff\xfe broken"):
        (where / "a.txt").write_bytes(content)
        for arguments in (["--check"], ["--run_name", "new"]):
            done = run(RUN, "tiny.yaml", *arguments, cwd=tmp_path, env=environment)
            assert where.name.encode() not in done.stdout + done.stderr
    shutil.rmtree(where)
    done = run(RUN, "tiny.yaml", "--run_name", "new", cwd=tmp_path, env=environment)
    assert done.returncode != 0 and where.name.encode() not in done.stdout + done.stderr and b"${env:DATA}" in done.stderr


# --- output-errors

COMMANDS = [[RUN, "tiny.yaml", "--print-config"], [RUN, "tiny.yaml", "--check"], [RUN, "tiny.yaml", "--dry-run"], [RUN, "--version"],
            [RUN, "--help"], [DSV3, "--version"], [DSV3, "plugins", "list", "--json"], [DSV3, "plugins", "describe", "data/text"],
            [DSV3, "plugins", "check", "schedule/cosine"], [DSV3, "compare", "tiny.yaml", "tiny.yaml"],
            [DSV3, "compare", "tiny.yaml", "tiny.yaml", "--json"], [DSV3, "compare", "tiny.yaml", "tiny.yaml", "--format", "csv"],
            [DSV3, "runs"], [DSV3, "runs", "--json"], [DSV3, "report", "runs", "--output", "page.html"],
            [DSV3, "completion", "zsh"], [DSV3, "schema"], [DSV3, "reference"],
            [DSV3, "generate", "runs/new", "--prompt", "a", "--tokens", "2"], [DSV3, "generate", "runs/new", "--prompt", "a", "--tokens", "2", "--json"],
            [DSV3, "eval", "runs/new", "--text", "text.txt", "--limit", "2"], [DSV3, "logits", "runs/new", "--tokens", "ids.json", "--output", "out"],
            [DSV3, "export", "--help"]]


@pytest.mark.promise("output-errors")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: "-".join([command[0].name, *command[1:3]]).replace("/", "-"))
def test_output_that_cannot_be_written_is_an_error(trained, command):
    (trained / "ids.json").write_text("[[1, 2]]")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=trained, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1 and "error: cannot write to standard output: No space left on device" in done.stderr, done
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, cwd=trained, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert done.returncode == 1, done


@pytest.mark.promise("output-errors")
def test_a_run_does_not_depend_on_standard_output(tmp_path):
    make_tiny(tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([RUN, "tiny.yaml", "--run_name", "new", "train.steps=4", "schedule.warmup=0"], cwd=tmp_path, stdout=writer, stderr=writer, timeout=120)
    os.close(writer)
    assert done.returncode == 0 and json.loads((tmp_path / "runs/new/status.json").read_text())["step"] == 4


@pytest.mark.promise("output-errors")
def test_endless_text_stops_with_its_reader(trained):
    """A reader that stops early ends the command long before it has generated everything."""
    command = f"{DSV3} generate runs/new --prompt a --tokens 1000000 --no-speculate; echo $? > code"
    process = subprocess.Popen(["bash", "-c", f"({command}) | head -c 20 > /dev/null"], cwd=trained, stderr=subprocess.DEVNULL)
    assert process.wait(timeout=60) == 0 and (trained / "code").read_text() == "1\n"


# --- descriptors

CLOSED = ["0<&-", "2>&-", "0<&- 2>&-", "0<&- 1>&- 2>&-"]


@pytest.mark.promise("descriptors")
@pytest.mark.parametrize("closed", CLOSED)
def test_a_run_without_standard_descriptors_writes_only_its_files(trained, tmp_path, closed):
    for name in ("text.txt", "tiny.yaml"):
        shutil.copy(trained / name, tmp_path)
    arguments = "tiny.yaml train.steps=6 log.level=debug samples.every=3 samples.tokens=3"
    for folder, redirection in (("open", ""), ("closed", closed)):
        run("bash", "-c", f"exec {RUN} {arguments} --run_name {folder} {redirection}", cwd=tmp_path, check=0)
    names = [sorted(str(p.relative_to(tmp_path / "runs" / folder)) for p in (tmp_path / "runs" / folder).rglob("*"))
             for folder in ("open", "closed")]
    assert names[0] == names[1]
    for file in (tmp_path / "runs/closed").rglob("*"):
        if file.is_file() and file.name != "log.txt":
            assert not re.search(rb"\d\d:\d\d:\d\d (info|debug|warning) ", file.read_bytes()), file
    run(RUN, "--run_id", "closed", cwd=tmp_path, check=0)  # its checkpoints are intact


@pytest.mark.promise("descriptors")
@pytest.mark.parametrize("closed", CLOSED)
def test_files_of_a_tool_contain_no_messages(trained, tmp_path, closed):
    (tmp_path / "ids.json").write_text("[[1, 2, 3]]")
    command = f"exec {DSV3} logits {trained}/runs/new --tokens ids.json --output"
    run("bash", "-c", f"{command} expected", cwd=tmp_path, check=0)
    done = run("bash", "-c", f"{command} written {closed}", cwd=tmp_path, check=1 if "1>&-" in closed else 0)
    assert (tmp_path / "written").read_bytes() == (tmp_path / "expected").read_bytes(), done


@pytest.mark.promise("descriptors")
def test_a_closed_standard_output_is_an_error(trained):
    done = run("bash", "-c", f"exec {RUN} tiny.yaml --print-config 1>&-", cwd=trained, check=1)
    assert b"cannot write to standard output" in done.stderr
