"""The program ``tilework``: runs a command line, prints its outcome, and ends with an exit code that says how it went.

Invariant: results go to stdout, everything else to stderr; ``--json`` puts exactly one object on stdout, however the
command ends; the exit code is one of `Exit`.
"""

from __future__ import annotations

import errno
import json
import os
import select
import sys
import traceback
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from cyclopts import CycloptsError

from apps.app import APPS, apps
from apps.grammar import grammar
from apps.progress import log_to_stderr
from core.engine.errors import CheckpointError, ConfigError, DataError, DeviceError


class Exit(IntEnum):
    """Exit codes."""

    DONE = 0
    BUG = 1
    USAGE = 2
    INPUT = 3
    REFUSED = 4
    RESOURCES = 5
    STOPPED = 6
    INTERRUPTED = 130


def main(words: Sequence[str] | None = None, paths: Sequence[str] = APPS) -> int:
    """Run a command line; gives the exit code.

    Parameters
    ----------
    words : after the name of the program; by default those of this process
    paths : dotted paths of the records of the apps
    """
    words = sys.argv[1:] if words is None else list(words)
    as_json = "--json" in words
    log_to_stderr(as_json)
    try:
        root = grammar(words, apps(paths))
        command, bound, _ = root.parse_args(words, exit_on_error=False, print_error=False, verbose=False)
        outcome = command(*bound.args, **bound.kwargs)
        code = _succeeded(outcome, as_json)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        return _failed(error, as_json)
    return code


def _succeeded(outcome: Any, as_json: bool) -> int:
    if outcome is None or isinstance(outcome, int):  # help and version, or the code of a process
        return outcome or Exit.DONE
    code = Exit.REFUSED if outcome.refused else Exit.DONE
    if outcome.refused:
        print(f"{outcome.refused} items were refused; {outcome.refusals} lists them with reasons", file=sys.stderr)
    if as_json:
        from core.engine.run import plain

        print(json.dumps({"exit_code": code, "numbers": plain(outcome.numbers), "written": plain(outcome.written),
                          "refused": outcome.refused,
                          "refusals": plain(outcome.refusals) if outcome.refused else None,
                          **plain(outcome.record)}))
        return code
    tables = {name: rows for name, rows in outcome.record.items() if isinstance(rows, list)}
    numbers = {**outcome.numbers, **{name: value for name, value in outcome.record.items() if name not in tables}}
    for rows in tables.values():
        _print_table([list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)])
    width = max(map(len, numbers), default=0)
    for name, value in numbers.items():
        print(f"{name:<{width}}  {_shown(value)}")
    if outcome.written is not None:
        print(f"written to {outcome.written}")
    return code


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns, names to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *values in rows:
        print("  ".join([f"{name:<{widths[0]}}", *(f"{value:>{width}}" for value, width in
                                                  zip(values, widths[1:], strict=True))]))


def _failed(error: BaseException, as_json: bool) -> int:
    if isinstance(error, BrokenPipeError) and not _has_reader(sys.stdout.fileno()):
        # as with `| head`, which has what it wanted; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    code, message = _classify(error)
    if code is Exit.BUG:
        traceback.print_exception(error)
    else:
        print(message, file=sys.stderr)
    if as_json:
        print(json.dumps({"exit_code": code, "error": message}))
    return code


def _has_reader(pipe: int) -> bool:
    """Whether a process still reads from a pipe that this one writes to."""
    poll = select.poll()
    poll.register(pipe, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


_PLACES = FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError
_OTHER_PLACES = {errno.EROFS, errno.ENAMETOOLONG, errno.EBUSY, errno.ELOOP}
"""What the system says of a place that is not there, or where nobody may write: by class, and without one."""


def _classify(error: BaseException) -> tuple[Exit, str]:
    """Exit code and message of what a command raised."""
    # Loaded only if something that trains ran: its module is slow to import.
    run = sys.modules.get("core.engine.run")
    if run is not None and isinstance(error, run.Stopped):
        return Exit.STOPPED, str(error)
    train = sys.modules.get("core.engine.train")
    diverged = train is not None and isinstance(error, train.DivergenceError)
    if isinstance(error, ConfigError | DeviceError | CycloptsError):
        return Exit.USAGE, str(error)
    if isinstance(error, DataError | CheckpointError) or diverged:
        return Exit.INPUT, str(error)
    if isinstance(error, MemoryError):
        return Exit.RESOURCES, f"out of memory: {error}. Make batches or inputs smaller."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Exit.RESOURCES, f"the disk is full: {error}. Make room; a stopped run goes on with --resume."
    if isinstance(error, _PLACES) or (isinstance(error, OSError) and error.errno in _OTHER_PLACES):
        return Exit.INPUT, f"{error.filename}: {error.strerror}"
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED, "interrupted"
    return Exit.BUG, f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
