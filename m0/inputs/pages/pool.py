"""The workers that open and draw PDFs: started when they are needed, one request each at a time, started again when one dies.

They are new interpreters, not copies of this process: nothing of the user's program is imported in them, and no model is in their memory.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from contextlib import suppress

from m0.errors import InputError
from m0.inputs.pages.messages import Answer, Request, receive, send

MOST_WORKERS = 2
"""Drawing keeps up with the model with one; with more than two the model's own threads would wait for them."""
TIME_LIMIT_SECONDS = 120.0
"""For one request; the worker is ended then."""
START_LIMIT_SECONDS = 60.0
END_SECONDS = 2.0
SEPARATOR = "\n"
CODE = (
    "import sys; sys.path[:] = sys.argv[1].split(sys.argv[2]); from m0.inputs.pages.worker import main; main(int(sys.argv[3]))"
)
"""The same modules are found as here, wherever they lie, and none in the folder where it happens to start."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Died(Exception):
    """A worker ended, or was ended, before it answered: why."""


class Worker:
    """One process. Not for several threads at once."""

    def __init__(self) -> None:
        if getattr(sys, "frozen", False) or not sys.executable:
            raise Died("this program is no Python interpreter that could be started once more")
        self.keys: set[str] = set()
        """PDFs that it had open."""
        self._ends = threading.Lock()
        self._late = self._busy = False
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CODE, SEPARATOR.join(filter(None, sys.path)), SEPARATOR, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**os.environ, **ONE_THREAD},
            )
        except OSError as error:
            raise Died(str(error)) from None
        hello: Answer = self._exchange(None, START_LIMIT_SECONDS)
        if hello.kind != "value":
            self.end()
            raise Died(str(hello.value))

    def ask(self, request: Request, seconds: float) -> Answer:
        """Raises Died."""
        known = request.key in self.keys and isinstance(request.where, bytes)
        answer = self._exchange(request._replace(where=None) if known else request, seconds)
        if answer.kind == "send":
            answer = self._exchange(request, seconds)
        self.keys.add(request.key)
        return answer

    def _exchange(self, request: Request | None, seconds: float) -> Answer:
        timer = threading.Timer(seconds, self._end_late)
        timer.daemon = True
        self._busy = True
        timer.start()
        try:
            if request is not None:
                send(self.process.stdin, request)  # type: ignore[arg-type]
            answer: Answer = receive(self.process.stdout)  # type: ignore[arg-type]
            return answer
        except (EOFError, OSError, ValueError):
            self.end()
            if self._late:
                raise Died(f"it took longer than {seconds:g} seconds") from None
            raise Died(f"it ended with status {self.process.returncode}") from None
        except BaseException:  # interrupted: the answer that is still to come would be taken for the next one's
            self.end()
            raise
        finally:
            with self._ends:
                self._busy = False
            timer.cancel()

    def _end_late(self) -> None:
        with self._ends:
            if self._busy:
                self._late = True
                self.process.kill()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        """It closes what it has open and goes; where it is in the middle of something, or does not, it is ended."""
        if self._busy:
            self.process.kill()
        elif self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def forget(self) -> None:
        """In a fork: the worker is the parent's. Only this process's ends of the pipes are closed."""
        self.process.returncode = 0  # or it would be waited for
        self._close_pipes()


class Pool:
    """Up to `MOST_WORKERS` workers. For any number of threads."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self.idle: list[Worker] = []
        self.busy: set[Worker] = set()
        self._starting = 0

    def ask(self, request: Request) -> Answer:
        """A worker's answer, "value" or "refused". Raises Died where the worker did, and InputError where none can be started."""
        worker = self._take(request.key)
        try:
            return worker.ask(request, TIME_LIMIT_SECONDS)
        finally:
            self._give_back(worker)

    def _take(self, key: str) -> Worker:
        """An idle worker, best one that has the PDF open; else a new one; else the first that becomes idle."""
        with self._condition:
            while True:
                self.idle = [worker for worker in self.idle if worker.alive]
                if self.idle:
                    worker = next((worker for worker in self.idle if key in worker.keys), self.idle[-1])
                    self.idle.remove(worker)
                    self.busy.add(worker)
                    return worker
                if len(self.busy) + self._starting < self.size:
                    self._starting += 1
                    break
                self._condition.wait()
        started: Worker | None = None
        try:
            started = Worker()
            return started
        except Died as error:
            raise InputError(f"PDFs cannot be read, for the process that opens them does not start: {error}.") from None
        finally:
            with self._condition:
                self._starting -= 1
                if started is not None:
                    self.busy.add(started)
                else:
                    self._condition.notify()

    def _give_back(self, worker: Worker) -> None:
        with self._condition:
            self.busy.discard(worker)
            if worker.alive:
                self.idle.append(worker)
            self._condition.notify()

    @property
    def size(self) -> int:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(MOST_WORKERS, cores))

    def close(self) -> None:
        """End all workers. The next request starts new ones."""
        with self._condition:
            workers, self.idle = [*self.idle, *self.busy], []
        for worker in workers:
            worker.end()

    def forget(self) -> None:
        """In a fork: start anew."""
        for worker in (*self.idle, *self.busy):
            worker.forget()
        self.__init__()  # type: ignore[misc]


POOL = Pool()
atexit.register(POOL.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.forget)
