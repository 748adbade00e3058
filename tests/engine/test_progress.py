"""A bar on a terminal, lines in a log."""

import io
import re
import sys

import pytest

from m0.cli.main import main
from m0.cli.ranking import needs_progress_bar
from m0.engine import progress, ranking
from m0.engine.batch import Batch
from m0.engine.cascade import Cascade
from m0.engine.progress import Progress
from m0.errors import InputError


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


SECONDS = 1.0
"""Of the made-up clock, for each token that goes through the model."""


@pytest.fixture
def log(clock, monkeypatch):
    """What a ranking leaves in a log: every line with the time at which it was written, on a machine of a steady pace."""
    lines = []
    monkeypatch.setattr(progress, "is_terminal", lambda: False)
    monkeypatch.setattr(progress, "_write", lambda text: lines.append((clock[0], text)))
    score = Batch.score

    def slow(self, model, features, depth=None, every_token=False):
        clock[0] += SECONDS * len(self.token_ids) * (depth or model.config.decoder.num_layers) / model.config.decoder.num_layers
        return score(self, model, features, depth, every_token)

    monkeypatch.setattr(Batch, "score", slow)
    return lines


def shares(lines):
    """Seconds, percents done and seconds left of the lines that tell these."""
    found = [(at, re.fullmatch(r"m0: scoring: (\d+)%, (\d+) s left\n", text)) for at, text in lines]
    assert all(match for _, match in found), lines
    return [(at, int(match[1]), int(match[2])) for at, match in found]


DOCUMENTS = [f"document {number} of so many words" for number in range(60)]


@pytest.mark.parametrize(
    ("batch_tokens", "cascade"),
    [(16, None), (64, None), (4096, None), (64, Cascade(keep=20, depth=1)), (64, Cascade(keep=2, depth=3)), (32, Cascade(keep=99, depth=1))],
)  # fmt: skip
def test_a_ranking_says_how_far_it_is_as_a_whole(clock, log, tiny, batch_tokens, cascade):
    """Chunk after chunk and draft after draft, the share grows and the time left is what is left."""
    begin = clock[0]
    tiny.rank("q", DOCUMENTS, batch_tokens=batch_tokens, cascade=cascade, progress=True)
    end = clock[0]
    lines = shares(log)
    assert end - begin > 600
    if batch_tokens == 4096:  # one batch
        assert not lines
        return
    assert len(lines) > 15
    assert lines == sorted(lines)
    percents = [percent for _, percent, _ in lines]
    assert percents == sorted(percents)
    for at, percent, left in lines:
        assert percent == pytest.approx(100 * (at - begin) / (end - begin), abs=8)
        assert left == pytest.approx(end - at, abs=0.1 * (end - begin))


def test_documents_that_fail_are_done(clock, log, tiny):
    broken = [{"image": b"none"}] * len(DOCUMENTS)
    tiny.rank("q", [*broken, *DOCUMENTS], batch_tokens=64, progress=True, on_error="skip")
    lines = shares(log)
    assert len(lines) > 3
    assert lines[0][1] >= 50
    assert [line[1] for line in lines] == sorted(line[1] for line in lines)


def test_a_short_ranking_leaves_no_line(log, tiny):
    tiny.rank("q", ["a", "b"], progress=True)
    assert log == []


def test_reading_shows_that_it_is_alive_before_anything_is_scored(clock, log, monkeypatch, tiny):
    """With a cascade all documents are read first; how long the rest takes is not known then."""
    read = ranking.encode_document

    def slow(*arguments):
        clock[0] += 16
        return read(*arguments)

    monkeypatch.setattr(ranking, "encode_document", slow)
    tiny.rank("q", DOCUMENTS[:5], cascade=Cascade(keep=2, depth=1), progress=True)
    assert [text for _, text in log[:2]] == ["m0: scoring: 0%, 2 of 5 read\n", "m0: scoring: 0%, 4 of 5 read\n"]
    log.clear()
    tiny.rank("q", DOCUMENTS * 2, batch_tokens=32, cascade=Cascade(keep=20, depth=1), progress=True)
    begin = max(at for at, text in log if text.endswith("read\n"))
    for at, percent, left in shares([line for line in log if not line[1].endswith("read\n")]):
        assert left == pytest.approx((clock[0] - at), abs=0.15 * (clock[0] - begin))
        assert percent > 0


def test_a_terminal_has_one_bar_for_a_ranking(clock, monkeypatch, tiny):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "monotonic", lambda: clock.__setitem__(0, clock[0] + 1) or clock[0])
    tiny.rank("q", DOCUMENTS[:20], batch_tokens=16, progress=True)
    states = terminal.getvalue().split("\r")[1:]
    assert states.pop() == "\033[K"
    assert {state[:10] for state in states} == {"scoring  ["}
    assert len({len(state) for state in states}) == 1, "each covers the one before"
    percents = [int(re.search(r"(\d+)%", state)[1]) for state in states]
    assert percents == sorted(percents)
    assert percents[0] == 0
    assert percents[-1] == 100
    assert terminal.getvalue().count("\033[K") == 1


def test_a_refused_document_takes_the_bar_away(clock, monkeypatch, tiny):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(InputError, match="document 1"):
        tiny.rank("q", ["a", ""], progress=True)
    assert terminal.getvalue().endswith("\r\033[K")


@pytest.mark.parametrize("command", [["rank"], ["explain"]])
def test_the_command_line_asks_for_it(clock, monkeypatch, tiny_directory, tmp_path, capsys, command):
    """A job's log says that it is alive, however few the documents; a terminal has no bar for a few."""
    (tmp_path / "a.jsonl").write_text('"one"\n"two"\n"three"\n')
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    assert needs_progress_bar(1)
    show = Progress.show

    def slow(self, meanwhile=""):
        clock[0] += 40
        show(self, meanwhile)

    monkeypatch.setattr(Progress, "show", slow)
    assert main([*command, "q", str(tmp_path / "a.jsonl"), "--model", str(tiny_directory), "--json"]) == 0
    assert "m0: scoring: 0%, 2 of 3 read" in log.getvalue()
    assert ("m0: explaining: 33%" in log.getvalue()) == (command == ["explain"])
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert not needs_progress_bar(7)
    assert needs_progress_bar(8)
