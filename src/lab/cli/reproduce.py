"""`lab reproduce <run directory>`: run again what was recorded and say what agrees, line by line."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from lab import paths
from lab.cli.arguments import Arguments
from lab.errors import HOLDS, REFUTED, Refusal

DESCRIPTION = """\
Run again what a run directory, or a folder of experiments/, records, in a directory of its own; the old one is only
read.

Says for commit, changes, versions and hardware whether they are those of the record, and whether the outcome is:
bitwise (every number of the verdict, the curves and the weights of the last checkpoint, as far as the record has them),
within tolerance (no claim's numbers are further apart than what the claim allows), or not. Exit code 0, or 3."""

_SIGNS = {True: "✓", False: "✗", None: "?"}


def main(argv: list[str]) -> int:
    """Run and report; returns 0 when the outcome is that of the record."""
    arguments = Arguments("reproduce", DESCRIPTION)
    arguments.add_argument("run_directory", type=Path, help="outputs/<name>/<id>, or experiments/<name>")
    arguments.add_argument(
        "--run_dir",
        "--run-dir",
        type=Path,
        help="of the new run, not there yet or begun by the same command; default: outputs/<name>/<id>",
    )
    given = arguments.parse_args(argv)
    from lab import check, reproduce

    there = given.run_directory
    cfg, overrides = reproduce.config_of(there)
    cfg.run_dir = str(given.run_dir) if given.run_dir else None
    check.check(cfg)
    from lab.launch import launch
    from lab.rundir import RunDir

    made = RunDir.choose(cfg, paths.OUTPUTS)
    here = made.path
    if reproduce.same_place(there, here):
        raise Refusal(f"--run_dir {here} is the run that is to be reproduced; choose a folder outside it")
    if not reproduce.may_be_made_in(made):
        raise Refusal(f"--run_dir {here} is not empty: a run is made again in a folder of its own; choose another one")
    cfg.run_dir = str(here)
    code = launch(cfg, overrides)
    if code not in (HOLDS, REFUTED):
        command = shlex.join(["lab", "reproduce", str(there), f"--run_dir={here}"])
        print(f"lab: not made again yet; go on with: {command}", file=sys.stderr)
        return code
    found, lines = reproduce.outcome(there, here)
    for heading, part in (
        ("record and this run", list(reproduce.origin(reproduce.provenance_of(there), reproduce.provenance_of(here)))),
        ("outcome", lines),
    ):
        print(f"\n{heading}")
        for line in part:
            print(f"  {_SIGNS[line.agrees]} {line.what:<28} {line.said}")
    said = {"bitwise": "reproduced bitwise", "within tolerance": "reproduced within tolerance"}.get(found, found)
    if found == "bitwise" and any(line.agrees is None for line in lines):
        said += ", as far as there is a record"
    print(f"\n{said}: {there} by {here}")
    return REFUTED if found == "not reproduced" else HOLDS
