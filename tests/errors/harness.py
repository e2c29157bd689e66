"""Run the real programs on invalid input and normalise the outcome, so that it is the same on every machine.

A case is a function that prepares a folder and returns the Command to run in it. Most cases list phrases that the error
message must contain. Cases that test the structure of the output (source excerpts, several errors, notes, files left on
disk) compare the whole outcome with a golden file.
"""

import dataclasses
import os
import pathlib
import re
import resource
import subprocess
import sys
from typing import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

from support import BUILD, SOURCE, TINY, make_tiny  # noqa: E402

FIXTURES = BUILD / "tests/bad_plugins/prefix"
TIMEOUT = 120  # seconds that a program may take to report the error
GOLDEN = "golden file"  # passed instead of phrases to compare the whole outcome with a golden file


@dataclasses.dataclass
class Command:
    """A command line. `program` is dsv3-run or dsv3; `limits` maps setrlimit resource names to values."""
    words: list
    program: str = "dsv3-run"
    environment: dict = dataclasses.field(default_factory=dict)
    limits: dict = dataclasses.field(default_factory=dict)
    shell: str = ""  # shell script that runs the program; "$@" is the program with its arguments


@dataclasses.dataclass
class Case:
    name: str
    title: str  # describes the invalid input
    exit_code: int
    phrases: tuple  # phrases that stderr must contain, or (GOLDEN,) to compare the whole outcome
    prepare: Callable
    leaves: tuple  # files that the command adds, changes or removes
    stdout: str
    needs: Callable  # returns why this machine cannot run the case, or ""

    @property
    def is_golden(self):
        return self.phrases == (GOLDEN,)


@dataclasses.dataclass
class Outcome:
    command: str
    exit_code: int
    stdout: str
    stderr: str
    left: list  # lines of changes()

    def text(self, title):
        """Return the content for the golden file."""
        parts = [f"case: {title}", f"$ {self.command}", f"exit: {self.exit_code}"]
        if self.stdout:
            parts.append("stdout:\n" + self.stdout)
        parts += ["stderr:\n" + self.stderr, "left behind: " + (", ".join(self.left) or "nothing")]
        return "\n".join(parts) + "\n"


CASES: dict[str, Case] = {}


def case(exit_code, *phrases, leaves=(), stdout="", needs=lambda: "", name="", title=""):
    """Register the decorated function as a case. The defaults for name and title are its name and docstring."""
    def register(prepare):
        case_name, case_title = name or prepare.__name__, " ".join((title or prepare.__doc__).split())
        assert case_name not in CASES and phrases, case_name
        CASES[case_name] = Case(case_name, case_title, exit_code, phrases, prepare, tuple(leaves), stdout, needs)
        return prepare
    return register


def dsv3_run(*words, **rest):
    return Command(list(map(str, words)), **rest)


def dsv3(*words, **rest):
    return Command(list(map(str, words)), program="dsv3", **rest)


def experiment(folder, *replacements, add=""):
    """Write the tiny experiment with (old, new) replacements, and its training text. Return its file name."""
    make_tiny(folder)
    text = TINY
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new, 1)
    (folder / "tiny.yaml").write_text(text + add)
    return "tiny.yaml"


def prepare_with(folder, *words, program="dsv3-run"):
    """Run a command that prepares the folder, and assert that it succeeds."""
    done = subprocess.run([BUILD / "bin" / program, *map(str, words)], cwd=folder, text=True, capture_output=True,
                          timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr


def trained(folder, name="done", *words):
    """Train a run of three steps and return its newest checkpoint."""
    file = experiment(folder)
    prepare_with(folder, file, "train.steps=3", "schedule.warmup=0", "checkpoint.every=1", "validation.every=0", *words, "--run_name", name)
    return folder / "runs" / name / "checkpoints/step-3"


def tree(folder):
    """Return the relative paths below `folder` with sizes and times, to detect what a command changed."""
    return {str(p.relative_to(folder)): (p.is_dir(), 0 if p.is_dir() else p.stat().st_size, p.lstat().st_mtime_ns * p.is_file())
            for p in sorted(folder.rglob("*"))}


def changes(before, after):
    """List new, changed and removed files. For a new folder, list only the folder."""
    lines = [f"removed {name}" for name in before if name not in after]
    new_folders = [name for name in after if name not in before and after[name][0]]
    for name, state in after.items():
        if name.endswith("/lock"):
            continue  # skip the lock file, which records the last process that used the run
        if before.get(name) == state or any(name.startswith(folder + "/") for folder in new_folders):
            continue
        lines.append(f"{'changed' if name in before else 'new'} {name}{'/' if state[0] else ''}"
                     + (" (empty)" if state[0] and not any(n.startswith(name + "/") for n in after) else ""))
    return lines


LOG_LINE = re.compile(r"^\d\d:\d\d:\d\d (debug|info) .*\n", re.M)

# Patterns for text that differs between machines and runs, with their placeholders.
VARIABLE = (
    (r"^\d\d:\d\d:\d\d (warning|error)", r"HH:MM:SS \1"),
    (r"\ballocate \d+ bytes", "allocate N bytes"),
    (r"loss \S+, gradient norm [^;\s]+", "loss LOSS, gradient norm NORM"),
    (r"first non-finite value: .*?(?=\. [A-Z])", "first non-finite value: WHERE"),
    (r"process \d+ on [\w.-]+", "process PID on HOST"),
    (r"\.tmp-[0-9a-f]+(-\d+)?", ".tmp-NONCE"),
    (r"last read: '\"[0-9a-f]+'", "last read: 'NONCE'"),
    (r'("sha256": ")[0-9a-f]{6,}', r"\1DIGEST"),
    (r"\bheaders [0-9a-f]{4,16}", "headers DIGEST"),
    (r"[\d.]+ (B|[KMG]iB) free", "SPACE free"),
    (r"[\d.]+ (B|[KMG]iB) needed", "SIZE needed"),  # what fits depends on the order of concurrent writes
    (r"\b(digest|experiment's is) [0-9a-f]{12}", r"\1 DIGEST"),
    (r"\b((?:this dsv3|plugin) )libstdcpp\w+", r"\1CXX_ABI"),
    (r"LibTorch( *: +plugin [\w.]+, this dsv3|) 2\.\d+\.\d+", r"LibTorch\1 TORCH"),
)


def normalised(text, folder):
    """Replace text that differs between machines, folders and runs with placeholders."""
    text = LOG_LINE.sub("", text)  # log lines from a normal start are not part of the error
    text = re.sub(r"^ *(group +optimizer|\w+ +\w+ +[\d.e+-]+ +[\d,]+ +[\d,]+$).*\n", "", text, flags=re.M)
    for path, word in ((folder.resolve(), "FOLDER"), (folder.parent.resolve(), "PARENT"), (BUILD.resolve(), "BUILD"),
                       (BUILD, "BUILD"), (SOURCE, "SOURCE")):
        text = text.replace(str(path), word)
    for pattern, word in VARIABLE:
        text = re.sub(pattern, word, text, flags=re.M)
    return text.strip("\n")


def apply_limits(limits):
    def apply():
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, name), (value, value))
    return apply


def run(one, folder):
    """Prepare `folder`, run the case's command in it and return the Outcome."""
    folder.mkdir(parents=True)
    command = one.prepare(folder)
    program = str(BUILD / "bin" / command.program)
    argv = ["bash", "-c", command.shell, "bash", program, *command.words] if command.shell else [program, *command.words]
    before = tree(folder)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DSV3_")}
    done = subprocess.run(argv, cwd=folder, text=True, capture_output=True, timeout=TIMEOUT, errors="replace",
                          env={**environment, "OMP_NUM_THREADS": "1", **command.environment},
                          preexec_fn=apply_limits(command.limits))
    setting = "".join(f"{k}={v} " for k, v in command.environment.items())
    words = " ".join(f"'{w}'" if re.search(r"[\s{}()*$]", w) else w for w in command.words)
    return Outcome(normalised(f"{setting}{command.program} {words}".rstrip(), folder), done.returncode,
                   normalised(done.stdout, folder), normalised(done.stderr, folder), changes(before, tree(folder)))


def missing_excerpts(one, stderr):
    """Return the FILE:LINE:COLUMN phrases whose source line, with a caret under that column, is missing from stderr."""
    shown = set()
    for excerpt in re.finditer(r"^ *(\d+) \| .*\n *\| ( *)\^", stderr, re.M):
        shown.add((excerpt[1], len(excerpt[2]) + 1))
    positions = [re.fullmatch(r"\S+:(\d+):(\d+)", phrase) for phrase in one.phrases]
    return [match[0] for match in positions if match and (match[1], int(match[2])) not in shown]
