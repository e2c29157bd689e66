"""dsv3-run --check reports every error that can be found without training, with its location and a fix. A run starts
with the same checks."""

import re
import subprocess

import pytest

from support import BUILD, RUN, SOURCE, TINY, dsv3_run, make_tiny, metrics

MLA = "{plugin: mla, heads: 2, q_lora_rank: 16, kv_lora_rank: 16, qk_nope_dim: 8, qk_rope_dim: 8, v_dim: 16}"
# name: (text replaced in TINY, its replacement, the token under the caret, the message, its fix)
CONFIGURATION = {
    "small vocabulary": ("vocab: auto", "vocab: 100", "100", "model.vocab is 100, but the tokenizer has 257 ids",
                         "raise model.vocab to 257 or more, or set it to auto"),
    "hidden not divisible": (MLA, "{plugin: mha, heads: 3}", "3", "heads (3) does not divide model.hidden (32)",
                             "choose heads that divide it, or set head_dim"),
    "kv_heads": (MLA, "{plugin: mha, heads: 4, kv_heads: 3}", "3", "kv_heads (3) does not divide heads (4)",
                 "choose kv_heads that divide heads"),
    "odd rotary width": ("qk_rope_dim: 8", "qk_rope_dim: 7", "7", "qk_rope_dim results in a rotary width of 7: position 'rope'",
                         "or use position none"),
    "long warm-up": ("warmup: 5", "warmup: 500", "500", "warmup (500 steps) is longer than the run (30 steps)",
                     "shorten it, or raise train.steps or train.tokens"),
}
INPUTS = {
    "data": ("text.txt", "nowhere.txt", "nowhere.txt", "data.path: no such file or folder: FOLDER/nowhere.txt",
             "correct the path or create it"),
    "tokenizer": ("{plugin: bytes}", "{plugin: bpe, file: no.json}", "no.json",
                  "data.tokenizer.file: no such file or folder: FOLDER/no.json", "correct the path or create it"),
    "GPU": ("threads: 1", "threads: 1, device: cuda", "cuda", "train.device is cuda, but no NVIDIA driver was found",
            "install the driver so that nvidia-smi lists the GPU"),
}
HEADING = "missing or unusable inputs:\n"


def has_gpu():
    return subprocess.run(["test", "-e", "/dev/nvidiactl"]).returncode == 0


def experiment(folder, *changes):
    """Write TINY with the changes, and its training text. Return the paths of all files in the folder."""
    make_tiny(folder)
    text = TINY
    for old, new, *_ in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "tiny.yaml").write_text(text)
    return listing(folder)


def listing(folder):
    return sorted(p.relative_to(folder) for p in folder.rglob("*"))


def place(folder, change):
    """Return tiny.yaml:LINE:COLUMN of the changed value."""
    _, new, word, *_ = change
    text = (folder / "tiny.yaml").read_text()
    offset = text.index(new) + new.rindex(word)
    return f"tiny.yaml:{text.count(chr(10), 0, offset) + 1}:{offset - text.rfind(chr(10), 0, offset)}"


def assert_reported(folder, change, stderr):
    """Assert that stderr reports the error as one block: location, message, source line, caret, fix."""
    _, _, word, message, cure = change
    block = re.search(rf"^{re.escape(place(folder, change))}: error: .*\n.*\n *\| *(\^~*)\n  note: .*", stderr, re.M)
    assert block, stderr
    assert message.replace("FOLDER", str(folder)) in block[0] and cure in block[0] and len(block[1]) == len(word)


@pytest.mark.parametrize("name", CONFIGURATION)
@pytest.mark.parametrize("words", [["--check"], ["--check", "--config-only"], ["--dry-run"], ["--run_name", "new"]], ids=" ".join)
def test_configuration_errors(tmp_path, name, words):
    before = experiment(tmp_path, CONFIGURATION[name])
    done = dsv3_run("tiny.yaml", *words, cwd=tmp_path, check=2)
    assert_reported(tmp_path, CONFIGURATION[name], done.stderr)
    assert done.stderr.count(": error: ") == 1 and HEADING not in done.stderr
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("words", [["--check"], ["--run_name", "new"]], ids=" ".join)
def test_missing_inputs_are_listed_apart(tmp_path, name, words):
    if name == "GPU" and has_gpu():
        pytest.skip("this machine has a GPU")
    before = experiment(tmp_path, INPUTS[name])
    done = dsv3_run("tiny.yaml", *words, cwd=tmp_path, check=4)
    assert done.stderr.startswith(HEADING)
    assert_reported(tmp_path, INPUTS[name], done.stderr)
    assert listing(tmp_path) == before
    assert "ok" in dsv3_run("tiny.yaml", "--check", "--config-only", cwd=tmp_path).stdout


def test_all_problems_are_reported_together(tmp_path):
    wrong = [CONFIGURATION[n] for n in ("small vocabulary", "odd rotary width", "long warm-up")]
    missing = [INPUTS[n] for n in (["data"] if has_gpu() else ["data", "GPU"])]
    before = experiment(tmp_path, *wrong, *missing)
    checked = dsv3_run("tiny.yaml", "--check", cwd=tmp_path, check=2).stderr
    configuration, inputs = checked.split(HEADING)
    for change in wrong:
        assert_reported(tmp_path, change, configuration)
    for change in missing:
        assert_reported(tmp_path, change, inputs)
    assert checked.count(": error: ") == len(wrong) + len(missing)
    assert dsv3_run("tiny.yaml", "--run_name", "new", cwd=tmp_path, check=2).stderr == checked
    assert dsv3_run("tiny.yaml", "--check", "--config-only", cwd=tmp_path, check=2).stderr == configuration.rstrip() + "\n"
    assert listing(tmp_path) == before


def test_every_layer_is_built(tmp_path):
    """All three invalid attention components are reported, not only the first."""
    attention = ("\n    - {layers: 0, plugin: mha, heads: 3}\n    - {layers: 1, plugin: mla, qk_rope_dim: 5}"
                 "\n    - {layers: 2, plugin: mha, heads: 5}")
    experiment(tmp_path, (" " + MLA, attention))
    errors = dsv3_run("tiny.yaml", "--check", cwd=tmp_path, check=2).stderr
    for line, column, text in ((9, 39, "heads (3)"), (10, 45, "rotary width of 5"), (11, 39, "heads (5)")):
        assert re.search(rf"tiny\.yaml:{line}:{column}: error: .*{re.escape(text)}", errors), errors
    assert errors.count(": error: ") == 3  # the MTP module, a copy of the last layer, adds no errors


def test_places_on_the_command_line(tmp_path):
    experiment(tmp_path)
    done = dsv3_run("tiny.yaml", "--check", "schedule.warmup=500", "data.path=nowhere.txt", cwd=tmp_path, check=2)
    assert "command line: error: schedule 'cosine': warmup (500 steps)" in done.stderr
    assert "\n  schedule.warmup=500\n                  ^~~\n  note: " in done.stderr
    assert "\n  data.path=nowhere.txt\n            ^~~~~~~~~~~\n  note: " in done.stderr


def test_a_damaged_tokenizer_is_an_input(tmp_path):
    experiment(tmp_path, INPUTS["tokenizer"])
    (tmp_path / "no.json").write_text('{"model": ')
    errors = dsv3_run("tiny.yaml", "--check", cwd=tmp_path, check=4).stderr
    assert errors.startswith(HEADING) and f"tokenizer 'bpe': {tmp_path}/no.json:1:" in errors


def test_dry_run_opens_neither_data_nor_tokenizer(tmp_path):
    experiment(tmp_path, INPUTS["data"], INPUTS["tokenizer"])
    errors = dsv3_run("tiny.yaml", "--dry-run", cwd=tmp_path, check=4).stderr
    assert "model.vocab is auto" in errors and "set model.vocab to a number" in errors and "no.json" in errors
    assert "memory" in dsv3_run("tiny.yaml", "--dry-run", "model.vocab=300", "train.device=cuda", cwd=tmp_path).stdout


def test_debug_opens_neither_data_nor_tokenizer(tmp_path):
    experiment(tmp_path, INPUTS["data"], INPUTS["tokenizer"], CONFIGURATION["long warm-up"])
    assert "model.vocab is 1024, because --debug reads no tokenizer" in dsv3_run("tiny.yaml", "--debug", "train.steps=1", cwd=tmp_path).stderr
    done = dsv3_run("tiny.yaml", "--debug", "model.vocab=300", "train.steps=2", cwd=tmp_path)
    assert "step 2/2" in done.stderr


def test_config_only_requires_check(tmp_path):
    experiment(tmp_path)
    assert "add --check" in dsv3_run("tiny.yaml", "--config-only", cwd=tmp_path, check=2).stderr


def test_the_reference_is_what_the_schemas_say(tmp_path):
    printed = subprocess.run([BUILD / "bin/dsv3", "reference"], text=True, capture_output=True, check=True).stdout
    assert (SOURCE / "docs/reference.md").read_text() == printed, "ninja -C build update_readmes"


def test_the_reference_has_every_metric(tmp_path):
    experiment(tmp_path)
    dsv3_run("tiny.yaml", "train.steps=6", "--run_name", "run", cwd=tmp_path)
    written = {re.sub(r"^moe/load_max/.*", "moe/load_max/<layer>",
                      re.sub(r"^system/gpu_\d+", "system/gpu_N", re.sub(r"^train/lr/.*", "train/lr/", name)))
               for row in metrics(tmp_path / "runs/run").values() for name in row if "/" in name}
    tables = (SOURCE / "docs/reference.md").read_text().split("## Metrics")[1].split("Built-in components add")
    core, components = ({re.sub(r"[A-Z]+$", "", name) for name in re.findall(r"^\| `([^`]+)`", table, re.M)}
                        for table in tables)
    assert written <= core | components
    gpu = {name for name in core if name.startswith("system/gpu_")}
    assert core - written <= {"train/skipped", "throughput/mfu"} | gpu


OTHER_CONFIGURATION = {
    "text without a tokenizer": ("data.tokenizer=null", "model.vocab=300", "data 'text': needs a tokenizer"),
    "no documents to train on": ("validation.share=1", "share must be below 1"),
    "name of the run": ("--run_name", "a/b", "'a/b' is not a valid run name"),
    "empty output": ("--output", "", "expected the name of a folder"),
}


@pytest.mark.parametrize("name", OTHER_CONFIGURATION)
@pytest.mark.parametrize("check", [["--check"], []], ids=["check", "run"])
def test_more_configuration_errors(tmp_path, name, check):
    before = experiment(tmp_path)
    *words, message = OTHER_CONFIGURATION[name]
    assert message in dsv3_run("tiny.yaml", *check, *words, cwd=tmp_path, check=2).stderr
    assert listing(tmp_path) == before


def test_every_path_of_a_list_is_checked(tmp_path):
    experiment(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "0.txt").touch()
    paths = "data.paths=[text.txt, nowhere.txt, empty, 0.txt]"
    errors = dsv3_run("tiny.yaml", "--check", paths, cwd=tmp_path, check=4).stderr
    assert f"data.paths.1: no such file or folder: {tmp_path}/nowhere.txt" in errors
    assert f"data.paths.2: the folder is empty: {tmp_path}/empty" in errors and "data.paths.0" not in errors
    assert f"data.paths.3: the file is empty: {tmp_path}/0.txt" in errors
    assert errors.count(f"\n  {paths}\n             ^\n") == 3


def test_starting_model_is_an_input(tmp_path):
    experiment(tmp_path)
    errors = dsv3_run("tiny.yaml", "--check", "--from", "nowhere", cwd=tmp_path, check=5).stderr
    assert "--from nowhere" in errors
    assert "ok" in dsv3_run("tiny.yaml", "--check", "--config-only", "--from", "nowhere", cwd=tmp_path).stdout


def test_check_rejects_the_name_of_an_existing_run(tmp_path):
    experiment(tmp_path)
    (tmp_path / "runs/first").mkdir(parents=True)
    errors = dsv3_run("tiny.yaml", "--check", "--run_name", "first", cwd=tmp_path, check=2).stderr
    assert "run 'first' already exists in runs" in errors
    assert "ok" in dsv3_run("tiny.yaml", "--check", "--run_name", "first", "--resume", "auto", cwd=tmp_path).stdout


@pytest.mark.parametrize("words", [["--run_name", "first", "--resume", "auto"], ["--run_id", "first"]], ids=" ".join)
def test_check_compares_a_resumed_run_with_its_settings(tmp_path, words):
    experiment(tmp_path)
    dsv3_run("tiny.yaml", "train.steps=1", "schedule.warmup=0", "--run_name", "first", cwd=tmp_path)
    before = listing(tmp_path)
    errors = dsv3_run("tiny.yaml", "--check", "train.steps=1", "schedule.warmup=0", "train.seed=8", *words, cwd=tmp_path, check=2).stderr
    assert "train.seed: 7 in the run, 8 now" in errors
    assert "ok" in dsv3_run("tiny.yaml", "--check", "train.steps=1", "schedule.warmup=0", *words, cwd=tmp_path).stdout
    assert listing(tmp_path) == before


def test_check_needs_an_experiment_file(tmp_path):
    errors = dsv3_run("--check", "--run_id", "first", cwd=tmp_path, check=2).stderr
    assert "--check, --print-config and --dry-run require an experiment file" in errors
