"""`dsv3 plugins check` survives whatever a plugin does to its process, and says what that was."""

import os
import pathlib
import subprocess

import pytest

BUILD = pathlib.Path(os.environ["DSV3_BUILD_DIR"])
LIBRARY = BUILD / "tests/bad_plugins/prefix/lib/dsv3/plugins/libdsv3_fixture_faulty.so"
# fault: a piece of the report
FAULTS = {
    "throws_in_constructor": "it throws: no",
    "throws_in_destructor": "SIGABRT",
    "segfault": "SIGSEGV",
    "abort": "SIGABRT",
    "exit_0": "it ends the process with exit code 0",
    "exit_3": "it ends the process with exit code 3",
    "hang": "it is not done after 2 s",
    "throws_a_number": "no std::exception",
    "nan": "is nan",
    "negative": "is -1",
    "leak": "memory grows by about",
    "thread": "the number of threads",
    "fork": "child processes",
    "environment": "the process's environment",
    "folder": "the current folder",
    "out_of_memory": "it throws",
    "counts_calls": "depends on the calls before it",
}


def check(*arguments):
    return subprocess.run([BUILD / "bin/dsv3", "plugins", "check", LIBRARY, "--timeout", "2", *arguments],
                          capture_output=True, text=True, cwd="/", timeout=120)


@pytest.mark.parametrize("fault", FAULTS)
def test_is_reported(fault):
    done = check("--set", f"fault={fault}")
    assert done.returncode == 3, done.stdout + done.stderr
    assert FAULTS[fault] in done.stdout, done.stdout
    # The checks behind the one that died were run as well, each in a new process.
    assert "gives its memory back" in done.stdout and "lets the process end" in done.stdout, done.stdout


def test_without_a_fault_every_promise_is_kept():
    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6" in done.stdout


@pytest.mark.parametrize("setting, says", [("fualt=nan", "did you mean 'fault'?"), ("fault", "OPTION=VALUE")])
def test_mistaken_options_are_refused(setting, says):
    done = check("--set", setting)
    assert done.returncode == 2 and says in done.stderr, done.stdout + done.stderr
