"""Makes a user's mistake with the real programs and turns what comes of it into text that repeats anywhere.

A mistake is a function that prepares a folder and returns the Command to type in it. Its golden file holds the words of
the mistake, the command, the exit code, what was printed, and what the command left behind.
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
TIMEOUT = 120  # seconds a program may take to find its mistake


@dataclasses.dataclass
class Command:
    """What is typed. `program` is dsv3-run or dsv3; limits are those of setrlimit, by name."""
    words: list
    program: str = "dsv3-run"
    environment: dict = dataclasses.field(default_factory=dict)
    limits: dict = dataclasses.field(default_factory=dict)
    shell: str = ""  # runs instead, with "$@" the program and its words


@dataclasses.dataclass
class Mistake:
    name: str
    says: str  # what the user did, for the golden file
    exit_code: int
    prepare: Callable
    needs: Callable  # -> why this machine cannot show it, or ""


MISTAKES: dict[str, Mistake] = {}


def mistake(exit_code, needs=lambda: ""):
    """Registers the decorated function; its name is the golden file's, its docstring the words."""
    def register(prepare):
        name = prepare.__name__
        assert name not in MISTAKES and prepare.__doc__, name
        MISTAKES[name] = Mistake(name, " ".join(prepare.__doc__.split()), exit_code, prepare, needs)
        return prepare
    return register


def dsv3_run(*words, **rest):
    return Command(list(map(str, words)), **rest)


def dsv3(*words, **rest):
    return Command(list(map(str, words)), program="dsv3", **rest)


def experiment(folder, *replacements, add=""):
    """The tiny experiment and its text, with (from, to) replaced; the file's name."""
    make_tiny(folder)
    text = TINY
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new, 1)
    (folder / "tiny.yaml").write_text(text + add)
    return "tiny.yaml"


def quiet_run(folder, *words, program="dsv3-run"):
    """A command of the preparation, which must succeed."""
    done = subprocess.run([BUILD / "bin" / program, *map(str, words)], cwd=folder, text=True, capture_output=True,
                          timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr


def trained(folder, name="done", *words):
    """A finished run of three steps; its newest checkpoint."""
    file = experiment(folder)
    quiet_run(folder, file, "train.steps=3", "checkpoint.every=1", "validation.every=0", *words, "--run_name", name)
    return folder / "runs" / name / "checkpoints/step-3"


def tree(folder):
    """Relative names of all that is below `folder`, with sizes and times, to see what a command changed."""
    return {str(p.relative_to(folder)): (p.is_dir(), 0 if p.is_dir() else p.stat().st_size, p.lstat().st_mtime_ns * p.is_file())
            for p in sorted(folder.rglob("*"))}


def changed(before, after):
    """Lines that say what is new, changed or gone; of a new folder its name only."""
    lines = [f"removed {name}" for name in before if name not in after]
    new_folders = [name for name in after if name not in before and after[name][0]]
    for name, state in after.items():
        if name.endswith("/lock"):
            continue  # says who used the run last
        if before.get(name) == state or any(name.startswith(folder + "/") for folder in new_folders):
            continue
        lines.append(f"{'changed' if name in before else 'new'} {name}{'/' if state[0] else ''}"
                     + (" (empty)" if state[0] and not any(n.startswith(name + "/") for n in after) else ""))
    return lines


LOG_LINE = re.compile(r"^\d\d:\d\d:\d\d (debug|info) .*\n", re.M)


def normalised(text, folder):
    """Without what differs between machines, folders and moments."""
    # What a healthy start prints (sizes, plan, steps) is no part of an error.
    text = LOG_LINE.sub("", text)
    text = re.sub(r"stderr:\n\n+", "stderr:\n", text)
    text = re.sub(r"^(group +optimizer|\w+ +\w+ +[\d.e+-]+ +[\d,]+ +[\d,]+$).*\n", "", text, flags=re.M)
    text = re.sub(r"^\d\d:\d\d:\d\d (warning|error)", r"HH:MM:SS \1", text, flags=re.M)
    for path, word in ((folder.resolve(), "FOLDER"), (folder.parent.resolve(), "PARENT"), (BUILD.resolve(), "BUILD"), (BUILD, "BUILD"), (SOURCE, "SOURCE")):
        text = text.replace(str(path), word)
    for pattern, word in ((r"memory: \d+ more", "memory: N more"), (r"loss \S+, gradient norm \S+", "loss LOSS, gradient norm NORM"), (r"first not finite: .*?\. Nothing was", "first not finite: WHERE. Nothing was"), (r"process \d+ on [\w.-]+", "process PID on HOST"), (r"\.tmp-[0-9a-f]+(-\d+)?", ".tmp-NONCE"), (r"last read: '\"[0-9a-f]+'", "last read: 'NONCE'"),
                          (r'("sha256": ")[0-9a-f]{6,}', r"\1DIGEST"),
                          (r"\bheaders [0-9a-f]{4,16}", "headers DIGEST"), (r"[\d.]+ (B|[KMG]iB) free", "SPACE free"),
                          (r"\b(digest|experiment's is) [0-9a-f]{12}", r"\1 DIGEST"),
                          (r"(this dsv3 )libstdcpp\w+", r"\1CXX_ABI"), (r"(plugin )libstdcpp\w+", r"\1CXX_ABI"),
                          (r"LibTorch( *: +plugin [\w.]+, this dsv3|) 2\.\d+\.\d+", r"LibTorch\1 TORCH")):
        text = re.sub(pattern, word, text)
    return text


def preexec(limits):
    def apply():
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, name), (value, value))
    return apply


def outcome(one, folder):
    """The text of a golden file."""
    folder.mkdir(parents=True)
    command = one.prepare(folder)
    program = str(BUILD / "bin" / command.program)
    argv = ["bash", "-c", command.shell, "bash", program, *command.words] if command.shell else [program, *command.words]
    before = tree(folder)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DSV3_")}
    done = subprocess.run(argv, cwd=folder, text=True, capture_output=True, timeout=TIMEOUT, errors="replace",
                          env={**environment, "OMP_NUM_THREADS": "1", **command.environment},
                          preexec_fn=preexec(command.limits))
    after = tree(folder)
    setting = "".join(f"{k}={v} " for k, v in command.environment.items())
    words = " ".join(f"'{w}'" if re.search(r"[\s{}()*$]", w) else w for w in command.words)
    lines = [f"mistake: {one.says}", f"$ {setting}{command.program} {words}".rstrip(), f"exit: {done.returncode}"]
    if done.stdout.strip():
        lines.append("stdout:\n" + done.stdout.rstrip("\n"))
    lines.append("stderr:\n" + done.stderr.rstrip("\n"))
    left = changed(before, after)
    lines.append("left behind: " + (", ".join(left) if left else "nothing"))
    return normalised("\n".join(lines) + "\n", folder), done.returncode
