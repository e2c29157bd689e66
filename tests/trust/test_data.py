"""Damaged, invalid, corrected and shrinking data, and budgets of tokens."""

import json
import os
import shutil
import subprocess
import time

import pytest

from support import BUILD, RUN, dsv3_run, header_hash, last_checkpoint, losses, make_tiny

DATA = "data={plugin: text, path: %s, tokenizer: {plugin: bytes}%s}"
SHARDS = "data={plugin: tokens, path: shards, tokenizer: {plugin: bytes}}"


def dsv3(*arguments, cwd, check=0):
    done = subprocess.run([BUILD / "bin/dsv3", *map(str, arguments)], cwd=cwd, text=True, capture_output=True, timeout=120)
    assert done.returncode == check, f"exit {done.returncode}, not {check}:\n{done.stdout}\n{done.stderr}"
    return done


def documents(count=120):
    return [f"document {i}: " + " ".join(f"word{(i * j) % 17}" for j in range(20)) for i in range(count)]


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def prepare(folder):
    make_tiny(folder)
    dsv3("data", "prepare", "text.txt", "--tokenizer", "bytes", "--output", "shards", "--shard-tokens", 8000, cwd=folder)
    return sorted((folder / "shards").glob("*.tokens"))


# Shards


@pytest.mark.promise("shard-digests")
@pytest.mark.parametrize("place", [0.02, 0.5, 0.9])
def test_a_flipped_bit_in_a_shard_ends_the_run(tmp_path, place):
    shard = prepare(tmp_path)[0]
    content = bytearray(shard.read_bytes())
    tokens = int.from_bytes(content[16:24], "little")
    content[256 + int(place * 2 * tokens) & ~1] ^= 1  # the id stays in the vocabulary
    shard.write_bytes(content)
    done = dsv3_run("tiny.yaml", SHARDS, "train.steps=40", "--run_name", "a", cwd=tmp_path, check=4)
    assert "shards/shard-00000.tokens" in done.stderr and "damaged" in done.stderr and "again" in done.stderr


@pytest.mark.promise("shard-digests")
def test_swapped_tokens_are_found_by_inspect_and_eval(tmp_path):
    shard = prepare(tmp_path)[1]
    dsv3_run("tiny.yaml", SHARDS, "train.steps=5", "--run_name", "a", cwd=tmp_path)
    content = bytearray(shard.read_bytes())
    content[300:302], content[302:304] = content[302:304], content[300:302]
    shard.write_bytes(content)
    assert "shard-00001.tokens" in dsv3("data", "inspect", "shards", cwd=tmp_path, check=4).stderr
    assert "damaged" in dsv3("eval", "runs/a", "--shards", "shards", cwd=tmp_path, check=4).stderr


def as_version_1(shard):
    """Rewrite a shard as version 1, without digests."""
    content = bytearray(shard.read_bytes())
    tokens, count = (int.from_bytes(content[at:at + 8], "little") for at in (16, 24))
    del content[256 + -(-tokens * 2 // 8) * 8 + count * 16:]
    content[8:12] = (1).to_bytes(4, "little")
    content[112:248] = bytes(136)
    content[248:256] = header_hash(bytes(content[:248])).to_bytes(8, "little")
    shard.write_bytes(content)


@pytest.mark.promise("shard-digests")
def test_shards_of_version_1_train_as_before(tmp_path):
    shards = prepare(tmp_path)
    dsv3_run("tiny.yaml", SHARDS, "train.steps=5", "--run_name", "new", cwd=tmp_path)
    for shard in shards:
        as_version_1(shard)
    (tmp_path / "shards/index.json").unlink()  # it has digests of the headers
    dsv3_run("tiny.yaml", SHARDS, "train.steps=5", "--run_name", "old", cwd=tmp_path)
    assert losses(tmp_path / "runs/old") == losses(tmp_path / "runs/new")
    assert "no digests" in dsv3("data", "inspect", "shards", cwd=tmp_path).stdout


# Invalid documents


def shards_of(folder, name="shards", tokenizer="bytes"):
    """Prepare several shards and return their folder."""
    write_jsonl(folder / "text.jsonl", documents())
    dsv3("data", "prepare", "text.jsonl", "--tokenizer", tokenizer, "--output", name, "--shard-tokens", 2000, cwd=folder)
    return folder / name


@pytest.mark.promise("hints")
@pytest.mark.parametrize("name", ["shards", "my, {shards}"])
def test_the_settings_for_prepared_data_work(tmp_path, name):
    make_tiny(tmp_path)
    done = dsv3("data", "prepare", "text.txt", "--tokenizer", "bytes", "--output", name, cwd=tmp_path)
    settings = done.stdout.splitlines()[-1].removeprefix("train on it with ")
    subprocess.run(["bash", "-c", f"{RUN} tiny.yaml --check {settings}"], cwd=tmp_path, check=True)


EXCHANGES = {"copied": lambda a, b: shutil.copy(a, b), "swapped": lambda a, b: (a.rename("x"), b.rename(a), os.rename("x", b))}


@pytest.mark.promise("whole-data")
@pytest.mark.parametrize("case", EXCHANGES)
def test_exchanged_shards_are_found(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    folder = shards_of(tmp_path)
    EXCHANGES[case](folder / "shard-00000.tokens", folder / "shard-00001.tokens")
    make_tiny(tmp_path)
    done = dsv3_run("tiny.yaml", "data={plugin: tokens, path: shards, tokenizer: bytes}", "train.steps=2", "schedule.warmup=0",
                    cwd=tmp_path, check=4)
    assert "is not the shard of this name" in done.stderr
    dsv3("data", "inspect", "shards", cwd=tmp_path, check=4)


def created_meanwhile(folder, create):
    """Prepare shards, and call `create` with the output folder's path while they are written."""
    write_jsonl(folder / "text.jsonl", documents(20000))
    process = subprocess.Popen([BUILD / "bin/dsv3", "data", "prepare", "text.jsonl", "--tokenizer", "bytes", "--output", "out"],
                               cwd=folder, stderr=subprocess.PIPE, text=True)
    while not list(folder.glob("out.tmp-*")):
        assert process.poll() is None
    create(folder / "out")
    errors = process.communicate(timeout=60)[1]
    return process.returncode, errors


@pytest.mark.promise("kept-output")
def test_prepare_does_not_replace_a_folder_that_is_new(tmp_path):
    def create(out):
        out.mkdir()
        (out / "notes").write_text("important")
    code, errors = created_meanwhile(tmp_path, create)
    assert code == 1 and "the shards are complete in" in errors and (tmp_path / "out/notes").read_text() == "important"
    kept, = tmp_path.glob("out.tmp-*")
    assert "digests match" in dsv3("data", "inspect", kept, cwd=tmp_path).stdout


@pytest.mark.promise("kept-output")
def test_prepare_does_not_replace_a_file_that_is_new(tmp_path):
    code, errors = created_meanwhile(tmp_path, lambda out: out.write_text("important"))
    assert code == 1 and "the shards are complete in" in errors and (tmp_path / "out").read_text() == "important"


@pytest.mark.promise("kept-output")
def test_prepare_follows_a_link_to_an_empty_folder(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    shards_of(tmp_path, "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk/index.json").exists()
    (tmp_path / "nowhere").symlink_to("missing")
    dsv3("data", "prepare", "text.jsonl", "--tokenizer", "bytes", "--output", "nowhere", cwd=tmp_path, check=2)


@pytest.mark.promise("whole-data")
@pytest.mark.parametrize("content", ["{}", "[]", ""])
def test_a_damaged_index_is_an_error(tmp_path, content):
    (shards_of(tmp_path) / "index.json").write_text(content)
    dsv3("data", "inspect", "shards", cwd=tmp_path, check=4)


@pytest.mark.promise("whole-data")
@pytest.mark.parametrize("place", ["path: mixed", "path: shards, validation_path: other"])
def test_shards_of_two_tokenizers_are_not_mixed(tmp_path, place):
    folder = shards_of(tmp_path)
    shutil.copytree(folder, tmp_path / "other")
    for shard in (tmp_path / "other").glob("*.tokens"):
        content = bytearray(shard.read_bytes())
        content[48:112] = b"e" * 64
        content[248:256] = header_hash(bytes(content[:248])).to_bytes(8, "little")
        shard.write_bytes(content)
    (tmp_path / "other/index.json").unlink()
    (tmp_path / "mixed").mkdir()
    shutil.copy(folder / "shard-00000.tokens", tmp_path / "mixed/a.tokens")
    shutil.copy(tmp_path / "other/shard-00000.tokens", tmp_path / "mixed/b.tokens")
    make_tiny(tmp_path)
    done = dsv3_run("tiny.yaml", f"data={{plugin: tokens, {place}, tokenizer: null}}", "model.vocab=257", "train.steps=2",
                    "schedule.warmup=0", cwd=tmp_path, check=4)
    assert "a different tokenizer than" in done.stderr


@pytest.mark.promise("whole-data")
@pytest.mark.parametrize("make", [lambda path: path.symlink_to("missing"), os.mkfifo])
def test_an_entry_that_is_no_file_is_not_left_out(tmp_path, make):
    make_tiny(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "text.txt").rename(tmp_path / "texts/a.txt")
    make(tmp_path / "texts/b.txt")
    done = dsv3_run("tiny.yaml", "data.path=texts", "train.steps=2", "schedule.warmup=0", cwd=tmp_path, check=4)
    assert "b.txt is not a regular file" in done.stderr


@pytest.mark.promise("whole-data")
def test_linked_folders_are_read_and_runs_are_not(tmp_path):
    make_tiny(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "text.txt").rename(tmp_path / "elsewhere/a.txt")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/linked").symlink_to(tmp_path / "elsewhere")
    words = ["tiny.yaml", "data.path=texts", "--output", "texts/runs", "schedule.warmup=0", "checkpoint.every=2"]
    dsv3_run(*words, "train.steps=4", "--run_name", "first", cwd=tmp_path)
    dsv3_run(*words, "train.steps=4", "--run_name", "second", cwd=tmp_path)
    compared = dsv3("compare", "texts/runs/first", "texts/runs/second", cwd=tmp_path)
    assert "same experiment" in compared.stdout
    dsv3_run("--run_id", "first", "--output", "texts/runs", "train.steps=6", cwd=tmp_path)


@pytest.mark.promise("data-errors")
def test_all_invalid_lines_are_listed_by_check(tmp_path):
    make_tiny(tmp_path)
    write_jsonl(tmp_path / "docs.jsonl", documents())
    lines = (tmp_path / "docs.jsonl").read_bytes().splitlines()
    lines[3] = b'{"text": 7}'
    lines[50] = b'{"other": "x"}'
    lines[70] = b'{"text": "\xff"}'
    lines[90] = b'["text"]'
    lines[119] = b'{"text": "unfinished'
    (tmp_path / "docs.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    for flags in (["--check"], ["--run_name", "a"]):
        done = dsv3_run("tiny.yaml", DATA % ("docs.jsonl", ""), *flags, cwd=tmp_path, check=4)
        for line in (4, 51, 71, 91, 120):
            assert f"docs.jsonl:{line}:" in done.stderr
        assert "5 of 120" in done.stderr and "on_error" in done.stderr
    assert not (tmp_path / "runs/a").exists()


@pytest.mark.promise("data-errors")
def test_text_that_is_not_utf8_is_listed_with_its_position(tmp_path):
    make_tiny(tmp_path)
    (tmp_path / "latin.txt").write_bytes("\n\n".join(documents()).encode() + b"\n\ncaf\xe9\n\nna\xefve\n")
    done = dsv3_run("tiny.yaml", DATA % ("latin.txt", ""), "--check", cwd=tmp_path, check=4)
    assert "latin.txt:241:4" in done.stderr and "latin.txt:243:3" in done.stderr and "UTF-8" in done.stderr


@pytest.mark.promise("data-errors")
def test_long_lists_are_counted(tmp_path):
    make_tiny(tmp_path)
    (tmp_path / "docs.jsonl").write_text("{}\n" * 500)
    done = dsv3("data", "prepare", "docs.jsonl", "--tokenizer", "bytes", "--output", "shards", cwd=tmp_path, check=4)
    assert "500 of 500" in done.stderr and done.stderr.count("docs.jsonl:") <= 25 and "480 more" in done.stderr


@pytest.mark.promise("skipped-documents")
def test_skipped_lines_are_counted_once(tmp_path):
    make_tiny(tmp_path)
    write_jsonl(tmp_path / "docs.jsonl", documents())
    with open(tmp_path / "docs.jsonl", "a") as file:
        file.write('{"text": null}\nnot json\n')
    done = dsv3_run("tiny.yaml", DATA % ("docs.jsonl", ", on_error: skip"), "train.steps=5", "--run_name", "skip", cwd=tmp_path)
    assert done.stderr.count("skipped 2 of 122") == 1 and "docs.jsonl:121:" in done.stderr
    assert "skipped 2 of 122" in (tmp_path / "runs/skip/log.txt").read_text()
    state = json.loads((last_checkpoint(tmp_path / "runs/skip") / "manifest.json").read_text())["state"]
    assert state["data"]["selection"]["skipped"] == 2
    # The run equals one on the valid lines alone.
    write_jsonl(tmp_path / "docs.jsonl", documents())
    dsv3_run("tiny.yaml", DATA % ("docs.jsonl", ""), "train.steps=5", "--run_name", "valid", cwd=tmp_path)
    assert losses(tmp_path / "runs/skip") == losses(tmp_path / "runs/valid")


@pytest.mark.promise("skipped-documents")
def test_prepare_skips_and_counts(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good one\n\nbad \x80 one\n\ngood two\n")
    arguments = ["data", "prepare", "a.txt", "--tokenizer", "bytes", "--output"]
    dsv3(*arguments, "strict", cwd=tmp_path, check=4)
    done = dsv3(*arguments, "lenient", "--on-error", "skip", cwd=tmp_path)
    assert "2 documents" in done.stdout and "skipped 1 of 3" in done.stderr and "a.txt:3:5" in done.stderr


@pytest.mark.promise("skipped-documents")
def test_nothing_but_invalid_documents_is_an_error(tmp_path):
    make_tiny(tmp_path)
    (tmp_path / "docs.jsonl").write_text('{"text": 1}\n' * 3)
    done = dsv3_run("tiny.yaml", DATA % ("docs.jsonl", ", on_error: skip"), "--check", cwd=tmp_path, check=4)
    assert "no valid text" in done.stderr


# Corrected documents


def start(folder, texts, options=""):
    """Train 3 steps, which read a small part of the documents, and save a checkpoint."""
    make_tiny(folder)
    write_jsonl(folder / "docs.jsonl", texts)
    dsv3_run("tiny.yaml", DATA % ("docs.jsonl", options), "train.steps=9", "checkpoint.every=3", "checkpoint.keep_best=9", "validation.every=3", "--run_name", "a", cwd=folder)
    run = folder / "runs/a"
    for checkpoint in (run / "checkpoints").glob("step-*"):
        if int(checkpoint.name.split("-")[1]) != 3:
            subprocess.run(["rm", "-r", checkpoint], check=True)
    (run / "status.json").unlink()
    return json.loads((last_checkpoint(run) / "manifest.json").read_text())["state"]["data"]


def resume_with(folder, texts, check=0):
    write_jsonl(folder / "docs.jsonl", texts)
    return dsv3_run("--run_id", "a", cwd=folder, check=check)


@pytest.mark.promise("corrected-documents")
def test_some_corrections_resume_and_some_do_not(tmp_path):
    texts = documents()
    state = start(tmp_path, texts)
    assert state["epoch"] == 0 and 3 < state["document"] < 30
    outcomes = []
    backup = tmp_path / "backup"
    subprocess.run(["cp", "-r", tmp_path / "runs", backup], check=True)
    for i in range(0, 120, 12):
        subprocess.run(["rm", "-r", tmp_path / "runs"], check=True)
        subprocess.run(["cp", "-r", backup, tmp_path / "runs"], check=True)
        done = resume_with(tmp_path, texts[:i] + [texts[i] + " corrected"] + texts[i + 1:], check=None)
        assert done.returncode in (0, 4), done.stderr
        assert "docs.jsonl" in done.stderr and "changed" in done.stderr or done.returncode == 0
        outcomes.append(done.returncode)
    # At most a quarter of the documents were read.
    assert outcomes.count(0) >= 6


@pytest.mark.promise("corrected-documents")
def test_a_changed_document_that_was_read_is_an_error(tmp_path):
    texts = documents()
    start(tmp_path, texts)
    done = resume_with(tmp_path, [text.replace("document", "Document") for text in texts], check=4)
    assert "docs.jsonl" in done.stderr and "already read" in done.stderr


@pytest.mark.promise("corrected-documents")
def test_appended_documents_do_not_lock_the_run(tmp_path):
    texts = documents()
    start(tmp_path, texts)
    before = losses(tmp_path / "runs/a")
    done = resume_with(tmp_path, texts + ["a document that was added later"])
    assert "added" in done.stderr
    after = losses(tmp_path / "runs/a")
    assert {k: v for k, v in after[9].items() if k.startswith("train/")} == \
        {k: v for k, v in before[9].items() if k.startswith("train/")}


@pytest.mark.promise("corrected-documents")
def test_correcting_a_skipped_line_does_not_lock_the_run(tmp_path):
    texts = documents()
    start(tmp_path, texts[:60] + [None] + texts[60:], ", on_error: skip")
    assert "keeps" in resume_with(tmp_path, texts[:60] + ["now it is valid"] + texts[60:]).stderr


# Budgets


@pytest.mark.promise("budgets")
@pytest.mark.parametrize("settings, key", [
    (["train.batch=1048576", "train.sequence=134217728"], "train.sequence"),
    (["train.steps=1073741824", "train.batch=4096", "train.sequence=65536"], "train.steps"),
    (["validation.batches=1073741824", "train.batch=4096", "train.sequence=65536"], "validation.batches"),
    (["train.steps=null", "train.tokens=9223372036854775807"], "train.tokens"),
])
def test_budgets_that_overflow_are_rejected(tmp_path, settings, key):
    make_tiny(tmp_path)
    done = dsv3_run("tiny.yaml", *settings, "--check", cwd=tmp_path, check=2)
    assert key.split(".")[1] in done.stderr and "at most" in done.stderr


@pytest.mark.promise("budgets")
def test_budget_errors_have_a_position(tmp_path):
    path = make_tiny(tmp_path)
    path.write_text(path.read_text().replace("batch: 4, sequence: 48", "batch: 1000000, sequence: 100000000"))
    assert "tiny.yaml:20:36:" in dsv3_run("tiny.yaml", "--check", cwd=tmp_path, check=2).stderr


# Steps without targets


def single_token_documents(folder, longer=0):
    """Write raw ids of 1,500 documents of one token, and of `longer` documents of 500 tokens."""
    make_tiny(folder)
    ids = [256] * 1500 + ([65 + i % 26 for i in range(499)] + [256]) * longer
    (folder / "raw.bin").write_bytes(b"".join(i.to_bytes(2, "little") for i in ids))
    return "data={plugin: tokens, path: raw.bin, eos: 256, tokenizer: {plugin: bytes}}"


@pytest.mark.promise("no-targets")
def test_a_run_without_any_target_warns_once_and_counts(tmp_path):
    data = single_token_documents(tmp_path)
    done = dsv3_run("tiny.yaml", data, "train.steps=5", "validation.share=0", "--run_name", "a", cwd=tmp_path)
    assert done.stderr.count("no valid target, so") == 1 and "5 step(s) had no valid target" in done.stderr


@pytest.mark.promise("no-targets")
def test_some_steps_without_targets_are_counted(tmp_path):
    data = single_token_documents(tmp_path, 3)
    done = dsv3_run("tiny.yaml", data, "train.steps=30", "train.batch=2", "validation.share=0", "--run_name", "a", cwd=tmp_path)
    count = int(done.stderr.split(" step(s) had no valid target")[0].split()[-1])
    assert 1 <= count < 30


@pytest.mark.promise("no-targets")
def test_a_run_with_targets_does_not_warn(tmp_path):
    make_tiny(tmp_path)
    assert "valid target" not in dsv3_run("tiny.yaml", "train.steps=5", "--run_name", "a", cwd=tmp_path).stderr


# Shrinking files


def run_and_truncate(folder, data, path, size):
    """Start an endless run on `data`, truncate the file at `path` after a few steps, and return the ended process."""
    process = subprocess.Popen([RUN, "tiny.yaml", data, "train.steps=100000", "validation.every=0", "checkpoint.every=0",
                                "--run_name", "a"], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    metrics = folder / "runs/a/metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") > 3:
            break
        time.sleep(0.1)
    os.truncate(path, size)
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


@pytest.mark.promise("shrinking-files")
@pytest.mark.parametrize("size", [0, 5000])
def test_a_shrinking_shard_is_named(tmp_path, size):
    shard = prepare(tmp_path)[0]
    code, stderr = run_and_truncate(tmp_path, SHARDS, shard, size)
    assert code == 4 and "shards/shard-00000.tokens" in stderr and "shrank" in stderr and "SIGBUS" not in stderr
    status = json.loads((tmp_path / "runs/a/status.json").read_text())
    assert status["state"] == "failed" and status["exit_code"] == 4 and "shard-00000.tokens" in status["message"]


@pytest.mark.promise("shrinking-files")
def test_a_shrinking_text_is_named(tmp_path):
    make_tiny(tmp_path)
    (tmp_path / "big.txt").write_text("\n\n".join(documents(300_000)))
    code, stderr = run_and_truncate(tmp_path, DATA % ("big.txt", ""), tmp_path / "big.txt", 1000)
    assert code == 4 and "big.txt" in stderr and "SIGBUS" not in stderr


@pytest.mark.promise("shrinking-files")
def test_prepare_names_a_file_that_shrinks(tmp_path):
    """A tail that vanishes while `dsv3 data prepare` works is an error with the file's name."""
    make_tiny(tmp_path)
    big = tmp_path / "big.txt"
    big.write_text("\n\n".join(documents(200_000)))
    process = subprocess.Popen([BUILD / "bin/dsv3", "data", "prepare", "big.txt", "--tokenizer", "bytes", "--output", "shards"],
                               cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    maps = f"/proc/{process.pid}/maps"
    while process.poll() is None and "big.txt" not in open(maps).read():
        time.sleep(0.01)
    os.truncate(big, 4096)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 4 and "big.txt" in stderr, stderr
