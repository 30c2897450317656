"""Executes runs in forks of one process that has imported everything, as a sweep does.

Each line of standard input is a run, [overrides, run directory]; the answer to it is a line with its exit code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lab.check import check
from lab.compose import compose
from lab.warm import Job, Workers


def main() -> None:
    """Answer until standard input ends."""
    with Workers(at_once=1) as workers:
        for line in sys.stdin:
            words, path = json.loads(line)
            overrides = [*words, f"run_dir={path}"]
            cfg = compose(overrides)
            check(cfg)
            workers.start(Job(cfg, overrides, Path(path, "console.log")))
            while not (ended := workers.wait()):
                pass
            print(ended[0][1], flush=True)


if __name__ == "__main__":
    main()
