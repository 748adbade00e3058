"""The processes that draw: many threads, processes that die or hang, forks, and that none is left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("pypdfium2")

from m0.errors import InputError
from m0.inputs import read_pages
from m0.inputs.pages import pool as pool_module
from m0.inputs.pages.messages import Answer, Request
from m0.inputs.pages.pool import POOL, Pool
from m0.inputs.pages.worker import OPEN_DOCUMENTS, Desk

from .pdfs import page, pages, words

linux = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
unix = pytest.mark.skipif(os.name != "posix", reason="signals and forks are of Unix")
PATIENCE = 60
"""Seconds after which a test gives up. No test says how long anything takes."""


@pytest.fixture
def pool(monkeypatch):
    """A pool with no worker yet, for the PDFs of one test."""
    made = Pool()
    monkeypatch.setattr("m0.inputs.pages.pdf.POOL", made)
    yield made
    made.close()


def some_pages(count=6, name="page"):
    return list(read_pages(pages([words(f"{name} {number}", 20 + 10 * number) for number in range(count)])))


def test_eight_threads_get_the_pixels_that_one_gets():
    documents = [some_pages(6, name) for name in ("one", "two", "three")]
    wanted = [found for document in documents for found in document] * 2
    alone = [found.parts()[0].pixels for found in wanted]
    texts = [found.text() for found in wanted]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda found: (found.parts()[0].pixels, found.text()), wanted))
    for pixels, text, (others, other) in zip(alone, texts, together, strict=True):
        assert np.array_equal(pixels, others)
        assert text == other
    assert len({pixels.tobytes() for pixels in alone}) == 18


def test_one_worker_serves_one_thread_and_there_are_never_more_than_the_pool_holds(pool):
    found = some_pages()
    for one in found:
        one.parts()
    assert len(pool.idle) == 1
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda one: one.parts(), found * 3))
    assert 1 <= len(pool.idle) <= pool.size
    assert not pool.busy


def test_a_worker_that_was_killed_is_started_again(pool):
    found = some_pages()
    before = found[0].parts()[0].pixels
    (worker,) = pool.idle
    worker.process.kill()
    worker.process.wait()
    assert np.array_equal(found[0].parts()[0].pixels, before)
    assert pool.idle[0] is not worker


@unix
def test_the_page_that_a_worker_dies_with_is_named_and_the_others_go_on(pool, monkeypatch):
    monkeypatch.setattr(pool_module, "MOST_WORKERS", 1)
    found = some_pages()
    found[0].parts()
    (worker,) = pool.idle
    os.kill(worker.process.pid, signal.SIGSTOP)  # so that it is in the middle of a page
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(found[1].parts)
        end = time.monotonic() + PATIENCE
        while not worker._busy and time.monotonic() < end:
            time.sleep(0.01)
        second = threads.submit(found[2].parts)
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(
            InputError, match=r"#2 was not read, for the process that reads it was lost: it ended with status -9\.$"
        ):
            first.result(PATIENCE)
        assert second.result(PATIENCE)[0].pixels.min() < 128
    assert found[1].parts()[0].pixels.min() < 128


@unix
def test_a_page_that_takes_too_long_is_given_up(pool, monkeypatch):
    found = some_pages()
    found[0].parts()
    (worker,) = pool.idle
    monkeypatch.setattr(pool_module, "TIME_LIMIT_SECONDS", 0.2)
    os.kill(worker.process.pid, signal.SIGSTOP)
    with pytest.raises(InputError, match=r"#2 was not read, .* it took longer than 0\.2 seconds\.$"):
        found[1].parts()
    assert worker.process.poll() == -signal.SIGKILL
    monkeypatch.setattr(pool_module, "TIME_LIMIT_SECONDS", PATIENCE)
    assert found[1].parts()[0].pixels.min() < 128


def test_an_interrupted_request_does_not_leave_its_answer_to_the_next(pool, monkeypatch):
    found = some_pages()
    expected = [one.parts()[0].pixels for one in found]

    def interrupted(file):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pool_module, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            found[1].parts()
    assert not pool.idle
    assert not pool.busy
    assert np.array_equal(found[2].parts()[0].pixels, expected[2])


def test_a_worker_that_does_not_start_is_a_sentence(monkeypatch):
    monkeypatch.setattr("m0.inputs.pages.pdf.POOL", Pool())
    monkeypatch.setattr(pool_module, "CODE", "raise SystemExit(3)")
    with pytest.raises(
        InputError, match=r"PDFs cannot be read, for the process that opens them does not start: it ended with status 3\."
    ):
        read_pages(page(""))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(InputError, match="is no Python interpreter"):
        read_pages(page(""))


def test_bytes_are_sent_once(pool, monkeypatch):
    sent = []
    send = pool_module.send
    monkeypatch.setattr(pool_module, "send", lambda file, message: (sent.append(message), send(file, message)))
    found = some_pages()
    for one in found:
        one.parts()
    assert [isinstance(request.where, bytes) for request in sent] == [True] + [False] * (len(sent) - 1)
    for number in range(OPEN_DOCUMENTS):  # until the worker has closed it
        list(read_pages(page(words(f"other {number}"))))
    sent.clear()
    found[0].parts()
    assert [isinstance(request.where, bytes) for request in sent] == [False, True]


def test_the_worker_closes_what_was_asked_for_longest_ago():
    desk = Desk()
    closed = []
    for number in range(OPEN_DOCUMENTS + 2):
        assert desk.answer(Request(str(number), page(words(str(number))), None, "text", (0,))) == Answer("value", str(number))
        close = desk.documents[str(number)].close
        desk.documents[str(number)].close = lambda number=number, close=close: (closed.append(number), close())
    assert closed == [0, 1]
    assert desk.answer(Request("0", None, None, "text", (0,))).kind == "send"
    assert desk.answer(Request("2", None, None, "text", (0,))).value == "2"
    assert desk.answer(Request("2", None, None, "text", (7,))).kind == "refused"
    desk.close()
    assert not desk.documents


@linux
def test_opening_and_closing_leaves_no_memory_behind():
    desk = Desk()
    made = [pages([words(f"document {number}")], "/MediaBox [0 0 600 400]") for number in range(OPEN_DOCUMENTS + 6)]

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def use():
        for number, data in enumerate(made):
            request = Request(str(number), data, None, "draw", (0, 1.0, (600, 400), (616, 420), True))
            assert desk.answer(request).kind == "value"
        desk.close()

    use()
    before = resident()
    for _ in range(5):
        use()
    assert resident() - before < 10 * 2**20  # the 50 pictures alone take 36 MB


# --- processes of whole programs ----------------------------------------------------------------------------------------


def run(tmp_path, code, **options):
    """A program of its own, as users write them: without `if __name__`."""
    (tmp_path / "a.pdf").write_bytes(pages([words("one"), words("two")]))
    (tmp_path / "program.py").write_text(textwrap.dedent(code))
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # else a line is two writes, between which a fork may write its own
    command = [sys.executable, "program.py"]
    return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment, **options)


def gone(number):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            with open(f"/proc/{number}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":  # dead, and nobody has asked how it ended
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


BEGIN = """
    print("begun", flush=True)
    from m0.inputs import read_pages
    from m0.inputs.pages.pool import POOL
    found = list(read_pages("a.pdf"))
    print(found[0].text(), flush=True)
    print(POOL.idle[0].process.pid, flush=True)
"""


@linux
def test_no_worker_outlives_its_program_and_the_program_runs_once(tmp_path):
    process = run(tmp_path, BEGIN)
    out, _ = process.communicate(timeout=PATIENCE)
    begun, text, worker = out.split()
    assert (begun, text, process.returncode) == ("begun", "one", 0)
    assert gone(worker)


@linux
def test_a_worker_ends_when_its_program_is_killed_although_a_fork_lives(tmp_path):
    process = run(tmp_path, BEGIN + "    import os, time\n    print(os.fork(), flush=True)\n    time.sleep(600)\n")
    for _ in range(2):
        process.stdout.readline()
    worker = process.stdout.readline().strip()
    fork = max(int(process.stdout.readline()) for _ in range(2))
    try:
        process.kill()
        process.wait()
        assert gone(worker)
    finally:
        os.kill(fork, signal.SIGKILL)
        process.stdout.close()


@unix
def test_a_fork_has_workers_of_its_own(tmp_path):
    code = (
        BEGIN
        + """
    import os
    child = os.fork()
    print(found[1].text() + ("-fork" if not child else "-program"), flush=True)
    print(found[0].text(), flush=True)
    if not child:
        assert POOL.idle[0].process.pid
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(found[1].text(), flush=True)
    """
    )
    process = run(tmp_path, code)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert sorted(out.split()[3:]) == ["one", "one", "two", "two-fork", "two-program"]


def test_ctrl_c_is_left_to_the_program():
    """A terminal sends it to all processes of a group."""
    found = some_pages()
    found[0].parts()
    for worker in POOL.idle:
        if os.name == "posix":
            os.kill(worker.process.pid, signal.SIGINT)
    assert found[1].parts()
    assert all(worker.alive for worker in POOL.idle)


def test_a_worker_brings_no_pytorch_and_importing_m0_inputs_nothing(tmp_path):
    check = "import sys; import {0}; sys.exit(any(name in sys.modules for name in {1}))"
    for what, never in (
        ("m0.inputs.pages.worker, m0.inputs.pages.text_layer", ["torch"]),
        ("m0.inputs.pages", ["torch", "pypdfium2"]),
    ):
        subprocess.run([sys.executable, "-c", check.format(what, never)], check=True)


def test_modules_beside_the_working_directory_are_not_taken(tmp_path, monkeypatch, pool):
    (tmp_path / "pickle.py").write_text("raise SystemExit(1)")
    (tmp_path / "pypdfium2.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    assert some_pages()[0].text() == "page 0"


def test_closing_a_pool_wakes_nobody_wrongly(pool):
    found = some_pages()
    found[0].parts()
    pool.close()
    done = []
    thread = threading.Thread(target=lambda: done.append(found[1].text()))
    thread.start()
    thread.join(PATIENCE)
    assert done == ["page 1"]
