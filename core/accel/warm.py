"""Warm: compile what the installed apps need before anybody waits for it.

    python -m core.accel.warm [APP ...]

Run it once after an installation or an upgrade. An app rehearses: it trains and predicts on a little data, so that all
its kernels come into the store, where every later process finds them.

Invariant: nothing here knows an app. A distribution offers its apps' rehearsals as entry points of the group
`tilework.rehearsals`: functions without arguments that leave nothing behind. A rehearsal is left out if its last one
ran on this code and machine, and the kernels that it used are still there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from core.accel import chips, fingerprint, store
from core.engine.errors import TileworkError

GROUP = "tilework.rehearsals"


def main(words: Sequence[str] | None = None) -> int:
    """Run a command line; gives the exit code."""
    known = {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}
    parser = argparse.ArgumentParser(prog="python -m core.accel.warm", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("apps", nargs="*", metavar="APP",
                        help=f"apps to compile for, all if none is named: {', '.join(known) or 'none is installed'}")
    chosen = parser.parse_args(words).apps or list(known)
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"no such app: {', '.join(unknown)}; installed are {', '.join(known) or 'none'}")
    try:
        for name in chosen:
            print(f"{name}: ", end="", flush=True)
            count, seconds = rehearse(known[name])
            print(f"{count} kernels compiled, {seconds:.1f} s")
        print(f"the store is {store.default().directory}")
    except TileworkError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def rehearse(entry: EntryPoint) -> tuple[int, float]:
    """Let an app use all its programs once, unless it is warm.

    Returns
    -------
    Number of kernels that the store lacked, and seconds.
    """
    kernels = store.default()
    begin, before, record = time.monotonic(), kernels.entries(), kernels.directory / f"{entry.name}.rehearsal"
    state = _state(entry)
    if _is_warm(record, state, before):
        return 0, time.monotonic() - begin
    entry.load()()
    record.write_text(json.dumps({"state": state, "entries": sorted(kernels.used())}), encoding="utf-8")
    return len(kernels.entries() - before), time.monotonic() - begin


def _is_warm(record: Path, state: str, entries: set[str]) -> bool:
    """Whether the record of the last rehearsal is of this state, and its entries are there."""
    try:
        last = json.loads(record.read_text(encoding="utf-8"))
        return bool(last["state"] == state and entries.issuperset(last["entries"]))
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged
        return False


def _state(entry: EntryPoint) -> str:
    """What decides which kernels a rehearsal uses: the machine, this package, and that of the app."""
    packages = dict.fromkeys((__name__.partition(".")[0], entry.module.partition(".")[0]))
    digests = [fingerprint.of_files(fingerprint.sources(package)) for package in packages]
    return " ".join([fingerprint.machine(), chips.description(), *digests])


if __name__ == "__main__":
    sys.exit(main())
