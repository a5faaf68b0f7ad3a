"""A process that works on a stage from a machine of its own, as far as its heartbeat tells, until it has done it.

    python tests/working_process.py PARTIAL SYSTEM STEPS

A step is a line of a file, written after a look at whether the stage is still its own. It prints `works` once it has
the stage, and ends with 75 where another one has it, or has taken it over.
"""

import os
import sys
import time
from pathlib import Path

from alignkit.errors import LockedError
from alignkit.store.heartbeat import Heartbeat
from alignkit.store.locks import hold

EVERY, LOST_AFTER = 0.05, 0.5


def main(partial: Path, system: str, steps: int) -> int:
    try:
        with hold(
            partial, Heartbeat(EVERY, LOST_AFTER, system), taken_over=lambda: os._exit(LockedError.status)
        ) as mine:
            print("works", mine.lost.get("system"), flush=True)
            file = partial / "steps.txt"
            partial.mkdir(exist_ok=True)
            while len(file.read_text().split() if file.exists() else ()) < steps:
                if mine.lease.is_taken_over:
                    return LockedError.status
                with file.open("a") as lines:
                    lines.write(f"{mine.lease.number}\n")
                time.sleep(0.01)
    except LockedError as error:
        print(error, flush=True)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
