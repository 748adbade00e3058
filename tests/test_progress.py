"""A bar on a terminal, lines in a log."""

import io
import sys

import pytest

from m0.cli.main import main
from m0.cli.ranking import worth_a_bar
from m0.engine import progress, scoring
from m0.engine.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def work(clock, seconds, steps=100):
    """Something of so many equal steps."""
    bar = Progress(steps, "scoring", True)
    for _ in range(steps):
        clock[0] += seconds / steps
        bar.advance()
    bar.close()


def test_a_log_gets_a_line_every_thirty_seconds(clock, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    work(clock, 100)
    assert log.getvalue().splitlines() == [
        "m0: scoring: 30%, 70 s left",
        "m0: scoring: 60%, 40 s left",
        "m0: scoring: 90%, 10 s left",
    ]
    assert not {"\r", "\033"} & set(log.getvalue())


@pytest.mark.parametrize(
    ("seconds", "steps", "lines"), [(1, 100, 0), (29, 100, 0), (30, 100, 0), (31, 100, 1), (3600, 4, 3), (90, 1, 0)]
)
def test_a_short_run_leaves_no_line(clock, monkeypatch, seconds, steps, lines):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    work(clock, seconds, steps)
    assert len(log.getvalue().splitlines()) == lines


def test_a_terminal_has_a_bar_that_goes_away(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    work(clock, 1)
    shown = terminal.getvalue()
    assert "\n" not in shown
    assert 9 <= shown.count("scoring") <= 12
    assert "100%" in shown
    assert shown.endswith("\r\033[K")


@pytest.mark.parametrize("stream", [None, "closed"])
def test_without_a_stderr(clock, monkeypatch, stream):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed if stream else None)
    bar = Progress(2, "scoring", True)
    assert not bar.bar
    bar.advance()
    bar.close()


def test_nothing_unasked(clock, monkeypatch):
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        bar = Progress(2, "scoring", False)
        clock[0] += 100
        bar.advance()
        bar.close()
        assert stream.getvalue() == ""


def test_a_ranking_says_how_far_it_is(clock, monkeypatch, tiny):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    score = scoring._scored

    def slow(*arguments):
        clock[0] += 20
        return score(*arguments)

    monkeypatch.setattr(scoring, "_scored", slow)
    tiny.rank("q", [f"document {number} of many words" for number in range(30)], batch_tokens=16, progress=True)
    lines = log.getvalue().splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("m0: reading: ") for line in lines)
    log.truncate(0)
    tiny.rank("q", ["a", "b"], progress=True)
    assert log.getvalue().strip("\0") == ""


@pytest.mark.parametrize("command", [["rank"], ["explain"]])
def test_the_command_line_asks_for_it(clock, monkeypatch, tiny_directory, tmp_path, capsys, command):
    """A job's log says that it is alive, however few the documents; a terminal has no bar for a few."""
    (tmp_path / "a.jsonl").write_text('"one"\n"two"\n"three"\n')
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    assert worth_a_bar(1)
    reader = progress.Progress.advance

    def slow(self, amount=1):
        clock[0] += 40
        reader(self, amount)

    monkeypatch.setattr(progress.Progress, "advance", slow)
    assert main([*command, "q", str(tmp_path / "a.jsonl"), "--model", str(tiny_directory), "--json"]) == 0
    assert "m0: reading: 33%, 80 s left" in log.getvalue()
    assert ("m0: explaining: 33%" in log.getvalue()) == (command == ["explain"])
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert not worth_a_bar(7)
    assert worth_a_bar(8)
