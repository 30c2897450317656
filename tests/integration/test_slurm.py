"""A real SLURM: whatever it does to a job, nothing is lost, the result is bitwise the same, and `lab status` says why.

The cluster is the one that SLURM_CONF names: `eval "$(scripts/slurm/up)"`.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from omegaconf import OmegaConf

pytestmark = pytest.mark.slurm

UP = Path(__file__).parents[2] / "scripts/slurm/up"
PATIENCE = 240.0
ENVIRONMENT = {
    key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "SLURM_")) or key == "SLURM_CONF"
} | {"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
ENDLESS = "trainer.max_steps=1000000"
ALLOWED = 32 * 2.0**-23
"""As in test_ranks.py: two ranks add the same terms in another order."""


@pytest.fixture(scope="session", autouse=True)
def cluster() -> None:
    try:
        answers = subprocess.run(["sinfo"], capture_output=True, timeout=20, check=False).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        answers = False
    if not answers:
        missing = "" if shutil.which("slurmctld", path="/usr/sbin:/usr/bin") else "apt-get install slurm-wlm munge; "
        absent = f'no SLURM cluster answers; to have one on this machine: {missing}eval "$(scripts/slurm/up)"'
        (pytest.fail if os.environ.get("LAB_SLURM") == "1" else pytest.skip)(absent)


class Submitted:
    """A sweep given to the cluster."""

    def __init__(self, path: Path, words: list[str], *options: str) -> None:
        self.path, self.words = path, words
        self.first = path / "run"
        self.launcher = ["hydra/launcher=slurm", *(f"hydra.launcher.{option}" for option in options)]
        self.said = ""

    def submit(self, *more: str) -> str:
        self.said = lab("-m", *self.words, *self.launcher, *more, f"hydra.sweep.dir={self.path}")
        return self.said

    @property
    def job(self) -> str:
        """The id of its newest array."""
        ids: dict[str, str] = json.loads((self.path / "jobs.json").read_text())
        return list(ids.values())[-1]

    def status(self) -> str:
        return lab("status", str(self.path))

    def console(self) -> str:
        path = self.first / "console.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            if time.monotonic() > deadline:
                logs = "".join(log.read_text() for log in self.path.glob("logs/*"))
                pytest.fail(f"never {what}:\n{self.status()}\n{self.console()}\n{logs}")
            time.sleep(0.2)
        return value

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: self.saved() >= step, f"saved step {step}")

    def wait_for_status(self, pattern: str) -> str:
        return str(self.wait_for(lambda: re.search(pattern, status := self.status()) and status, pattern))

    def saved(self) -> int:
        return max((int(path.stem[5:]) for path in self.first.glob("checkpoints/step-*.ckpt")), default=0)


def lab(*words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lab", *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def sweep(tmp_path: Path, words: Any) -> Iterator[Callable[..., Submitted]]:
    """Makes a sweep of a short pca_autoencoder; what is left of its jobs at the end is cancelled."""
    made: list[Submitted] = []

    def make(name: str, more: list[str], *options: str) -> Submitted:
        made.append(Submitted(tmp_path / name, words("pca_autoencoder", *more), *options))
        return made[-1]

    yield make
    for each in made:
        if (each.path / "jobs.json").exists():
            subprocess.run(["scancel", *json.loads((each.path / "jobs.json").read_text()).values()], check=False)


def test_a_sweep_is_an_array(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in (("ARRAY_INX", "7"), ("NO_REQUEUE", "1"), ("OUTPUT", "/dev/null")):
        monkeypatch.setitem(ENVIRONMENT, f"SBATCH_{key}", value)
    array = sweep("array", ["k=2,4", "seed=0,1"], "wait=true", "poll_seconds=0.5", "max_running=2")
    said = array.submit()
    assert f"submitted 4 runs as job {array.job}" in said
    assert "4 of 4 runs finished" in said
    assert shown(array.job).count(" Requeue=1 ") == 4, "SBATCH_* of the environment override nothing of the script"
    assert (array.path / "results.csv").read_text().count("done") == 4
    assert "4 runs: 4 done" in array.status()
    submitted = json.loads((array.path / "k=2,seed=0/submitted.json").read_text())
    verdict = json.loads((array.path / "k=2,seed=0/verdict.json").read_text())
    assert submitted["code"]["commit"] == verdict["provenance"]["commit"]
    assert "edited_since_submit" not in verdict["provenance"]

    assert "4 of them finished" in array.submit()
    (array.path / "k=4,seed=1/verdict.json").unlink()
    assert "submitted 1 runs" in array.submit()
    assert "resuming" in (array.path / "k=4,seed=1/console.log").read_text()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_nodes_train_what_one_process_does(
    strategy: str, sweep: Any, finished: Any, words: Any, outcome: Any
) -> None:
    short, spread = "trainer.max_steps=300", ["trainer.num_nodes=2", f"trainer.strategy={strategy}"]
    nodes = sweep("nodes", [*spread, short], "wait=true", "poll_seconds=0.5")
    nodes.submit()
    run, one = outcome(nodes.first), finished(words("pca_autoencoder", short))
    assert run.verdict["provenance"]["world_size"] == 2
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n" in (nodes.path / "job-0.sbatch").read_text()
    apart = {key: float((run.weights[key] - w).norm() / w.norm()) for key, w in one.weights.items()}
    assert 0 < max(apart.values()) <= ALLOWED, apart


@pytest.mark.parametrize(
    ("spread", "taken"),
    [
        ("trainer.devices=2", ["scontrol", "requeue"]),
        # the nodes go to another job after a grace time, in which SLURM tells srun's tasks but not the script
        ("trainer.num_nodes=2", ["sbatch", "-Q", "-purgent", "-N2", "--exclusive", "-o/dev/null", "--wrap=true"]),
    ],
)
def test_preempted(spread: str, taken: list[str], sweep: Any, finished: Any, words: Any, outcome: Any) -> None:
    """Warned by the signal that comes before a limit, then by SLURM, which queues again by itself."""
    long = "trainer.max_steps=1500"
    run = sweep("preempted", [spread, long])
    run.words.remove("logger=none")
    run.submit()
    run.wait_for_step(100)
    subprocess.run(["scancel", "--signal=USR1", "--batch", f"{run.job}_0"], check=True)
    run.wait_for(lambda: "queues again" in run.console(), "queued again")
    saved = [run.saved()]
    status = run.wait_for_status(r"queued .* BeginTime")
    assert f"{run.job}_0" in status
    run.wait_for_step(saved[0] + 100)
    subprocess.run([*taken, *[f"{run.job}_0"] * (taken[0] == "scontrol")], check=True)
    run.wait_for(lambda: run.console().count("SIGTERM: saved") == 2, "saved again")
    saved.append(run.saved())
    run.wait_for_status(r"queued .* BeginTime")
    run.wait_for((run.first / "verdict.json").exists, "finished")
    for step in saved:
        assert f"SIGTERM: saved at step {step}" in run.console()
        assert f"resuming {run.first} from step-{step:09d}.ckpt" in run.console()
    assert "Restarts=2 " in shown(f"{run.job}_0")
    assert outcome(run.first).differs_from(finished(words("pca_autoencoder", "trainer.devices=2", long))) == []
    ids = wandb_ids(run.first)  # what is taken before its wandb has started, beside training, has none
    assert set(ids) == {OmegaConf.load(run.first / "config.yaml").id}
    assert 2 <= len(ids) <= 3


def shown(job: str) -> str:
    """What the controller knows of a job."""
    return subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True, check=True).stdout


def wandb_ids(run: Path) -> list[str]:
    """The id of wandb's run at each start."""
    return [folder.name.split("-", 3)[3] for folder in sorted(run.glob("wandb/offline-run-*"))]


def test_a_node_is_lost(sweep: Any, finished: Any, words: Any, outcome: Any) -> None:
    run = sweep("lost", [], "partition=lossy")
    run.submit()
    run.wait_for_step(100)
    kill_node("n3", f"{run.job}_0")
    saved = run.saved()
    try:
        run.wait_for_status(r"queued .* (BeginTime|Nodes_required|ReqNodeNotAvail|Resources)")
    finally:
        subprocess.run([UP, Path(os.environ["SLURM_CONF"]).parent], check=True, stdout=subprocess.DEVNULL)
    run.wait_for((run.first / "verdict.json").exists, "finished")
    assert f"resuming {run.first} from step-{saved:09d}.ckpt" in run.console()
    assert outcome(run.first).differs_from(finished(words("pca_autoencoder"))) == []


def kill_node(node: str, job: str) -> None:
    """What a power cut does: the node's daemon and every process of the job are gone at once."""
    (number,) = re.findall(r"JobId=(\d+)", shown(job).replace("ArrayJobId", ""))[:1]
    pids = [int((Path(os.environ["SLURM_CONF"]).parent / f"run/slurmd.{node}.pid").read_text())]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environ = (process / "cmdline").read_bytes(), (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if command.startswith(f"slurmstepd: [{number}.".encode()) or f"SLURM_JOB_ID={number}".encode() in environ:
            pids.append(int(process.name))
    assert len(pids) >= 4, "slurmd, slurmstepd, the task and its rank"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_cancelled_and_submitted_again(sweep: Any, finished: Any, words: Any, outcome: Any) -> None:
    long = "trainer.max_steps=1500"
    run = sweep("cancelled", ["k=2,8", long], "max_running=1")
    run.first = run.path / "k=2"
    run.submit()
    assert "2 runs are queued or running already" in run.submit()
    run.wait_for_step(100)
    said = lab("cancel", str(run.path))
    assert re.search(r"cancelled \S+ +running +k=2", said)
    assert re.search(r"cancelled \S+ +pending +k=8", said)
    status = run.wait_for_status(r"2 runs: 2 failed")
    saved = run.saved()
    assert re.search(rf"k=2 +failed +{run.job}_0 +{saved} +cancelled", status)
    assert re.search(rf"k=8 +failed +{run.job}_1 +cancelled", status)
    assert f"SIGTERM: saved at step {saved}" in run.console()
    assert "queues again" not in run.console()
    assert "nothing is queued or running" in lab("cancel", str(run.path))

    run.submit("hydra.launcher.wait=true", "hydra.launcher.poll_seconds=0.5")
    assert f"resuming {run.first} from step-{saved:09d}.ckpt" in run.console()
    for k in (2, 8):
        assert outcome(run.path / f"k={k}").differs_from(finished(words("pca_autoencoder", f"k={k}", long))) == []


def test_a_search_in_batches(sweep: Any) -> None:
    space = ["hydra/sweeper=optuna", "k=int(interval(1,16))", "hydra.sweeper.n_trials=4"]
    search = sweep("search", space, "wait=true", "batch=2", "poll_seconds=0.5")
    waiting = subprocess.Popen(
        [sys.executable, "-m", "lab", "-m", *search.words, *search.launcher, f"hydra.sweep.dir={search.path}"],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    search.wait_for(lambda: waiting.poll() is not None or (search.path / "jobs.json").exists(), "submitted")
    waiting.send_signal(signal.SIGINT)
    _, said = waiting.communicate(timeout=60)
    assert waiting.returncode == 130, said
    assert "the jobs go on" in said

    said = search.submit()
    assert "4 of 4 runs finished" in said
    jobs = list(json.loads((search.path / "jobs.json").read_text()).values())
    assert len(jobs) == 2, "the two trials that went on while nobody waited were not submitted again"
    assert [found.read_text().strip() for found in sorted(search.path.glob("*/slurm_job"))] == [
        f"{job}_{index}" for job in jobs for index in (0, 1)
    ]
    with (search.path / "results.csv").open() as file:
        objectives = [float(row["objective"]) for row in csv.DictReader(file)]
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{search.path / 'study.db'}")
    assert [trial.value for trial in study.trials] == objectives


def test_a_search_stops_a_trial_that_falls_behind(sweep: Any) -> None:
    """The seed proposes the wide bottleneck first; the narrow one can only be worse at every step."""
    space = ["hydra/sweeper=optuna", "k=2,12", "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler=random"]
    pruning = ["hydra.sweeper.pruner=median", "hydra.sweeper.startup_trials=1", "hydra.sweeper.seed=5"]
    long = ["trainer.max_steps=4000", "callbacks.checkpoints.keep=2"]
    search = sweep("pruned", [*space, *pruning, *long], "wait=true", "batch=1", "poll_seconds=0.2")
    assert "trial-0001: pruned" in search.submit()
    assert re.search(r"trial-0001 +pruned +\d+_0 ", search.status())
    assert "SIGTERM: saved at step" in (search.path / "trial-0001/console.log").read_text()
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{search.path / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]


def test_a_search_in_which_nothing_can_run_ends(sweep: Any) -> None:
    space = ["hydra/sweeper=optuna", "k=2,4", "hydra.sweeper.n_trials=6"]
    search = sweep("broken", space, "python=/nowhere/python", "wait=true", "batch=2", "poll_seconds=0.5")
    lab("-m", *search.words, *search.launcher, f"hydra.sweep.dir={search.path}", code=1)
    assert "2 runs: 2 failed" in search.status()


def test_over_the_time_limit(sweep: Any, start: Any, tmp_path: Path) -> None:
    warned = sweep("warned", [ENDLESS], "time=1", "signal_seconds=30")
    unwarned = sweep("unwarned", [ENDLESS], "time=1", "signal_seconds=0", "setup=['renice -n 19 $$']")
    warned.words.remove("logger=none")
    for run in (warned, unwarned):
        run.submit()

    # SLURM may warn a minute early, before there is anything to save; the run then begins once more
    saved = int(warned.wait_for(lambda: re.search(r"SIGTERM: saved at step (\d+)", warned.console()), "saved")[1])
    warned.wait_for(lambda: f"from step-{saved:09d}.ckpt" in warned.console(), "resumed")
    assert f"lab: job {warned.job}_0 queues again" in warned.console()
    beyond = saved // 50 * 50 + 100
    warned.wait_for_step(beyond)
    warned.wait_for(lambda: len(wandb_ids(warned.first)) >= 2, "wandb was there again")  # it starts beside training
    lab("cancel", str(warned.path))
    assert set(ids := wandb_ids(warned.first)) == {OmegaConf.load(warned.first / "config.yaml").id}
    assert len(ids) >= 2

    status = unwarned.wait_for_status(r"1 failed")
    last = unwarned.saved()
    assert re.search(rf"run +failed +{unwarned.job}_0 +{last} +over its time limit", status)
    assert f"SIGTERM: saved at step {last}" in unwarned.console()
    assert "queues again" not in unwarned.console()

    copy = tmp_path / "copy"  # goes through the step at which the other was stopped, from one before it
    shutil.copytree(warned.first, copy, ignore=shutil.ignore_patterns("wandb", "slurm_job", ".lock"))
    for checkpoint in copy.glob("checkpoints/step-*.ckpt"):
        if int(checkpoint.stem[5:]) >= saved:
            checkpoint.unlink()
    going_on = start(copy, [])
    going_on.wait_for_step(beyond)
    going_on.stop(signal.SIGTERM)
    assert trained_until(copy, beyond) == trained_until(warned.first, beyond)


def trained_until(run: Path, step: int) -> tuple[dict[str, bytes], list[str]]:
    """(what the checkpoint of a step holds, bit by bit; the rows of metrics.csv before it)"""
    checkpoint = torch.load(run / f"checkpoints/step-{step:09d}.ckpt", weights_only=True)
    slots = {
        f"{i} {name}": value for i, s in checkpoint["optimizer_states"][0]["state"].items() for name, value in s.items()
    }
    held = {name: value.numpy().tobytes() for name, value in (checkpoint["state_dict"] | slots).items()}
    rows = (run / "metrics.csv").read_text().splitlines()
    return held, [row for row in rows[1:] if int(row.partition(",")[0]) < step]


def test_a_job_that_cannot_start_says_why(sweep: Any) -> None:
    run = sweep("broken", [], "python=/nowhere/python", "wait=true", "poll_seconds=0.5")
    lab("-m", *run.words, *run.launcher, f"hydra.sweep.dir={run.path}", code=1)
    assert re.search(r"run +failed .*/nowhere/python: No such file or directory", run.status())


def test_what_slurm_refuses_is_said_in_one_line(sweep: Any) -> None:
    run = sweep("refused", [], "partition=nowhere")
    said = lab("-m", *run.words, *run.launcher, f"hydra.sweep.dir={run.path}", code=2)
    assert re.search(r"^lab: sbatch \S+job-0.sbatch: .*invalid partition specified: nowhere", said, re.MULTILINE)
    assert "1 waiting" in run.status()


def test_a_script_submitted_by_hand_after_an_edit(sweep: Any, outcome: Any) -> None:
    run = sweep("hand", [], "dry_run=true")
    assert "not submitted" in run.submit()
    assert "1 waiting" in run.status()
    submitted = run.first / "submitted.json"
    record = json.loads(submitted.read_text())
    record["code"]["source"] = "what it was before the edit"
    submitted.write_text(json.dumps(record))
    subprocess.run(["sbatch", "job-0.sbatch"], cwd=run.path, env=ENVIRONMENT, check=True)
    run.wait_for_status(r"1 (queued|running)")
    assert "1 runs are queued or running already" in run.submit()
    run.wait_for_status(r"run +done +\d+_0")
    said = "the code on disk was edited since this run was submitted (uncommitted)"
    assert outcome(run.first).verdict["provenance"]["edited_since_submit"] == said
    assert said in (run.first / "run.log").read_text()
    assert said in run.console()
