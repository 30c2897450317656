"""`lab cancel <sweep>`: take what SLURM still queues or runs of a sweep off the cluster; what runs saves first."""

from __future__ import annotations

from pathlib import Path

from lab.cli.arguments import Arguments
from lab.errors import HOLDS, Refusal
from lab.sweep import queue
from lab.sweep.plan import read_record


def main(argv: list[str]) -> int:
    """Cancel, and say what."""
    parser = Arguments(
        "cancel", "Cancel the jobs of a sweep; what runs saves first. The same `lab -m` submits them again."
    )
    parser.add_argument("sweep", type=Path, help="the sweep's folder")
    sweep: Path = parser.parse_args(argv).sweep
    read_record(sweep)
    if not any(sweep.glob("job-*.sbatch")):
        raise Refusal(f"{sweep} was not submitted to SLURM; a sweep on this machine is stopped by Ctrl-C where it runs")
    live = {name: job for name, job in queue.jobs(sweep).items() if job.live}
    if not live:
        print(f"{sweep}: nothing is queued or running")
        return HOLDS
    queue.cancel(live.values())
    for name, job in live.items():
        print(f"cancelled {job.id:<10} {job.state.lower():<10} {name}")
    return HOLDS
