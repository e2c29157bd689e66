"""What a run shows on a terminal: the screen that a terminal emulator draws, not the bytes that it receives."""

import codecs
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time

import pyte
import pytest

from support import RUN, dsv3_run, make_tiny

ROWS = 12  # fewer than a run's lines, so the screen scrolls
# All fields in order. A terminal shows as many as fit.
FIELDS = [r"loss [\d.]+", r"eta (\d+ ms|[\d.]+ s|\d+m\d\ds|\d+h\d\dm|\d+d\d\dh)", r"norm ([\d.]+|nan)", r"lr x[\d.]+",
          r"[\d.]+( k)? tok/s", r"[\d.]+ [MGT]FLOP/s", r"mem [\d.]+ [MG]B", r"data wait \d+ %"]
LIVE = re.compile(r"step (?P<step>\d+)/\d+" + "".join(f"(  {field})?" for field in FIELDS))
LONG = ["train.steps=2000", "train.log_every=2000", "validation.every=0", "checkpoint.every=0"]


class Terminal:
    """Runs dsv3-run with its standard error on an emulated terminal, and its standard output in a pipe."""

    def __init__(self, folder, *words, columns=80, **environment):
        self.screen = pyte.HistoryScreen(columns, ROWS, history=10_000)
        self.stream = pyte.Stream(self.screen)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.received = ""
        self.live = []  # every state of the live line
        self.master, slave = pty.openpty()
        self.set_size(columns)
        inherited = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        self.process = subprocess.Popen(
            [RUN, "tiny.yaml", *words], cwd=folder, env={**inherited, "TERM": "xterm-256color", **environment}, stdin=slave,
            stdout=subprocess.PIPE, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))  # so that Ctrl-C on the terminal becomes SIGINT
        os.close(slave)

    def set_size(self, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))

    def type(self, text):
        os.write(self.master, text.encode())

    def rows(self):
        """Return all rows, including those that have scrolled off the screen."""
        lines = [*self.screen.history.top, *(self.screen.buffer[y] for y in range(ROWS))]
        return ["".join(line[x].data for x in range(self.screen.columns)).rstrip() for line in lines]

    def colors(self):
        lines = [*self.screen.history.top, *self.screen.buffer.values()]
        return {cell.fg for line in lines for cell in line.values()}

    def read(self):
        """Draw what the terminal has received. Return False at the end."""
        try:
            text = self.decoder.decode(os.read(self.master, 1 << 16))
        except OSError:  # the program has closed the terminal
            return False
        self.received += text
        for part in re.split(r"(?<=\r)(?!\n)", text):  # the cursor returns to the first column after each state
            self.stream.feed(part)
            self.check_live_line()
        return True

    def check_live_line(self):
        """The cursor waits on the live line. Once it has left, the line may remain as a record."""
        rows = "\n".join(self.rows()).rstrip().splitlines()
        assert sum(row.startswith("step ") for row in rows) <= 1, "\n".join(rows)
        row = self.screen.display[self.screen.cursor.y].rstrip()
        if self.screen.cursor.x == 0 and row.startswith("step "):
            assert row == rows[-1] and LIVE.fullmatch(row) and len(row) < self.screen.columns, "\n".join(rows)
            self.live.append(row)

    def read_until(self, found):
        while not found():
            assert self.read(), self.received

    def finish(self, check=0):
        """Read everything, and return the rows up to the cursor, which must be in the first column of an empty row."""
        while self.read():
            pass
        assert self.process.wait(60) == check, self.received
        assert self.process.stdout.read() == b""
        height = len(self.rows()) - ROWS + self.screen.cursor.y
        assert self.screen.cursor.x == 0 and not any(self.rows()[height:]), "\n".join(self.rows())
        return self.rows()[:height]


@pytest.fixture
def folder(tmp_path):
    make_tiny(tmp_path)
    return tmp_path


def without_times(rows):
    """Replace times, because the terminal's and the file's may be a second apart."""
    return [re.sub(r"^\d\d:\d\d:\d\d ", "HH:MM:SS ", row) for row in rows]


def log_of(folder, run, columns):
    """Return the rows that the lines of log.txt occupy on a terminal, without times and debug lines."""
    text = (folder / "runs" / run / "log.txt").read_bytes()
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", text)
    entries = re.split(r"^[\d-]{10} [\d:.]{12} (?=debug|info|warning|error)", text.decode(), flags=re.M)[1:]
    lines = [line for entry in entries if not entry.startswith("debug")
             for line in f"HH:MM:SS {entry}".removesuffix("\n").split("\n")]
    return [line[start:start + columns].rstrip() for line in lines for start in range(0, max(len(line), 1), columns)]


@pytest.mark.parametrize("no_color", ["", "1"])
@pytest.mark.parametrize("columns", [80, 120])
def test_the_screen_shows_the_log_above_one_live_line(folder, columns, no_color):
    samples = "samples={every: 7, tokens: 8, temperature: 0, prompts: [\"one\", \"two\"]}"
    terminal = Terminal(folder, samples, "train.log_every=10", "--run_name", "new", columns=columns, NO_COLOR=no_color)
    assert without_times(terminal.finish()) == log_of(folder, "new", columns)
    steps = [int(LIVE.fullmatch(row)["step"]) for row in terminal.live]
    assert sorted(set(steps)) == [step for step in range(1, 30) if step % 10] and steps == sorted(steps)
    assert all(("FLOP/s  mem " in row) == (columns == 120) for row in terminal.live)
    assert terminal.colors() == ({"default"} if no_color else {"default", "green"})


def test_the_live_line_follows_the_width_of_the_terminal(folder):
    terminal = Terminal(folder, *LONG, columns=120)
    terminal.read_until(lambda: terminal.live and "  mem " in terminal.live[-1])
    for columns in (40, 21, 12):
        terminal.set_size(columns)
        terminal.read_until(lambda: len(terminal.live[-1]) < columns)  # the process sees the new width in the next step
        terminal.screen.resize(columns=columns)
        seen = len(terminal.live)
        terminal.read_until(lambda: len(terminal.live) > seen + 3)
    assert terminal.live[-1].startswith("step ") and "loss" not in terminal.live[-1]
    terminal.set_size(120)
    terminal.screen.resize(columns=120)
    terminal.read_until(lambda: "  mem " in terminal.live[-1])
    terminal.type("\x03")
    terminal.finish(130)


def test_ctrl_c_leaves_the_last_step_and_then_the_prompt(folder):
    terminal = Terminal(folder, *LONG, "--run_name", "new", columns=200)
    terminal.read_until(lambda: len(terminal.live) > 3)
    terminal.type("\x03")
    *_, step, stopped = terminal.finish(130)
    assert re.search(rf"info stopped at step {LIVE.search(step)['step']}; resume with dsv3-run --run_id new", stopped)


def test_a_second_ctrl_c_leaves_the_prompt_below_the_live_line(folder):
    # A step of 400 micro-batches takes much longer than the second Ctrl-C.
    terminal = Terminal(folder, *LONG, "train.batch=400", "train.micro_batch=1")
    terminal.read_until(lambda: terminal.live)
    terminal.type("\x03")
    while terminal.process.poll() is None:  # a signal has no effect while the previous one is pending
        time.sleep(0.1)
        terminal.process.send_signal(signal.SIGINT)
    lines = terminal.finish(130)
    assert "  loss " in lines[-2] and lines[-1] == "error: stopped by SIGINT again, before it was saved"


def test_an_error_follows_the_last_step(folder):
    terminal = Terminal(folder, "train.log_every=30", "validation.every=0", "checkpoint.every=0", "optimizer.0.lr=1e18",
                        columns=300)
    rows = terminal.finish(7)
    error, = (number for number, row in enumerate(rows) if "error: step " in row)
    assert LIVE.fullmatch(rows[error - 1])


def test_a_live_line_replaces_hidden_log_lines(folder):
    terminal = Terminal(folder, "log.level=warning", "train.log_every=10")
    assert [int(LIVE.fullmatch(row)["step"]) for row in terminal.finish()] == [30]


def test_a_dumb_terminal_receives_lines_only(folder):
    terminal = Terminal(folder, "train.log_every=10", "--run_name", "new", TERM="dumb")
    assert without_times(terminal.finish()) == log_of(folder, "new", 80)
    assert "\x1b" not in terminal.received and "\r" not in terminal.received.replace("\r\n", "")


def test_a_pipe_receives_lines_only(folder):
    done = dsv3_run("tiny.yaml", "train.log_every=10", "--run_name", "new", cwd=folder)
    assert without_times(done.stderr.splitlines()) == log_of(folder, "new", 1000) and "\x1b" not in done.stderr
    assert done.stdout == ""


def test_quiet_prints_errors_only(folder):
    skips = ["optimizer.0.lr=1e18", "train.not_finite=skip", "train.max_skipped=100"]
    loud = Terminal(folder, *skips, "train.log_every=10", columns=300)
    assert sum(" warning step " in row for row in loud.finish()) > 0
    assert loud.colors() > {"green", "brown"}  # ANSI's yellow, in which warnings are written
    quiet = Terminal(folder, *skips, "--quiet", "--run_name", "quiet")
    assert quiet.finish() == [] and quiet.received == ""
    log = (folder / "runs/quiet/log.txt").read_text()
    assert " info step 30/30 " in log and " warning step " in log
    failing = Terminal(folder, "optimizer.0.lr=1e18", "--quiet", columns=300)
    assert "error: step " in failing.finish(7)[0]


def test_a_resumed_run_keeps_its_log_level(folder):
    dsv3_run("tiny.yaml", "log.level=warning", "--run_name", "new", cwd=folder)
    assert dsv3_run("--run_id", "new", cwd=folder).stderr == ""
