"""Each mutant is found on the fake device, and nothing is reported without one.

A mutant is found if its run fails with a specific message, if its metrics differ from those on the CPU, or if the
device's statistics change. All runs train three steps and start at once, two at a time.
"""

import concurrent.futures
import dataclasses
import json
import pathlib
import re
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from support import BUILD, execute, make_tiny, metrics, statistics  # noqa: E402

LIBRARIES = BUILD / "tests/fake_cuda/mutants/lib"
WORDS = ("train.steps=3", "schedule.warmup=0", "train.batch=4", "train.micro_batch=2", "train.sequence=32",
         "validation.every=3", "checkpoint.every=0", "optimizer.1.ns_dtype=fp32")
BF16 = ("train.precision=bf16",)
WHOLE_ROWS = ("data={plugin: synthetic}", "model.vocab=260")
DETERMINISTIC = ("train.deterministic=true",)
NARROW_EXPERTS = (*BF16, "feed_forward={plugin: moe, routed: 4, top_k: 2, shared: 1, hidden: 12}")
# Rows with several documents, and weights so large that the loss depends on positions.
LONG_ROWS = ("train.sequence=128", "model.init={std: 0.3}")
LATE_METRICS = ("train.log_every=3",)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of dsv3-run with the library of a mutant, or without one if `mutant` is empty."""

    mutant: str = ""
    variant: str = ""
    words: tuple = ()
    device: str = "cuda"
    source: "Run | None" = None  # the run whose weights this one starts from
    log: bool = False  # with the device's statistics, which take most of the time

    def __str__(self):
        words = [re.sub(r", library: [^}]*", "", word) for word in self.words]
        device = "on the CPU" if self.device == "cpu" else ""
        return " ".join(filter(None, [self.mutant or "no mutant", self.variant, *words, device]))


def plugin(component):
    """Return the words that select the plugin KIND/NAME of the mutants."""
    kind, name = component.split("/")
    return (f"{kind}={{plugin: {name}, library: {LIBRARIES}/dsv3/plugins/libdsv3_{kind}_{name}.so}}",)


PLAIN = Run()
HIDDEN_WAIT = Run("hidden_wait", log=True)
WAIT_AT_ONCE = Run("pending_step", "at_once", LATE_METRICS, log=True)
COPIES, LEAK = Run("more_work", "copies", log=True), Run("more_work", "leak", log=True)
MASK = Run("more_work", "mask", (*BF16, *WHOLE_ROWS, *DETERMINISTIC), log=True)
HOST_ACCESS = "host code accesses device memory"
TWO_DEVICES = "Expected all tensors to be on the same device"
FOREIGN_INDEX = "indices should be either on cpu or on the same device as the indexed tensor"
NOT_FINITE = "step 1 is not finite: .*gradient norm NaN"
PINNED = "the host changed pinned memory before the device had copied it"

# Runs that fail, with patterns in their standard error.
FAILED = {
    Run("host_read_forward"): [HOST_ACCESS, "libmutant_host_read_forward.so"],
    Run("host_read_backward"): [HOST_ACCESS, r"SIGSEGV in feed_forward 'moe' \(layer 3, backward\) at step 1"],
    Run("host_read_gradient"): [HOST_ACCESS, r"SIGSEGV in strategy 'single' \(grad_norm\) at step 1"],
    Run("host_view", "host"): [HOST_ACCESS, "SIGSEGV"],
    Run("host_view", "device"): ["the device accesses host memory", "SIGSEGV"],
    Run("checkpoint_copy", "none"): [HOST_ACCESS, "require_finite"],
    Run("checkpoint_copy", "async"): ["values that are not finite"],
    Run("checkpoint_restore", source=PLAIN): [HOST_ACCESS, "load_parameters"],
    Run(words=plugin("optimizer/host_sgd")): [HOST_ACCESS, r"SIGSEGV in optimizer 'host_sgd' \(step\) at step 1"],
    Run(words=plugin("position/host_table")): [FOREIGN_INDEX],
    Run("mixed_devices"): [TWO_DEVICES, r"aten::mul\.Tensor"],
    Run("gradient", "unwritten"): [NOT_FINITE, r"gradient of the input of layers\.3\.feed_forward"],
    Run("gradient", "shape"): [r"invalid gradient at index 0 - got \[63, 16\] but expected shape .*\[64, 16\]"],
    Run("gradient", "host"): ["invalid gradient at index 0 - expected device cuda:0 but got cpu"],
    Run("unwritten", "empty"): [NOT_FINITE, "output of head and loss"],
    Run("unwritten", "resize"): [NOT_FINITE, "output of head and loss"],
    Run("unwritten_counts"): [NOT_FINITE, r"output of layers\.1\.feed_forward"],
    Run("missing_kernel"): [r"Could not run 'aten::histogram\.bin_ct' with arguments from the 'CUDA' backend"],
    Run("unaligned", "rows", NARROW_EXPERTS): ["strides should be multiple of 16 bytes"],
    Run("unaligned", "ends", NARROW_EXPERTS): ["Offsets have to be int32"],
    Run("pinned_buffer", "operator", BF16): [PINNED],
    Run("pinned_buffer", "memory", BF16): [PINNED],
    Run("pinned_buffer", "old_event", BF16): [PINNED],
    Run("pending_step", "no_wait"): ["step 1 is not finite: loss NaN"],
    Run("pending_step", "event_first"): ["step 1 is not finite: loss NaN"],
}

# Runs that finish, but whose metrics differ from those on the CPU.
DIFFERENT = [Run("gradient", "undefined"), Run("thread_local"), Run("stale_table", words=LONG_ROWS)]

# Runs whose metrics equal those on the CPU: without a mutant, with correct code, with an error that only costs time or
# memory, and on the CPU with an error that only a GPU has.
EQUAL = [
    *(Run(words=words) for words in (
        (), BF16, (*BF16, *WHOLE_ROWS, *DETERMINISTIC), NARROW_EXPERTS, LONG_ROWS, DETERMINISTIC)),
    Run("pinned_buffer", "waits", BF16),
    HIDDEN_WAIT,
    LEAK,
    WAIT_AT_ONCE,
    *(Run(mutant, device="cpu") for mutant in ("host_read_backward", "thread_local")),
    Run("stale_table", words=LONG_ROWS, device="cpu"),
    Run(words=plugin("position/host_table"), device="cpu"),
]

# The operators that a mutant tries, with patterns for their errors.
MIXED = Run("mixed_devices", "attempts")
MISSING = Run("missing_kernel", "attempts", DETERMINISTIC)
ATTEMPTS = {
    **dict.fromkeys([(MIXED, name) for name in (
        "add", "add in place", "add to host in place", "add with host result", "mm", "mm with host result", "addmm",
        "addmm with a host number", "cat", "stack", "stack of a host number", "where with host values",
        "where with host condition", "masked_fill with host mask", "masked_select with host mask",
        "index_put with host values", "index_select", "index_select of a host tensor",
        "index_select with a host number", "index_add", "index_copy", "gather", "scatter_add", "embedding",
        "embedding of a host table", "embedding of a host number", "bincount with host weights",
        "layer_norm with host weight", "equal", "fused AdamW with a host step")], TWO_DEVICES),
    (MIXED, "attention"): "to have the same device type",
    (MIXED, "index of a host tensor"): FOREIGN_INDEX,
    (MIXED, "index of a host tensor by a mask"): FOREIGN_INDEX,
    **{(MISSING, f"integer {name}"): f"\"{kernel}\" not implemented for 'Long'" for name, kernel in (
        ("mm", "addmm_cuda"), ("bmm", "baddbmm_cuda"), ("matrix times vector", "addmv_impl_cuda"), ("dot", "dot"))},
    (MISSING, "oneDNN"): "Could not run 'aten::to_mkldnn' with arguments from the 'CUDA' backend",
    **dict.fromkeys([(MISSING, f"deterministic {name}") for name in ("bincount", "histc", "median")],
                    "does not have a deterministic implementation"),
    **dict.fromkeys([(MISSING, f"deterministic {name}") for name in ("cumsum", "index_add")], "accepted"),
}

# Functions of the mutant hidden_wait, and whether the device counts a wait in them.
WAITS = {
    **dict.fromkeys([f"wait_{name}" for name in (
        "item", "is_nonzero", "equal", "nonzero", "mask", "masked_select", "repeat", "bincount", "unique", "one_hot",
        "copy", "pageable_copy", "upload", "pageable_upload", "host_index", "index_put", "backward")], True),
    "dsv3::scale_gradient": True,
    **dict.fromkeys([f"free_{name}" for name in (
        "full", "host_number", "masked_fill", "index", "index_put", "pinned_upload")], False),
}

# Cases in which the fake device and a GPU differ, with what a GPU does. Remove a case once the device is correct.
MISSED = {}


def cases(values):
    """Return parameters for the tests. A case in MISSED must fail, until the device is corrected."""
    def param(value):
        parts = value if isinstance(value, tuple) else (value,)
        marks = [pytest.mark.xfail(reason=MISSED[value], strict=True)] if value in MISSED else []
        return pytest.param(*parts, id=" ".join(map(str, parts)), marks=marks)
    return [param(value) for value in values]


class Runs:
    """Executes runs in two threads."""

    def __init__(self, folder):
        self.folder, self.started = folder, {}
        self.pool = concurrent.futures.ThreadPoolExecutor(2)

    def start(self, run):
        if run in self.started:
            return
        if run.source:
            self.start(run.source)  # first, because a run waits for its source
        self.started[run] = self.pool.submit(self.execute, run, self.folder / f"run-{len(self.started)}")

    def execute(self, run, folder):
        folder.mkdir()
        make_tiny(folder)
        words = [*WORDS, *run.words, f"train.device={run.device}", "--run_name", "run"]
        if run.source:
            words += ["--from", self.folder_of(run.source) / "runs/run"]
        preload = [LIBRARIES / f"libmutant_{run.mutant}.so"] if run.mutant else []
        settings = {"DSV3_MUTANT": run.variant, **({"FAKE_CUDA_LOG": folder / "log.json"} if run.log else {})}
        return execute([BUILD / "bin/dsv3-run", "tiny.yaml", *words], cwd=folder, check=None, preload=preload,
                       **settings), folder

    def process_of(self, run):
        """Return the finished process of a run."""
        self.start(run)
        return self.started[run].result()[0]

    def folder_of(self, run):
        """Return the folder of a run that succeeded."""
        done = self.process_of(run)
        assert done.returncode == 0, f"{run}: exit {done.returncode}:\n{done.stderr}"
        return self.started[run].result()[1]

    def log_of(self, run):
        return self.folder_of(run) / "log.json"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    """Start all runs that the selected tests take as parameters."""
    runs = Runs(tmp_path_factory.mktemp("mutants"))
    for item in request.session.items:
        for value in getattr(getattr(item, "callspec", None), "params", {}).values():
            if isinstance(value, Run):
                runs.start(value)
    yield runs
    runs.pool.shutdown(cancel_futures=True)


def largest_difference(runs, run):
    """Return the largest relative difference between the metrics of a run and those of a CPU without mutants."""
    words = () if "host_table" in str(run) else run.words  # equals position/rope
    cpu = metrics(runs.folder_of(Run(words=words, device="cpu")) / "runs/run")
    rows = metrics(runs.folder_of(run) / "runs/run")
    assert sorted(rows) == sorted(cpu)
    return max(abs(rows[step][name] - value) / abs(value) for step, row in cpu.items() for name, value in row.items()
               if name in ("train/loss", "train/grad_norm", "val/loss"))


def tolerance(run):
    return 1e-2 if "train.precision=bf16" in run.words else 1e-5


@pytest.mark.parametrize("run", cases(FAILED))
def test_a_mutant_fails(runs, run):
    done = runs.process_of(run)
    assert done.returncode != 0
    for pattern in FAILED[run]:
        assert re.search(pattern, done.stderr), done.stderr


@pytest.mark.parametrize("run", cases(DIFFERENT))
def test_a_mutant_changes_the_metrics(runs, run):
    assert largest_difference(runs, run) > tolerance(run)


@pytest.mark.parametrize("run", cases(EQUAL))
def test_correct_code_raises_no_alarm(runs, run):
    assert largest_difference(runs, run) < tolerance(run)


@pytest.mark.parametrize("run, name", cases(ATTEMPTS))
def test_an_operator_is_rejected(runs, run, name):
    runs.folder_of(run)
    found = re.search(f"^{re.escape(name)}: (.*)$", runs.process_of(run).stderr, re.M)
    assert found and re.search(ATTEMPTS[run, name], found[1]), found and found[1]


@pytest.mark.parametrize("run, function", cases((HIDDEN_WAIT, function) for function in WAITS))
def test_a_hidden_wait_is_counted(runs, run, function):
    waits = statistics(runs.log_of(run))["waits"]
    counted = [reason for reason, site in waits if f"libmutant_hidden_wait.so {function}" in site]
    assert bool(counted) == WAITS[function], counted


@pytest.mark.parametrize("run", cases([Run(source=PLAIN)]))
def test_restored_weights_have_the_same_loss(runs, run):
    rows, source = (metrics(runs.folder_of(r) / "runs/run") for r in (run, run.source))
    assert rows[0]["val/loss"] == source[3]["val/loss"]


def without_mutant(run):
    return Run(words=run.words, log=run.log)


def fewest_operators(runs, run):
    """Return the least number of operators that were queued between an event and the wait for it in a training step."""
    log = json.loads(runs.log_of(run).read_text())
    return min(wait["operators_since"] for section in log["sections"] for wait in section["event_waits"]
               if any("Stepper::step" in frame for frame in wait["site"]))


@pytest.mark.parametrize("run", cases([WAIT_AT_ONCE]))
def test_a_wait_for_the_last_operator_is_visible(runs, run):
    """Without a mutant, the host waits for a step after it has queued the next one."""
    assert fewest_operators(runs, run) == 0 and fewest_operators(runs, without_mutant(run)) > 1000


def cost(runs, run):
    numbers = statistics(runs.log_of(run))
    return {"operators": sum(count["calls"] for count in numbers["operators"].values()),
            "peak_bytes": numbers["peak_bytes"], "attention": numbers["attention"]}


@pytest.mark.parametrize("run, name", cases([
    (COPIES, "operators"), (LEAK, "peak_bytes"), (MASK, "attention")]))
def test_more_work_changes_the_statistics(runs, run, name):
    assert cost(runs, run)[name] != cost(runs, without_mutant(run))[name]


@pytest.mark.parametrize("run", cases([Run(variant="repeated", log=True)]))
def test_the_same_work_has_the_same_cost(runs, run):
    assert cost(runs, run) == cost(runs, without_mutant(run))
