"""What SLURM says of a sweep's runs: which job each has, its state and why. Imports nothing heavy."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.errors import Refusal
from lab.rundir import write_atomically

SUBMISSIONS = "jobs.json"
"""In the sweep's folder: {script's name: id of the array it was submitted as}."""
JOB = "slurm_job"
"""In a run directory: the id of the job that executed it last."""
LOGS = "logs"
"""In the sweep's folder: what SLURM itself says of each job."""

_PENDING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}
_RUNNING = {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}
_WHY = {
    "BOOT_FAIL": "its node did not boot",
    "CANCELLED": "cancelled",
    "DEADLINE": "its deadline has passed",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted",
    "REVOKED": "revoked",
    "TIMEOUT": "over its time limit",
}


_REST = 4294967294
"""The index of what is left of an array in the controller when its waiting tasks were cancelled one by one."""


@dataclass(frozen=True)
class Job:
    """One task of an array, as SLURM last knew it."""

    id: str
    state: str
    reason: str = ""

    @property
    def pending(self) -> bool:
        return self.state in _PENDING

    @property
    def live(self) -> bool:
        return self.pending or self.state in _RUNNING

    @property
    def why(self) -> str:
        """Why it waits, or why it ended, where SLURM knows that; "" otherwise."""
        if self.live:
            return "" if self.reason in ("None", "") else self.reason
        return _WHY.get(self.state, "")


def points(script: Path) -> list[str]:
    """The names of the runs that a batch script executes, in the order of the array."""
    try:
        return script.with_suffix(".points").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise Refusal(f"{script.with_suffix('.points')} is no list of runs: {error}") from None


def lines_that_say_who_runs(sweep: Path, points: Path) -> list[str]:
    """Shell lines that write the job's id where `jobs` finds it, so that one that `setup` ends is known as well."""
    return [
        f"mapfile -t runs < {shlex.quote(str(points))}; run={shlex.quote(str(sweep))}/${{runs[SLURM_ARRAY_TASK_ID]}}",
        f'echo "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID" > "$run/.{JOB}.$$.tmp"',
        f'mv "$run/.{JOB}.$$.tmp" "$run/{JOB}"',
    ]


def submissions(sweep: Path) -> dict[str, str]:
    """{script's name: array's id}, the oldest first; a Refusal where the file says something else."""
    try:
        ids = json.loads((sweep / SUBMISSIONS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        ids = None
    if isinstance(ids, dict) and all(isinstance(job, str) and re.fullmatch(r"[0-9]+", job) for job in ids.values()):
        return ids
    raise Refusal(
        f"{sweep / SUBMISSIONS} is damaged: it is to say which script was submitted as which job; without the file the "
        "runs are known by what squeue says and by what they have left"
    )


def add_submission(sweep: Path, script: Path, job: str) -> None:
    """Write down that a script was submitted."""
    write_atomically(sweep / SUBMISSIONS, json.dumps(submissions(sweep) | {script.name: job}, indent=1) + "\n")


def jobs(sweep: Path) -> dict[str, Job]:
    """{name of the run: the newest of its jobs that SLURM knows}; empty for a sweep that was never given to SLURM."""
    scripts = {script.name: points(script) for script in sweep.glob("job-*.sbatch")}
    if not scripts:
        return {}
    found = {}
    asked: dict[str, str] = {}
    for script, array in submissions(sweep).items():
        asked |= {name: f"{array}_{index}" for index, name in enumerate(scripts.get(script, []))}
    for name in {name for names in scripts.values() for name in names}:
        asked[name] = _newest(asked.get(name, ""), _executed_by(sweep / name / JOB))
    asked = {name: job for name, job in asked.items() if job}
    live = dict(_live(sweep, scripts))
    ended = _ended([job for name, job in asked.items() if name not in live])
    for name in asked.keys() | live.keys():
        job = live.get(name) or ended.get(asked[name])
        if job is not None:
            found[name] = job
    return found


def live(sweep: Path) -> dict[str, Job]:
    """{name of the run: its job} of what is queued or runs; a Refusal where there are scripts and SLURM is silent."""
    scripts = {script.name: points(script) for script in sweep.glob("job-*.sbatch")}
    if not scripts:
        return {}
    try:
        return dict(_live(sweep, scripts))
    except Refusal as refusal:
        raise Refusal(
            f"{sweep} has scripts for SLURM, whose runs may still be queued, and SLURM does not say ({refusal}): "
            "continue where squeue answers; or, where nothing of it is queued, remove "
            f"{sweep / 'job-*.sbatch'} and start again"
        ) from None


def cancel(jobs: Iterable[Job]) -> None:
    """Take jobs off the cluster; what runs saves first."""
    _ask("scancel", *(job.id for job in jobs))


def preempted(job: str) -> bool:
    """Whether SLURM takes a running job's nodes for another: the tasks of `srun` are told, the script is not.

    One that SLURM has ended, to queue it again or not, does not run.
    """
    try:
        shown = " ".join(_ask("scontrol", "--oneliner", "show", "job", job))
    except Refusal:
        return False
    return bool(re.search(r"\bJobState=RUNNING\b.*\bPreemptTime=\d", shown))


def _executed_by(file: Path) -> str:
    """The job that executed a run last, or "": none has, or the file is damaged, which hides no other run."""
    try:
        job = file.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""
    if re.fullmatch(r"[0-9]+_[0-9]+", job):
        return job
    print(f"lab: {file} is damaged, {job[:40]!r} is no job: left out", file=sys.stderr)
    return ""


def _newest(one: str, other: str) -> str:
    return max(one, other, key=lambda job: int(job.partition("_")[0] or 0))


def _live(sweep: Path, scripts: dict[str, list[str]]) -> Iterator[tuple[str, Job]]:
    """(run, job) of what is in the queue: known by its script, so that what was submitted by hand is found too."""
    for line in _ask("squeue", "--me", "--noheader", "--array", "--format=%F|%K|%T|%r|%o"):
        array, index, state, reason, command = line.split("|", 4)
        script = Path(command.strip())
        names = scripts.get(script.name, [])
        if index.isdigit() and int(index) < len(names) and script.parent.resolve() == sweep.resolve():
            yield names[int(index)], Job(f"{array}_{index}", state, reason)


def _ended(ids: Sequence[str]) -> dict[str, Job]:
    """What accounting says of these jobs or, on a cluster without it, what the controller still remembers."""
    arrays = sorted({job.partition("_")[0] for job in ids})
    if not arrays:
        return {}
    try:
        lines = _ask("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", ",".join(arrays))
        known = parse_sacct(lines)
    except Refusal:
        known = {}
        for array in arrays:
            try:
                known |= parse_scontrol(_ask("scontrol", "--oneliner", "show", "job", array))
            except Refusal:  # it ended so long ago that it is forgotten
                continue
    found = {}
    for job in ids:
        rest = known.get(f"{job.partition('_')[0]}_{_REST}")
        if job in known:
            found[job] = known[job]
        elif rest is not None and not rest.live:
            found[job] = Job(job, rest.state)
    return found


def parse_sacct(lines: Iterable[str]) -> dict[str, Job]:
    """Jobs by id, from lines such as `12_3|CANCELLED by 0` and `12_[4-9%2]|CANCELLED by 0`."""
    found = {}
    for line in lines:
        job, _, state = line.partition("|")
        array, _, indices = job.partition("_")
        for index in expand(indices.strip("[]")):
            found[f"{array}_{index}"] = Job(f"{array}_{index}", state.split()[0] if state else "UNKNOWN")
    return found


def parse_scontrol(lines: Iterable[str]) -> dict[str, Job]:
    """Jobs by id, from the lines of `scontrol --oneliner show job`."""
    found = {}
    for line in lines:
        fields = dict(re.findall(r"(?:^| )(ArrayJobId|ArrayTaskId|JobState|Reason)=(\S*)", line))
        if {"ArrayJobId", "ArrayTaskId", "JobState"} <= fields.keys():
            for index in expand(fields["ArrayTaskId"]):
                job = f"{fields['ArrayJobId']}_{index}"
                found[job] = Job(job, fields["JobState"], fields.get("Reason", ""))
    return found


def expand(indices: str) -> Iterator[int]:
    """The numbers in SLURM's notation for a part of an array, such as `1,4-6%2`."""
    for part in indices.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            yield from range(int(first), int(last or first) + 1)


def _ask(*command: str) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        raise Refusal(f"{command[0]} is not on the PATH: is SLURM installed here?") from None
    except subprocess.TimeoutExpired:
        raise Refusal(f"{command[0]} does not answer") from None
    if done.returncode:
        said = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "")
        said = said.removeprefix(f"{command[0]}: ") or f"exit code {done.returncode}"
        raise Refusal(f"{command[0]}: {said}")
    return done.stdout.splitlines()
