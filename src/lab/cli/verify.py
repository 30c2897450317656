"""`lab verify`: run experiments, and their controls, over seeds, and say whether all is as theory says."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab import compose, paths
from lab.cli.arguments import Arguments
from lab.compose.files import experiments
from lab.compose.overrides import parse
from lab.errors import CRASHED, HOLDS, REFUTED, Refusal, nearest
from lab.machine import needs_files

MOST_SEEDS = 10_000
OWN = {
    "experiment": "the experiments are named before it",
    "seed": "--seeds N runs the seeds 0 … N−1",
    "run_dir": "each run has a folder of its own below outputs/verify",
    "id": "each run has an id of its own",
    "logger": "verify sends nothing to wandb",
    "control": "--controls runs every control",
}
"""What verify sets itself, and how."""


def main(argv: list[str]) -> int:
    """Verify what the arguments name; exit code 0 when all is as theory says, 1 when a run crashed, 3 otherwise."""
    arguments = Arguments(
        "verify", "Run experiments and say in one table whether every claim holds and every control refutes."
    )
    arguments.add_argument(
        "names", nargs="*", metavar="name", help="experiments; all that need neither files nor a GPU when none is named"
    )
    arguments.add_argument("--controls", action="store_true", help="run the controls too: their claims must be refuted")
    arguments.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 … N−1 (default 1)")
    arguments.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="J", help="runs at once (default: cores)"
    )
    arguments.add_argument(
        "--set", nargs="+", default=[], metavar="key=value", help="overrides for every run", dest="more"
    )
    given = arguments.parse_args(argv)
    for flag in ("seeds", "jobs"):
        if getattr(given, flag) < 1:
            raise Refusal(f"--{flag} {getattr(given, flag)} is out of range; allowed: at least 1")
    if given.seeds > MOST_SEEDS:
        raise Refusal(f"--seeds {given.seeds} is out of range; allowed: at most {MOST_SEEDS}")
    for override in map(parse, given.more):
        if (key := override.key_or_group) in OWN:
            raise Refusal(f"--set {override.input_line} is not allowed: {OWN[key]}")
    known = experiments()
    for name in given.names:
        if name not in known:
            raise Refusal(f"{name} is not an experiment; allowed: {', '.join(known)}{nearest(name, known)}")

    folder = paths.OUTPUTS / "verify" / time.strftime("%Y%m%d-%H%M%S")
    jobs = list(_jobs(given.names or list(_for_every_machine(known)), given, folder))
    code, rows = _run(jobs, given.jobs)
    if code:
        return code
    from lab.table import verify_table

    good = verify_table(rows)
    print(f"\nruns    {folder}")
    if any(row.outcome == "crashed" for row in rows):
        return CRASHED
    return HOLDS if good else REFUTED


def _jobs(names: list[str], given: Any, folder: Path) -> Iterator[Any]:
    from lab import check
    from lab.warm import Job

    for name in names:
        first = compose.compose([f"experiment={name}", *given.more])
        controls = dict(first.controls) if given.controls else {}
        for seed in range(given.seeds):
            for control in (None, *controls):
                place = folder / name / ("claims" if control is None else f"control-{control}") / f"seed-{seed}"
                overrides = [f"experiment={name}", f"seed={seed}", "logger=none", f"run_dir={place}", *given.more]
                if control is not None:
                    overrides += [f"control={control}", *controls[control].overrides]
                    overrides += _without_the_rest(first, control)
                cfg = compose.compose(overrides)
                check.check(cfg)
                yield Job(cfg, overrides, place / "console.log")


def _without_the_rest(cfg: Any, control: str) -> Iterator[str]:
    """Overrides that take out what a control says nothing about; to judge that can cost more than to train."""
    yield from (f"~claims.{name}" for name in cfg.claims if name not in cfg.controls[control].refutes)
    yield from (f"~controls.{name}" for name in cfg.controls if name != control)
    yield from (f"~pictures.{name}" for name in cfg.get("pictures", {}))


def _for_every_machine(names: list[str]) -> Iterator[str]:
    """Experiments that need neither files nor a GPU: the others are verified when they are named."""
    for name in names:
        if not name.endswith("_large") and not needs_files(compose.compose([f"experiment={name}"]).data):
            yield name


def _run(jobs: list[Any], at_once: int) -> tuple[int, list[Any]]:
    from tqdm import tqdm

    from lab.warm import run_jobs

    tqdm.monitor_interval = 0  # its thread would be forked with every job
    rows: dict[Path, list[Any]] = {}
    bar = tqdm(total=len(jobs), unit="run", disable=not sys.stderr.isatty(), leave=False)
    try:
        for job, code in run_jobs(jobs, at_once):
            rows[job.console] = list(_rows(job, code))
            bar.update()
            if bar.disable:
                print(f"{len(rows)}/{len(jobs)} {job.console.parent}", file=sys.stderr)
    except KeyboardInterrupt:
        print("lab: verify was stopped; finished runs are kept", file=sys.stderr)
        return 128 + signal.SIGINT, []
    finally:
        bar.close()
    return 0, [row for job in jobs for row in rows[job.console]]  # as asked for, not as they ended


def _rows(job: Any, code: int) -> Iterator[Any]:
    from lab.table import VerifyRow

    cfg = job.cfg
    verdict = job.console.parent / "verdict.json"
    if code not in (HOLDS, REFUTED) or not verdict.exists():
        print(f"lab: {job.console.parent} ended with exit code {code}; see {job.console}", file=sys.stderr)
        yield VerifyRow(experiment=cfg.name, seed=cfg.seed, control=cfg.control, claim="", outcome="crashed")
        return
    judged = (cfg.controls[cfg.control].refutes) if cfg.control else list(cfg.claims)
    for claim in json.loads(verdict.read_text())["claims"]:
        if claim["name"] in judged:
            yield VerifyRow(
                experiment=cfg.name,
                seed=cfg.seed,
                control=cfg.control,
                claim=claim["name"],
                outcome=_outcome(claim["holds"], cfg.control),
                **{
                    number: math.nan if claim[number] is None else claim[number]
                    for number in ("predicted", "measured", "standard_error", "difference", "tolerance")
                },
            )


def _outcome(holds: bool, control: str | None) -> Any:
    if control is None:
        return "holds" if holds else "refuted"
    return "holds but must be refuted" if holds else "refuted as it must"
