"""Training on shards from `dsv3 data prepare` gives the same results as training on the text itself."""

import subprocess

from support import BUILD, dsv3_run, losses, make_tiny


def dsv3(*arguments, cwd, check=0):
    done = subprocess.run([BUILD / "bin/dsv3", *map(str, arguments)], cwd=cwd, text=True, capture_output=True, timeout=120)
    assert done.returncode == check, f"exit {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def test_shards_train_as_their_text(tmp_path):
    make_tiny(tmp_path)
    out = dsv3("data", "prepare", "text.txt", "--tokenizer", "bytes", "--output", "shards", "--shard-tokens", 4000,
               cwd=tmp_path).stdout
    assert "120 documents" in out
    assert "bytes" in dsv3("data", "inspect", "shards", cwd=tmp_path).stdout
    dsv3_run("tiny.yaml", "train.steps=12", "--run_name", "text", cwd=tmp_path)
    dsv3_run("tiny.yaml", "train.steps=12", "data={plugin: tokens, path: shards}", "--run_name", "tokens", cwd=tmp_path)
    assert losses(tmp_path / "runs/tokens") == losses(tmp_path / "runs/text")


def test_errors_write_nothing(tmp_path):
    make_tiny(tmp_path)
    missing = dsv3("data", "prepare", "nowhere.txt", "--tokenizer", "bytes", "--output", "shards", cwd=tmp_path, check=4)
    assert "nowhere.txt" in missing.stderr
    dsv3("data", "prepare", "text.txt", "--tokenizer", "absent.json", "--output", "shards", cwd=tmp_path, check=4)
    assert not (tmp_path / "shards").exists()


def test_ids_beyond_the_vocabulary_are_rejected(tmp_path):
    make_tiny(tmp_path)
    (tmp_path / "raw.bin").write_bytes((60_000).to_bytes(2, "little") * 4096)
    done = dsv3_run("tiny.yaml", "data={plugin: tokens, path: raw.bin}", "validation.share=0", "--run_name", "raw",
                    cwd=tmp_path, check=4)
    assert "raw.bin" in done.stderr and "60000" in done.stderr
