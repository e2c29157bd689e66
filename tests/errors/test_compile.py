"""The compiler reports a misuse of the SDK with one line that says what to do."""

import json
import os
import pathlib
import re
import shlex
import subprocess

SOURCE = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DSV3_BUILD_DIR", SOURCE / "build"))
MISUSE = pathlib.Path(__file__).parent / "compile/misuse.cpp"


def compile_as_plugin(path):
    """Compile `path` with the flags of a plugin and return the compiler's messages."""
    database = json.loads((BUILD / "compile_commands.json").read_text())
    entry = next(e for e in database if e["file"].endswith("callback/early_stop/early_stop.cpp"))
    words = shlex.split(entry["command"])
    compiler = next(i for i, word in enumerate(words) if re.search(r"(\+\+|clang)(-\d+)?$", word))
    flags = words[compiler:words.index("-o")]
    return subprocess.run([*flags, "-fsyntax-only", str(path)], cwd=entry["directory"], text=True,
                          capture_output=True, env={**os.environ, "LC_ALL": "C"}).stderr


def test_each_misuse_is_one_error():
    expected = re.findall(r"// error: (.*)", MISUSE.read_text())
    errors = [line for line in compile_as_plugin(MISUSE).splitlines() if " error: " in line]
    assert all("static assertion failed" in error for error in errors), errors
    found = [text for text in expected if any(text in error for error in errors)]
    assert found == expected, errors
    assert len(errors) == len(expected), errors
