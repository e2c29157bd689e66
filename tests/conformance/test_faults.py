"""Test faulty components: `dsv3-run` names the component that fails, and `dsv3 plugins check` rejects it.

The component is KIND/faulty from tests/bad_plugins. Its option `fault` selects the fault, and `after` is the number of
calls that succeed first.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import resource
import signal
import subprocess

import pytest

BUILD = pathlib.Path(os.environ["DSV3_BUILD_DIR"])
PREFIX = BUILD / "tests/bad_plugins/prefix"
LIBRARY = PREFIX / "lib/dsv3/plugins/libdsv3_fixture_faulty.so"
AT_ONCE = 2  # number of cases run in parallel; each spends most of its time starting programs

# Working components for the experiment. Each test replaces one of them with a faulty one.
PARTS = {
    "attention": "{plugin: mha, heads: 4}",
    "position": "{plugin: rope}",
    "feed_forward": "{plugin: swiglu, hidden: 32}",
    "optimizer": "{plugin: adamw, lr: 1.0e-3}",
    "schedule": "{plugin: constant}",
    "strategy": "{plugin: single}",
    "data": "{plugin: synthetic}",
    "tracker": "[]",
    "callback": "[]",
}
EXPERIMENT = """\
dsv3: 1
name: tiny
model:
  hidden: 16
  layers: 2
  vocab: 300
  attention: %(attention)s
  position: %(position)s
  feed_forward: %(feed_forward)s
optimizer: %(optimizer)s
schedule: %(schedule)s
strategy: %(strategy)s
data: %(data)s
train: {steps: 4, batch: 2, sequence: 16, precision: fp32, log_every: 1, threads: 1}
validation: {every: 0, batches: 1, share: 0.2}
samples: {every: %(samples)s, tokens: 4}
checkpoint: {every: 0}
tracker: %(tracker)s
callback: %(callback)s
"""


RECOMPUTED = ("model.recompute=full",)


@dataclasses.dataclass
class Fault:
    kind: str
    name: str
    check: str  # conformance check that detects the fault; "" = run all checks
    finds: str  # text in the failure message of the conformance check
    run: int | None = None  # exit code of dsv3-run, negative for a signal; None = dsv3-run does not detect the fault
    does: str = ""  # regex for the function named in dsv3-run's error message
    step: str = ""  # regex for the training step in the error message; "" = before training
    says: str = ""  # regex for the rest of the error message
    after: int = 0
    settings: tuple = ()  # overrides for dsv3-run
    samples: int = 0

    def __str__(self):
        return f"{self.kind}-{self.name}" + ("-recomputed" if self.settings == RECOMPUTED else "")


PURPOSE = "broken on purpose"
SEGV, ABRT, ILL, FPE = (-int(s) for s in (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE))
NO_EXIT = "a component must not end the process"
UNCHANGED = "shape, dtype and device must not change"

FAULTS = [
    # Components that throw exceptions of different types.
    Fault("attention", "throws_in_constructor", "shapes", f"throws an exception: {PURPOSE}", 3, "layer 0, constructor", "", PURPOSE),
    Fault("attention", "throws", "shapes", f"throws an exception: {PURPOSE}", 3, "layer 0, forward", "2", PURPOSE, after=2),
    Fault("feed_forward", "throws_error", "shapes", "throws an exception: file not found", 4, "layer 0, forward", "1", "file not found", after=1),
    Fault("position", "throws", "shapes", PURPOSE, 3, "layer 1, rotate", "0", PURPOSE, after=3),
    Fault("optimizer", "throws_a_number", "descent", "not a std::exception", 3, "step", "3", "not a std::exception", after=2),
    Fault("schedule", "throws_a_number", "values", "not a std::exception", 3, "factor", "1", "not a std::exception"),
    Fault("strategy", "throws", "training", PURPOSE, 3, "begin_microbatch", "2", PURPOSE, after=1),
    Fault("data", "throws", "batches", PURPOSE, 3, "next", r"\d", PURPOSE, after=2),
    Fault("tokenizer", "throws", "round_trip", PURPOSE, 3, "encode", "", PURPOSE),
    Fault("schedule", "out_of_memory", "values", "out of memory", 8, "factor", "1", "out of memory"),
    Fault("schedule", "throws_in_destructor", "values", "SIGABRT", ABRT, "destructor", "", f"std::terminate.*{PURPOSE}"),
    # Errors in the backward pass name the component whose forward pass created the failing autograd node.
    Fault("attention", "backward_throws", "determinism", PURPOSE, 3, "layer 1, backward", "1", PURPOSE),
    Fault("feed_forward", "backward_wrong_shape", "determinism", "invalid gradient", 3, "layer 1, backward", "1", "invalid gradient"),
    Fault("attention", "backward_segfault", "determinism", "SIGSEGV", SEGV, "layer 1, backward", "1"),
    Fault("position", "backward_throws", "gradients", PURPOSE, 3, "layer 1, backward", "1", PURPOSE),
    Fault("strategy", "backward_throws", "training", PURPOSE, 3, "backward", "1", PURPOSE, after=0),
    Fault("attention", "backward_throws", "", "", 3, "layer 1, backward", "1", PURPOSE, settings=RECOMPUTED),
    Fault("position", "backward_throws", "", "", 3, "layer 1, backward", "1", PURPOSE, settings=RECOMPUTED),
    Fault("attention", "backward_segfault", "", "", SEGV, "layer 1, backward", "1", settings=RECOMPUTED),
    # Invalid results.
    Fault("attention", "undefined", "shapes", "undefined", 3, "layer 0, forward", "0", "returned an undefined tensor"),
    Fault("attention", "wrong_dtype", "shapes", "forward's result", 3, "layer 0, forward", "0", UNCHANGED),
    Fault("attention", "wrong_device", "shapes", "forward's result", 3, "layer 0, forward", "0", f"on meta.*{UNCHANGED}"),
    Fault("feed_forward", "wrong_shape", "shapes", "forward's result", 3, "layer 0, forward", "0", UNCHANGED),
    Fault("position", "wrong_shape", "shapes", "rotated k", 3, "layer 0, rotate", "0", UNCHANGED, after=2),
    Fault("position", "wrong_dtype", "shapes", "rotated k", 3, "layer 0, rotate", "0", UNCHANGED, after=2),
    Fault("position", "scale_zero", "shapes", "softmax_scale() is 0", 3, "layer 0, softmax_scale", "", r"softmax_scale\(\) is 0"),
    Fault("feed_forward", "no_object", "shapes", "factory returned a null pointer", 3, "", "", "nullptr"),
    Fault("feed_forward", "counts_in_float", "counts", "step_counts() is not int64", 3, "layer 0, step_counts", "1", "int64"),
    Fault("feed_forward", "counts_in_two_dimensions", "counts", "step_counts()", 3, "layer 0, step_counts", "1", "one-dimension"),
    Fault("feed_forward", "step_end_throws", "state", PURPOSE, 3, "layer 0, on_step_end", "1", PURPOSE),
    Fault("schedule", "nan", "values", "is nan", 3, "factor", "1", r"factor\(1, 4\) is nan"),
    Fault("schedule", "negative", "values", "is -1", 3, "factor", "1", "is -1"),
    Fault("schedule", "infinite", "values", "is inf", 3, "factor", "1", "is inf"),
    Fault("optimizer", "lr_nan", "slots", "lr() is nan", 3, "lr", "", r"lr\(\) is nan", after=0),
    Fault("strategy", "counts_from_one", "gradients", "index 1 for unit 0", 3, "adopt", "", "index 1 for unit 0"),
    Fault("strategy", "masters_in_bf16", "ranges", "fp32", 3, "owned", "", "fp32"),
    Fault("strategy", "gradient_missing", "gradients", "", 3, "update", "1", "fp32"),
    Fault("strategy", "norm_negative", "gradients", "grad_norm() is wrong", 3, "grad_norm", "1", r"grad_norm\(\) is -1"),
    Fault("data", "id_beyond", "batches", "a token id is outside", 4, "next", "0", "returned token id 300"),
    Fault("data", "id_negative", "batches", "a token id is outside", 4, "next", r"\d", "token id -1", after=1),
    Fault("data", "wrong_dtype", "batches", "int64", 4, "next", "0", "int64"),
    Fault("data", "wrong_shape", "batches", "int64", 4, "next", "0", "must be"),
    Fault("data", "wrong_device", "batches", "", 4, "next", "0", "on meta"),
    Fault("data", "ends", "batches", "without tokens", 4, "next", r"\d", "must not end", after=1),
    Fault("tokenizer", "id_beyond", "round_trip", "encode() returns id 100000", 3, "encode", "", "id 100000"),
    Fault("tokenizer", "vocabulary_empty", "vocabulary", "vocab_size() is 0", 3, "vocab_size", "", "is 0"),
    Fault("attention", "forgets_cache", "cache", "", 3, "layer 0, forward", "4", "appended 0 tokens to the cache", samples=4,
          settings=("data={plugin: text, path: text.txt, tokenizer: {plugin: bytes}}",)),
    # NaN and infinite values: the error names the first module output, gradient or parameter that contains one.
    Fault("attention", "nan", "shapes", "NaN or infinite", 7, "", "1", r"first non-finite value: output of layers.0.attention \(attention 'faulty', PLACE\)", after=1),
    Fault("position", "nan", "shapes", "NaN or infinite", 7, "", "1", r"first non-finite value: output of position 'faulty', PLACE", after=5),
    Fault("feed_forward", "backward_nan", "determinism", "", 7, "", "1",
          r"first non-finite value: gradient of the input of layers.1.feed_forward \(feed_forward 'faulty', PLACE\).*in backward order: layers.1.feed_forward"),
    Fault("feed_forward", "backward_nan", "", "", 7, "", "1",
          r"first non-finite value: gradient of the input of layers.1.feed_forward \(feed_forward 'faulty', PLACE\)", settings=RECOMPUTED),
    Fault("optimizer", "nan", "descent", "", 7, "", "3", r"parameter \S+ was not finite before the step; it is updated by optimizer 'faulty' \(PLACE\)", after=1),
    # Faults that terminate the process.
    Fault("attention", "segfault", "shapes", "SIGSEGV", SEGV, "layer 0, forward", "3", after=3),
    Fault("feed_forward", "segfault_in_a_thread", "shapes", "SIGSEGV", SEGV, "layer 0, forward", "0", "on another thread during"),
    Fault("feed_forward", "stack_overflow", "shapes", "SIGSEGV", SEGV, "layer 0, forward", "0"),
    Fault("position", "illegal_instruction", "shapes", "SIGILL", ILL, "layer 0, rotate", "0", after=2),
    Fault("optimizer", "divides_by_zero", "descent", "SIGFPE", FPE, "step", "2", after=1),
    Fault("schedule", "terminate", "values", "SIGABRT", ABRT, "factor", "1", f"std::terminate.*{PURPOSE}"),
    Fault("strategy", "abort", "training", "SIGABRT", ABRT, "begin_microbatch", "4", after=3),
    Fault("data", "segfault", "batches", "SIGSEGV", SEGV, "next", r"\d", after=1),
    Fault("tokenizer", "abort", "round_trip", "SIGABRT", ABRT, "encode", ""),
    Fault("tracker", "segfault", "delivery", "SIGSEGV", SEGV, "deliver", r"\d"),
    Fault("schedule", "exit_0", "values", "exited with code 0", 3, "factor", "3", NO_EXIT, after=2),
    Fault("attention", "exits_in_constructor", "shapes", "exited with code 0", 3, "layer 0, constructor", "", NO_EXIT),
    Fault("data", "exit_0", "batches", "exited with code 0", 3, "next", r"\d", NO_EXIT, after=2),
    Fault("tracker", "exit_0", "delivery", "exited with code 0", 3, "deliver", r"\d", NO_EXIT),
    Fault("optimizer", "quick_exit", "descent", "exited with code 0", 3, "step", "1", NO_EXIT),
    # An exception in a tracker does not stop the run. The log names the tracker.
    Fault("tracker", "throws", "delivery", PURPOSE, 0, "deliver", r"\d", PURPOSE),
    Fault("tracker", "start_throws", "delivery", PURPOSE, 0, "start", r"\d", PURPOSE),
    Fault("tracker", "finish_throws", "delivery", PURPOSE, 0, "finish", r"\d", PURPOSE),
    Fault("callback", "throws", "events", PURPOSE, 3, "on_metrics", r"\d", PURPOSE),
    Fault("callback", "nan_state", "values", "'/mean' that is not finite", 3, "state", "4", "returned a number at '/mean' that is not finite"),
    # Faults that only the conformance suite detects.
    Fault("attention", "undescribed_metric", "metrics", "records metric 'faulty/mean', which its options do not describe"),
    Fault("attention", "core_metric", "metrics", "train/"),
    Fault("attention", "metric_changes_result", "metrics", "the result when metrics are recorded"),
    Fault("attention", "looks_ahead", "causality", "the output for earlier tokens after changing token"),
    Fault("attention", "undeclared_leaf", "leaves", "is not a declared parameter"),
    Fault("position", "undeclared_leaf", "leaves", "is not a declared parameter"),
    Fault("attention", "keeps_input", "inputs", "reference to its input"),
    Fault("attention", "changes_input", "inputs", "the input after forward"),
    Fault("attention", "grows", "memory", "memory grows by about"),
    Fault("attention", "rng", "shapes", "torch's global random generator"),
    Fault("feed_forward", "reads_meta_tensor", "meta", "its data is not allocated yet"),
    Fault("feed_forward", "default_dtype", "shapes", "torch's default dtype"),
    Fault("feed_forward", "grad_mode", "shapes", "torch's grad mode"),
    Fault("feed_forward", "counts_twice", "counts", "counts tokens again"),
    Fault("position", "k_of_q", "rotation", "the score of"),
    Fault("optimizer", "keeps_gradient", "inputs", "keeps a reference to the gradient"),
    Fault("optimizer", "counts_its_own_steps", "resume", "resuming from saved"),
    Fault("optimizer", "grows", "memory", "memory grows by about"),
    Fault("schedule", "counts_calls", "pure", "depends on earlier calls"),
    Fault("schedule", "leak", "memory", "memory grows by about"),
    Fault("schedule", "hang", "values", "timed out after 8 s"),
    Fault("schedule", "exit_unseen", "values", "exited with code 3"),
    Fault("schedule", "fork", "values", "child processes"),
    Fault("strategy", "forgets_gradients", "training", "compared with plain autograd"),
    Fault("strategy", "forgets_parameters", "training", "compared with plain autograd"),
    Fault("strategy", "keeps_gradients", "gradients", "in the next step"),
    Fault("data", "forgets_its_place", "resume", ""),
    Fault("data", "depends_on_rank", "ranks", "the global stream"),
    Fault("tokenizer", "decodes_wrong", "round_trip", "decode(encode("),
    Fault("tokenizer", "eos_beyond", "vocabulary", "eos_id() is 5000"),
    Fault("tracker", "ignores_events", "records", "without having written or sent the event"),
    Fault("tracker", "thread", "delivery", "the number of threads"),
    Fault("tracker", "environment", "delivery", "the process's environment"),
    Fault("tracker", "folder", "delivery", "the current folder"),
    Fault("tracker", "retries_at_nan", "delivery", "throws RetryAfter with nan"),
]


def no_core():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def call(program, *words, cwd="/"):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DSV3_")}
    return subprocess.run([BUILD / "bin" / program, *map(str, words)], capture_output=True, text=True, cwd=cwd, timeout=120,
                          env={**environment, "OMP_NUM_THREADS": "1"}, preexec_fn=no_core, errors="replace")


def experiment(fault):
    parts = dict(PARTS, samples=fault.samples)
    component = f"{{plugin: faulty, fault: {fault.name}, after: {fault.after}}}"
    if fault.kind == "tokenizer":
        parts["data"] = f"{{plugin: text, path: text.txt, tokenizer: {component}}}"
    else:
        parts[fault.kind] = f"[{component}]" if fault.kind in ("tracker", "callback") else component
    return EXPERIMENT % parts


def place(text):
    """Return FILE:LINE:COLUMN of the faulty component's name."""
    line, row = next((n, row) for n, row in enumerate(text.splitlines(), 1) if "plugin: faulty" in row)
    return f"tiny.yaml:{line}:{row.index('faulty') + 1}"


def train(fault, folder):
    folder.mkdir()
    (folder / "tiny.yaml").write_text(experiment(fault))
    (folder / "text.txt").write_text("\n\n".join(f"line {i} of the text, {'and more ' * (i % 7)}" for i in range(200)) + "\n")
    done = call("dsv3-run", "tiny.yaml", "--plugin-path", PREFIX / "registries/faulty.toml", "--run_name", "bad",
                *fault.settings, cwd=folder)
    done.run = folder / "runs/bad"
    status = done.run / "status.json"
    return done, json.loads(status.read_text()) if status.exists() else None


def check(fault):
    only = ["--only", fault.check] if fault.check else []
    return call("dsv3", "plugins", "check", LIBRARY, "--component", f"{fault.kind}/faulty", "--set", f"fault={fault.name}",
                "--timeout", 8 if fault.name == "hang" else 60, *only)


@pytest.fixture(scope="session")
def outcomes(request, tmp_path_factory):
    """Run the programs of all selected tests in parallel. Yield {test name: future of the outcome}."""
    root = tmp_path_factory.mktemp("faults")
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {}
        for item in request.session.items:
            if (fault := getattr(item, "callspec", None) and item.callspec.params.get("fault")) is None:
                continue
            work = (train, fault, root / str(fault)) if item.function is test_training_names_the_component else (check, fault)
            futures[item.name] = pool.submit(*work)
        yield futures


def pattern(fault):
    """Return a regex for the error line that names the component, the step and the origin."""
    where = re.escape(place(experiment(fault)))
    says = fault.says.replace("PLACE", where)
    if fault.run == 7:
        return rf"error: step {fault.step} is not finite: .*{says}"
    step = f" at step {fault.step}" if fault.step else "( at step [0-9])?"
    if fault.name == "no_object":  # a null pointer is reported like an error in the constructor
        return rf"error: feed_forward 'faulty' \({where}\): .*{says}"
    named = rf"{fault.kind} 'faulty' \({fault.does}\){step}, {where}, plugin {re.escape(str(LIBRARY.resolve()))}"
    if fault.run == 0:
        return rf"warning tracker 'faulty-0' cannot {fault.does}( metrics)?, retrying: {named}: .*{says}"
    if fault.run < 0 or NO_EXIT in says:
        start = {SEGV: "SIGSEGV", ABRT: "(SIGABRT|std::terminate)", ILL: "SIGILL", FPE: "SIGFPE"}.get(fault.run, r"(exit\(0\)|quick_exit\(\))")
        where_from = "on another thread during" if "another thread" in says else "in"
        return rf"error: {start} {where_from} {named}.*; run `dsv3 plugins check {re.escape(str(LIBRARY.resolve()))}` to test the component"
    outer = r"(\w+ '\w+' \(tiny.yaml:\d+:\d+\): )?"  # names a component whose constructor called the faulty one
    return rf"error: {outer}{named}: .*{says}"


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.run is not None], ids=str)
def test_training_names_the_component(fault, outcomes, request):
    done, status = outcomes[request.node.name].result()
    assert done.returncode == fault.run, done.stderr
    lines = [line for line in done.stderr.splitlines() if re.search(pattern(fault), line)]
    assert len(lines) == 1, f"{pattern(fault)}\n{done.stderr}"
    if "std::terminate" in fault.says:
        assert re.search(fault.says, lines[0]), lines[0]
    for noise in ("frame #", "terminate called", "what():"):
        assert noise not in done.stderr
    if status is not None and fault.run > 0 and NO_EXIT not in fault.says:  # an error, not a crash
        assert re.search(fault.says.replace("PLACE", re.escape(place(experiment(fault)))), (done.run / "log.txt").read_text())
    if fault.samples:  # a sample that fails does not lose the step
        assert (done.run / f"checkpoints/step-{fault.samples}/manifest.json").exists()
    if status is None:  # the run failed before its first step, so its folder was removed
        assert fault.step == ""
    else:
        assert status["state"] == ("finished" if fault.run == 0 else "failed"), status
        assert status["exit_code"] == (fault.run if fault.run >= 0 else 128 - fault.run)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.settings != RECOMPUTED], ids=str)
def test_plugins_check_rejects(fault, outcomes, request):
    done = outcomes[request.node.name].result()
    assert done.returncode == 3, done.stdout + done.stderr
    failed = [text for text in done.stdout.split("\n  ") if text.startswith("FAIL")]
    assert failed and fault.finds in done.stdout.split("FAIL", 1)[1], done.stdout


@pytest.mark.parametrize("kind", sorted({fault.kind for fault in FAULTS}))
def test_a_component_without_a_fault_passes(kind):
    done = check(Fault(kind, "none", "", ""))
    assert done.returncode == 0 and "FAIL" not in done.stdout, done.stdout + done.stderr


def test_checks_after_a_crashed_one_run():
    done = check(Fault("schedule", "segfault", "", ""))
    assert done.stdout.count("FAIL") == 3 and "lets the process exit" in done.stdout, done.stdout


@pytest.mark.parametrize("kind, name, cause", [
    ("schedule", "segfault", "SIGSEGV"),
    ("attention", "throws_in_constructor", PURPOSE),
    ("attention", "rng", "torch's global random generator"),
    ("attention", "nan", "NaN or infinite"),
    ("optimizer", "nan", "NaN or infinite"),
])
def test_one_cause_is_reported_once(kind, name, cause):
    done = check(Fault(kind, name, "", ""))
    assert done.stdout.count(cause) == 1, done.stdout
    assert done.stdout.count("same error as") >= 2, done.stdout


@pytest.mark.parametrize("kind, name, function", [
    ("attention", "segfault", "Faulty::forward"), ("attention", "backward_segfault", "BadBackward"),
    ("feed_forward", "stack_overflow", "overflow_stack"), ("tokenizer", "abort", "Faulty::encode"),
    ("feed_forward", "segfault_in_a_thread", "std::thread"),
])
def test_a_crash_is_reported_with_its_functions(kind, name, function):
    fault = next(fault for fault in FAULTS if (fault.kind, fault.name) == (kind, name))
    done = check(fault)
    assert re.search(rf"\n +in .*{re.escape(function)}", done.stdout), done.stdout + done.stderr


def test_a_component_without_a_fault_trains(tmp_path):
    done, status = train(Fault("attention", "none", "", ""), tmp_path / "working")
    assert done.returncode == 0 and status["state"] == "finished", done.stderr


def test_a_component_that_cannot_be_measured_trains(tmp_path):
    done, status = train(Fault("feed_forward", "reads_meta_tensor", "", ""), tmp_path / "unmeasured")
    assert done.returncode == 0 and status["state"] == "finished", done.stderr
    assert "step 4/4" in done.stderr and "FLOP/s" not in done.stderr


def test_backtrace_prints_the_frames_of_a_crash(tmp_path):
    crash = Fault("attention", "segfault", "", "")
    for settings, frames in (((), 0), (("--backtrace",), 1)):
        done, _ = train(dataclasses.replace(crash, settings=settings), tmp_path / f"run{frames}")
        assert done.returncode == SEGV and "error: SIGSEGV in attention 'faulty'" in done.stderr
        assert bool(re.search(r"libdsv3_fixture_faulty\.so\(.*\[0x", done.stderr)) == bool(frames), done.stderr


@pytest.mark.parametrize("setting, says", [("fualt=nan", "did you mean 'fault'?"), ("fault", "expected key=value")])
def test_invalid_options_are_rejected(setting, says):
    done = call("dsv3", "plugins", "check", LIBRARY, "--component", "schedule/faulty", "--set", setting)
    assert done.returncode == 2 and says in done.stderr, done.stdout + done.stderr
