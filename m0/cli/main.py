"""The command line: `m0 rank`, `m0 explain`, `m0 train`, `m0 evaluate`, `m0 info`, `m0 fetch`.

Exit status: 0 done; 1 ranked, but some documents could not be used (they are named on stderr); 2 nothing done. Under torchrun 0 stands
for 1 as well, for torchrun takes every other status for a crash, and reports it as one.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from m0.cli.arguments import parser
from m0.errors import M0Error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status. What is wrong is said in one sentence."""
    _open_closed_streams()
    options = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot write must not end the ranking
            stream.reconfigure(errors="replace")
    shown_before, warnings.showwarning = warnings.showwarning, _print_warning
    try:
        status = options.run(options)
        sys.stdout.flush()
        return status
    except (M0Error, UserWarning) as error:  # a warning where Python is told to raise them
        if not _is_said_by_first(f"m0: {error}"):
            print(f"m0: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("m0: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, most likely
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        what = f"{error.filename} cannot be used" if error.filename else "the output cannot be written"
        print(f"m0: {what}: {error.strerror or error}.", file=sys.stderr)
        return 2
    finally:
        warnings.showwarning = shown_before


def _open_closed_streams() -> None:
    """Services and schedulers start programs with streams closed; Python has None for them then, and print() takes another stream."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _print_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """A warning as the other messages are, without the line of code that it comes from."""
    text = " ".join(str(message).split())
    print(f"m0: {text}" if category is UserWarning else f"m0: {category.__name__}: {text}", file=sys.stderr)


def _is_said_by_first(sentence: str) -> bool:
    """As `m0.engine.torchrun.is_said_by_first`."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # then there is no need to wait for PyTorch to be imported
        return False
    from m0.engine.torchrun import is_said_by_first

    return is_said_by_first(sentence)


if __name__ == "__main__":
    sys.exit(main())
