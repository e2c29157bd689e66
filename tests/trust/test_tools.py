"""Files that the tools write and read, and values of their flags that are out of range."""

import json
import os
import pty
import shutil
import subprocess
import threading

import pytest

import stored
from support import BUILD, RUN, dsv3_run, make_tiny

DSV3 = BUILD / "bin/dsv3"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run `runs/r` and its export `hf`."""
    folder = tmp_path_factory.mktemp("tools")
    stored.tiny_run(folder)
    assert stored.dsv3("export", "runs/r", "hf", cwd=folder).returncode == 0
    (folder / "ids.json").write_text("[[1, 2, 3]]")
    assert logits(folder, "expected").returncode == 0
    return folder


def logits(folder, output, model="runs/r", tokens="ids.json", **more):
    return stored.dsv3("logits", model, "--tokens", tokens, "--output", output, cwd=folder, **more)


def rejected(done, code=2):
    assert done.returncode == code, (done.returncode, done.stdout[-300:], done.stderr)
    return done.stderr


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- output-files
# Tests use links to devices, because a device that was replaced would be missed by the whole machine.


@pytest.mark.promise("output-files")
@pytest.mark.parametrize("command", ["logits", "schema"])
def test_a_link_is_followed(trained, tmp_path, command):
    target = tmp_path / "elsewhere/target"
    target.parent.mkdir()
    for name, content in (("existing", "old"), ("dangling", None)):
        if content:
            target.write_text(content)
            target.chmod(0o640)
        (tmp_path / name).symlink_to("elsewhere/target")
        link = tmp_path / name
        done = logits(trained, link) if command == "logits" else stored.dsv3("schema", "--output", link, cwd=trained)
        assert done.returncode == 0, done.stderr
        assert link.is_symlink() and target.stat().st_size > 1000 and os.listdir(target.parent) == ["target"]
        if content:
            assert target.stat().st_mode & 0o777 == 0o640
        target.unlink()


@pytest.mark.promise("output-files")
@pytest.mark.parametrize("command", ["logits", "schema"])
def test_a_fifo_is_written_to(trained, tmp_path, command):
    fifo = stored.make_fifo(tmp_path / "fifo")
    received = []
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    done = logits(trained, fifo) if command == "logits" else stored.dsv3("schema", "--output", fifo, cwd=trained)
    reader.join(timeout=30)
    assert done.returncode == 0 and fifo.is_fifo(), done.stderr
    assert received[0] == (trained / "expected").read_bytes() if command == "logits" else json.loads(received[0])


@pytest.mark.promise("output-files")
def test_devices_are_written_to(trained, tmp_path):
    for device in ("/dev/null", "/dev/full"):
        link = tmp_path / "device"
        link.symlink_to(device)
        done = logits(trained, link)
        assert link.is_symlink() and link.is_char_device() and os.listdir(tmp_path) == ["device"]
        assert done.returncode == (0 if device == "/dev/null" else 1), done.stderr
        link.unlink()
    assert "No space left on device" in done.stderr
    master, slave = pty.openpty()
    received = []

    def read():
        while True:
            received.append(os.read(master, 1 << 16))

    threading.Thread(target=read, daemon=True).start()
    done = stored.dsv3("schema", "--output", os.ttyname(slave), cwd=trained, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and b"".join(received).startswith(b"{"), done.stderr


@pytest.mark.promise("output-files")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_receives_only_the_file(trained, tmp_path, name):
    link = tmp_path / "out"
    link.symlink_to(name)
    expected = (trained / "expected").read_bytes()
    command = [DSV3, "logits", "runs/r", "--tokens", "ids.json", "--output", link]
    piped = subprocess.run(command, cwd=trained, capture_output=True, timeout=60)
    assert piped.returncode == 0 and piped.stdout == expected and b"logits [1, 3, 257]" in piped.stderr
    with open(tmp_path / "appended", "wb") as file:
        file.write(b"before")
        file.flush()
        assert subprocess.run(command, cwd=trained, stdout=file, timeout=60).returncode == 0
    assert (tmp_path / "appended").read_bytes() == b"before" + expected
    assert sorted(os.listdir(tmp_path)) == ["appended", "out"] and link.is_symlink()


@pytest.mark.promise("output-files")
@pytest.mark.parametrize("model, output", [
    ("runs/r", "ids.json"), ("runs/r", "link"), ("runs/r", "hard"), ("runs/r", "sub/../ids.json"), ("runs/r", "runs/r/metrics.jsonl"),
    ("runs/r", "runs/r/checkpoints/step-4/manifest.json"), ("runs/r/checkpoints/step-4", "runs/r/config.yaml"),
    ("hf", "hf/model.safetensors"), ("hf", "hf/new"), ("hf", "inside"), ("runs/r", "."), ("runs/r", "new/"), ("runs/r", "")])
def test_the_input_is_not_overwritten(trained, tmp_path, model, output):
    for name in ("runs", "hf"):
        shutil.copytree(trained / name, tmp_path / name)
    shutil.copy(trained / "ids.json", tmp_path)
    (tmp_path / "link").symlink_to("ids.json")
    (tmp_path / "inside").symlink_to("hf/config.json")
    (tmp_path / "sub").mkdir()
    os.link(tmp_path / "ids.json", tmp_path / "hard")
    before = files_in(tmp_path)
    assert "cannot write" in rejected(logits(tmp_path, output, model))
    assert files_in(tmp_path) == before


@pytest.mark.promise("output-files")
def test_the_schema_does_not_replace_settings_and_registries(tmp_path):
    (tmp_path / "config.yaml").write_text("output: runs\n")
    (tmp_path / "mine.yaml").write_text("output: runs\n")
    shutil.copy(BUILD / "registries/builtin.toml", tmp_path / "mine.toml")
    before = files_in(tmp_path)
    for words in (["--output", "config.yaml"], ["--config", "mine.yaml", "--output", "mine.yaml"],
                  ["--plugin-path", "mine.toml", "--output", "./mine.toml"]):
        assert "input" in rejected(stored.dsv3("schema", *words, cwd=tmp_path))
    assert files_in(tmp_path) == before


@pytest.mark.promise("output-files")
def test_a_failed_write_leaves_the_old_file(trained, tmp_path):
    (tmp_path / "old").write_text("old")
    assert logits(trained, tmp_path / "old", tokens="nowhere.json").returncode == 2
    assert logits(trained, tmp_path / "old", model="nowhere").returncode == 5
    assert os.listdir(tmp_path) == ["old"] and (tmp_path / "old").read_text() == "old"


# --- flag-ranges

GENERATE = ["generate", "runs/r", "--prompt", "a", "--tokens", "2"]
EVAL = ["eval", "runs/r", "--text", "text.txt"]
EXPORT = ["export", "runs/r", "new"]
OUT_OF_RANGE = [
    (GENERATE, "--temperature", ["inf", "nan", "-NaN", "1e999", "-1", "2000"]), (GENERATE, "--top-k", ["-1", "99999999999999999999", "1e3", "nan"]),
    (GENERATE, "--top-p", ["nan", "inf", "1.01", "0"]), (GENERATE, "--repetition-penalty", ["nan", "inf", "-1", "0"]),
    (GENERATE[:4], "--tokens", ["99999999999", "0", "-5", "inf"]), (GENERATE, "--batch", ["0", "99999999999"]),
    (GENERATE, "--stop-id", ["-1", "257", "2147483648", "nan"]), (GENERATE, "--seed", ["-1", "9223372036854775808", "010", "0x10"]),
    (EVAL, "--sequence", ["0", "16777216", "nan"]), (EVAL, "--batch", ["0", "99999999"]), (EVAL, "--limit", ["-1", "inf"]),
    (EXPORT, "--shard-size", ["nan", "inf", "-1", "1e300G", "9999999T", "5X", "G", ""]),
    (["plugins", "check", "optimizer/adamw"], "--timeout", ["0", "nan", "99999999"]),
    (["data", "prepare", "text.txt", "--tokenizer", "bytes", "--output", "new"], "--shard-tokens", ["0", "-1", "1e99", "9999999999999999"])]


@pytest.mark.promise("flag-ranges")
@pytest.mark.parametrize("command, flag, values", OUT_OF_RANGE, ids=[words[0] + flag for words, flag, values in OUT_OF_RANGE])
def test_values_out_of_range(trained, command, flag, values):
    for value in values:
        error = rejected(stored.dsv3(*command, f"{flag}={value}", cwd=trained, stdin=subprocess.DEVNULL))
        assert flag in error or flag.strip("-").replace("-", " ") in error.replace("_", "-").replace("-", " "), (value, error)
    assert not (trained / "new").exists()


@pytest.mark.promise("flag-ranges")
def test_memory_sizes_out_of_range(trained):
    for value in ("nan", "infG", "1e300G", "-8G", "0G", "8", "GiB"):
        done = dsv3_run("tiny.yaml", "--dry-run", f"--gpu-memory={value}", cwd=trained, check=2)
        assert "--gpu-memory" in done.stderr and value in done.stderr
    dsv3_run("tiny.yaml", "--dry-run", "--gpu-memory=0.5TiB", cwd=trained)


@pytest.mark.promise("flag-ranges")
@pytest.mark.parametrize("words", [["--tokens", "1", "--tokens", "2"], ["--seed", "1", "--seed", "1"]])
def test_repeated_flags(trained, words):
    assert "may be given only once" in rejected(stored.dsv3("generate", "runs/r", "--prompt", "a", *words, cwd=trained))


@pytest.mark.promise("flag-ranges")
@pytest.mark.parametrize("flag", ["--seed", "--top-k", "--device", "--temperature"])
def test_very_long_values(trained, flag):
    for value in ("x" * 100_000, "9" * 100_000):
        error = rejected(stored.dsv3(*GENERATE, flag, value, cwd=trained))
        assert flag in error and len(error) < 2000


@pytest.mark.promise("flag-ranges")
@pytest.mark.parametrize("name", ["/dev/zero", ".", "fifo", "nowhere"])
def test_prompt_files_that_are_no_files(trained, tmp_path, name):
    stored.make_fifo(tmp_path / "fifo")
    error = rejected(stored.dsv3("generate", trained / "runs/r", "--prompt-file", name, cwd=tmp_path, timeout=30))
    assert "--prompt-file" in error and name in error


@pytest.mark.promise("flag-ranges")
@pytest.mark.parametrize("ids", [[], ["--ids"]])
def test_an_endless_prompt(trained, ids):
    with open("/dev/zero") as endless:
        error = rejected(stored.dsv3("generate", "runs/r", *ids, cwd=trained, timeout=30, stdin=endless))
    assert "standard input has more than" in error


@pytest.mark.promise("flag-ranges")
def test_long_rows_take_no_longer_than_their_text(trained):
    """The rows that an evaluation computes are as long as the text, not as long as --sequence."""
    text = trained / "short.txt"
    text.write_text("a short text\n")
    short = stored.dsv3("eval", "runs/r", "--text", text, "--json", "--batch", "1", cwd=trained)
    wide = stored.dsv3("eval", "runs/r", "--text", text, "--json", "--batch", "16", "--sequence", 2**20, cwd=trained, timeout=30)
    assert wide.returncode == 0 and "trained with sequence length 48" in wide.stderr, wide.stderr
    losses = [json.loads(done.stdout)["text"][0]["loss"] for done in (short, wide)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert "at most" in rejected(stored.dsv3(*EVAL, "--sequence", 2**20, "--batch", "17", cwd=trained))


# --- shard-index


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    make_tiny(folder)
    done = stored.dsv3("data", "prepare", "text.txt", "--tokenizer", "bytes", "--output", "shards", "--shard-tokens", "5000", cwd=folder)
    assert done.returncode == 0 and len(list((folder / "shards").glob("*.tokens"))) > 3, done.stderr
    return folder


TOKENS = ["tiny.yaml", "data.plugin=tokens", "data.path=shards", "train.steps=2", "schedule.warmup=0", "--run_name", "new"]


def commands_fail(folder, *words):
    """Every command that reads the shards exits with code 4 and these words."""
    for program, arguments in (("dsv3", ["data", "inspect", "shards"]), ("dsv3", ["eval", folder / "runs/r", "--shards", "shards"]),
                               ("dsv3-run", [*TOKENS, "--check"]), ("dsv3-run", TOKENS)):
        done = subprocess.run([BUILD / "bin" / program, *map(str, arguments)], cwd=folder, text=True, capture_output=True, timeout=60)
        assert all(word in rejected(done, 4) for word in words), done.stderr


def copy_of(prepared, trained, folder):
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    shutil.copytree(trained / "runs", folder / "runs")
    return folder / "shards"


@pytest.mark.promise("shard-index")
@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_missing_shard_is_named(prepared, trained, tmp_path, number):
    shard = sorted(copy_of(prepared, trained, tmp_path).glob("*.tokens"))[number]
    shard.unlink()
    commands_fail(tmp_path, shard.name, "missing")


@pytest.mark.promise("shard-index")
@pytest.mark.parametrize("name", ["shard-00001-copy.tokens", "extra.bin", "shard-99999.tokens"])
def test_a_file_that_is_not_in_the_index_is_named(prepared, trained, tmp_path, name):
    shards = copy_of(prepared, trained, tmp_path)
    shutil.copy(shards / "shard-00001.tokens", shards / name)
    commands_fail(tmp_path, name, "index.json")
    (shards / "index.json").unlink()
    if name.endswith(".tokens"):
        dsv3_run(*TOKENS, cwd=tmp_path)  # without an index, a folder is read as it is


@pytest.mark.promise("shard-index")
@pytest.mark.parametrize("content", ["", "{", '{"format": "dsv3-tokens"}', '{"format": "dsv3-tokens", "shards": [1]}'])
def test_a_damaged_index_is_named(prepared, trained, tmp_path, content):
    (copy_of(prepared, trained, tmp_path) / "index.json").write_text(content)
    commands_fail(tmp_path, "index.json")


@pytest.mark.promise("shard-index")
def test_all_shards_missing(prepared, trained, tmp_path):
    for shard in copy_of(prepared, trained, tmp_path).glob("*.tokens"):
        shard.unlink()
    commands_fail(tmp_path, "shard-00000.tokens", "shard-00002.tokens")


# --- hints


@pytest.mark.promise("hints")
@pytest.mark.parametrize("path", ["runs/r", "./runs/r/", "{}/runs/r"])
def test_a_path_as_run_id(trained, path):
    error = dsv3_run("--run_id", path.format(trained), "train.steps=5", cwd=trained, check=2).stderr
    name, output = error.split("pass its name, ")[1].split(", and add --output ")
    dsv3_run("--run_id", name, "--output", output.strip(), cwd=trained)


@pytest.mark.promise("hints")
def test_invalid_documents_name_the_flag(trained, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"text": 3}\n' + '{"text": "more"}\n' * 3)
    for command in (["eval", trained / "runs/r", "--text", "bad.jsonl"], ["data", "prepare", "bad.jsonl", "--tokenizer", "bytes", "--output", "new"]):
        assert "--on-error skip" in rejected(stored.dsv3(*command, cwd=tmp_path), 4)
        assert stored.dsv3(*command, "--on-error", "skip", cwd=tmp_path).returncode == 0


@pytest.mark.promise("hints")
@pytest.mark.parametrize("name, why", [(".", "it is a folder"), ("/dev/zero", "not a regular file"), ("fifo", "not a regular file"),
                                       ("nowhere.yaml", "no such file"), ("tiny.yaml/x", "Not a directory")])
def test_base_files_that_cannot_be_read(tmp_path, name, why):
    make_tiny(tmp_path)
    stored.make_fifo(tmp_path / "fifo")
    stored.edit(tmp_path / "tiny.yaml", ("name: tiny", f"extends: [{name}]"))
    assert why in dsv3_run("tiny.yaml", "--check", cwd=tmp_path, check=2, timeout=30).stderr


@pytest.mark.promise("hints")
@pytest.mark.parametrize("value, text", [(None, "not null"), (["llama"], "of type array"), (3, "of type number"), ("", "no \"model_type\"")])
def test_a_model_type_that_is_no_name(trained, tmp_path, value, text):
    shutil.copytree(trained / "hf", tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    (tmp_path / "hf/config.json").write_text(json.dumps(config | {"model_type": value}))
    assert text in rejected(stored.dsv3("import", "hf", "new", cwd=tmp_path))


@pytest.mark.promise("hints")
@pytest.mark.parametrize("kind, name, can_choose", [("format", "deepseek_v3", False), ("attention", "mla", True)])
def test_a_name_of_a_built_in_plugin(trained, tmp_path, kind, name, can_choose):
    library = shutil.copy(BUILD / f"lib/dsv3/plugins/libdsv3_{kind}_{name}.so", tmp_path / "mine.so")
    words = ["import", "hf", "new"] if kind == "format" else ["plugins", "describe", f"{kind}/{name}"]
    error = rejected(stored.dsv3(*words, "--plugin-path", library, cwd=trained), 3)
    assert "rename it" in error and ("set `library:" in error) == can_choose, error


# --- damaged-checkpoints

READERS = [["eval"], ["generate", "--prompt", "a"], ["export"], ["--from"], ["--branch"]]


@pytest.mark.promise("damaged-checkpoints")
@pytest.mark.parametrize("reader", READERS, ids=[words[0] for words in READERS])
@pytest.mark.parametrize("damage, why", [("truncate", "bytes, but the manifest says"), ("manifest", "manifest.json"), ("flip", "SHA-256")])
def test_damaged_checkpoints_are_named(trained, tmp_path, reader, damage, why):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    for checkpoint in (tmp_path / "runs/r/checkpoints").glob("step-*"):
        file = checkpoint / ("manifest.json" if damage == "manifest" else "rank-00000.safetensors")
        content = file.read_bytes()
        file.write_bytes(content[:-8] if damage == "truncate" else content[:-50] + b"x" * 50)
    if reader[0].startswith("--"):
        done = subprocess.run([RUN, "tiny.yaml", *reader, "runs/r", "--output", "new"], cwd=tmp_path, text=True, capture_output=True, timeout=60)
    else:
        done = stored.dsv3(reader[0], "runs/r", *reader[1:], *(["new"] if reader[0] == "export" else []), cwd=tmp_path)
    error = rejected(done, 5).split("error: ")[1]
    assert "damaged" in error and "step-4" in error and why in error, error


# --- misspelled-keys


@pytest.mark.promise("misspelled-keys")
@pytest.mark.parametrize("old, new", [
    ("steps: 30", "stpes: 30"), ("steps: 30", "token: 30"), ("\noptimizer:", "\noptimzer:"), ("\ndata:", "\ndta:"), ("\nstrategy:", "\nstrateg:"),
    ("  hidden: 32", "  hiden: 32"), ("swiglu, hidden: 64", "swiglu, hiddn: 64"), ("  attention:", "  atention:"), ("{plugin: mla", "{plugn: mla"),
    ("layers: 0,", "layer: 0,")])
def test_a_misspelled_key_is_one_error(tmp_path, old, new):
    make_tiny(tmp_path)
    stored.edit(tmp_path / "tiny.yaml", (old, new))
    error = dsv3_run("tiny.yaml", "--check", cwd=tmp_path, check=2).stderr
    assert error.count(": error: ") == 1 and "unknown key" in error and "did you mean" in error, error


@pytest.mark.promise("misspelled-keys")
def test_a_missing_key_beside_another_typo_is_reported(tmp_path):
    make_tiny(tmp_path)
    stored.edit(tmp_path / "tiny.yaml", ("steps: 30, batch: 4", "bach: 4"), ("strategy: {plugin: single}", "hubb: {}"))
    error = dsv3_run("tiny.yaml", "--check", cwd=tmp_path, check=2).stderr
    assert "train needs 'steps'" in error and "strategy is not set" in error and error.count("did you mean") == 2, error


# --- bounded-regex

SLOW = ["(a+)+$", "(.*)*x", "(.*.*)*=", r"(\w|\w\w)+!", "(?R)?(.+)+z", "((.?)*)*$y"]


@pytest.mark.promise("bounded-regex")
@pytest.mark.parametrize("pattern", SLOW)
def test_exponential_backtracking(tmp_path, pattern):
    make_tiny(tmp_path)
    setting = "optimizer=" + json.dumps([{"match": "layers" + pattern.replace("a", "."), "plugin": "adamw", "lr": 0.1},
                                         {"plugin": "adamw", "lr": 0.1}])
    done = dsv3_run("tiny.yaml", setting, "--check", cwd=tmp_path, check=None, timeout=60)
    assert done.returncode in (0, 2)
    if done.returncode == 2:
        assert "match" in done.stderr and ("match limit" in done.stderr or "owns no parameters" in done.stderr), done.stderr


@pytest.mark.promise("bounded-regex")
def test_a_pattern_that_takes_too_long_has_a_place(tmp_path):
    make_tiny(tmp_path)
    stored.edit(tmp_path / "tiny.yaml", ("{role: matrix, plugin: muon", "{match: '(.+)+[#!]', plugin: muon"))
    for mode in ("--check", "--dry-run"):
        error = dsv3_run("tiny.yaml", mode, cwd=tmp_path, check=2, timeout=60).stderr
        assert "tiny.yaml:16:" in error and "'(.+)+[#!]'" in error and "match limit exceeded" in error, error


@pytest.mark.promise("bounded-regex")
@pytest.mark.parametrize("pattern, text", [("(", "missing closing parenthesis"), ("*", "quantifier"), ("[z-a]", "range out of order"),
                                           ("x" * 1001, "longer than 1000 bytes"), ("(" * 400 + ")" * 400, "nest")])
def test_patterns_that_cannot_be_used(tmp_path, pattern, text):
    make_tiny(tmp_path)
    stored.edit(tmp_path / "tiny.yaml", ("{role: matrix, plugin: muon", f"{{match: '{pattern}', plugin: muon"))
    error = dsv3_run("tiny.yaml", "--check", cwd=tmp_path, check=2).stderr
    assert "tiny.yaml:16:" in error and text in error, error
