"""Sweeps for real: one import, many processes, killed and started again."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration
TINY = ["-m", "experiment=pca_autoencoder", "logger=none", "trainer.max_steps=20", "trainer.accelerator=cpu"]


def start(tmp_path: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lab", *TINY, f"hydra.sweep.dir={tmp_path / 'sweep'}", *overrides],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def rows(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "sweep" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def children(pid: int) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def finished(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "sweep").glob("*/verdict.json"))


def test_two_parameters_give_a_row_each_and_a_figure(tmp_path: Path) -> None:
    process = start(tmp_path, "model.net.k=2,4", "seed=range(2)")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    found = rows(tmp_path)
    assert [(row["model.net.k"], row["seed"], row["state"]) for row in found] == [
        (k, s, "done") for k in ("2", "4") for s in ("0", "1")
    ]
    assert float(found[0]["objective"]) > float(found[2]["objective"])  # more codes, less error
    assert (tmp_path / "sweep" / "figure.svg").stat().st_size > 0
    assert "4 of 4 runs finished" in output


def test_one_that_fails_ends_no_other_and_alone_is_run_again(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    (sweep / "k=4").mkdir(parents=True)
    (sweep / "k=4" / "config.yaml").mkdir()  # what cannot be written over
    process = start(tmp_path, "model.net.k=2,4,8")
    output, _ = process.communicate(timeout=300)
    assert process.returncode in (1, 2), output
    assert [row["state"] for row in rows(tmp_path)] == ["done", "failed", "done"]
    before = {path: path.stat().st_mtime_ns for path in finished(tmp_path)}
    (sweep / "k=4" / "config.yaml").rmdir()
    process = start(tmp_path, "model.net.k=2,4,8")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert [row["state"] for row in rows(tmp_path)] == ["done"] * 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_jobs_may_differ_in_their_devices(tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.fail("this test needs two cores")
    process = start(tmp_path, "trainer.devices=1,2", "trainer.precision=64-true")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    one, two = rows(tmp_path)
    for row, world in ((one, 1), (two, 2)):
        verdict = json.loads((Path(row["run_dir"]) / "verdict.json").read_text())
        assert verdict["provenance"]["world_size"] == world
    assert float(one["objective"]) == pytest.approx(float(two["objective"]), rel=1e-9)


def test_an_interrupt_stops_all_children_and_keeps_what_is_finished(tmp_path: Path) -> None:
    process = start(tmp_path, "seed=range(20)", "trainer.max_steps=1000", "hydra.launcher.n_jobs=2")
    deadline = time.monotonic() + 120
    while len(finished(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    running = children(process.pid)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "the same command goes on" in output
    assert not any(Path(f"/proc/{pid}").exists() for pid in running)
    kept = finished(tmp_path)
    assert 2 <= len(kept) < 20
    assert all(json.loads(path.read_text())["claims"] for path in kept)


def test_sixty_jobs_survive_kills_of_children_and_of_the_parent(tmp_path: Path, cheap: dict[str, list[str]]) -> None:
    """10 SIGKILLs of children, one of the parent, one restart: 60 results, none twice, none torn."""
    overrides = ["seed=range(60)", "hydra.launcher.n_jobs=2", "trainer.max_steps=5", "model.nested=false"]
    overrides += cheap["pca_autoencoder"]
    dice = random.Random(0)
    process = start(tmp_path, *overrides)
    killed = 0
    deadline = time.monotonic() + 300
    while killed < 10 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(dice.uniform(0.3, 1.0))
        if running := children(process.pid):
            os.kill(dice.choice(running), signal.SIGKILL)
            killed += 1
    assert killed == 10
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    before = {path: path.stat().st_mtime_ns for path in finished(tmp_path)}
    process = start(tmp_path, *overrides)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-2000:]
    found = rows(tmp_path)
    assert sorted(int(row["seed"]) for row in found) == list(range(60))
    assert {row["state"] for row in found} == {"done"}
    assert len(finished(tmp_path)) == 60
    assert all(json.loads(path.read_text())["claims"] for path in finished(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing finished ran again
    assert not list((tmp_path / "sweep").glob("**/*.tmp"))


def test_what_slurm_may_still_have_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that is frozen for SLURM goes on here, and the reverse, but never what may still be queued."""
    answer = tmp_path / "bin" / "squeue"
    answer.parent.mkdir()
    monkeypatch.setenv("PATH", f"{answer.parent}{os.pathsep}{os.environ['PATH']}")
    script = tmp_path / "sweep" / "job-0.sbatch"

    def run(*overrides: str) -> tuple[int, str]:
        process = start(tmp_path, "seed=0,1,2", "trainer.accelerator=auto", *overrides)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def squeue(said: str) -> None:
        answer.write_text(f"#!/bin/sh\n{said}\n")
        answer.chmod(0o755)

    squeue("exit 0")
    code, output = run("hydra/launcher=slurm", "hydra.launcher.dry_run=true")
    assert code == 0, output
    squeue("echo 'squeue: error: x\nsqueue: error: Unable to contact slurm controller' >&2; exit 1")
    code, output = run()
    assert code == 2, output
    assert "may still be queued, and SLURM does not say (squeue: error: Unable to contact slurm controller)" in output
    assert f"remove {script.parent}/job-*.sbatch" in output
    assert not list((tmp_path / "sweep").glob("*/console.log"))

    squeue(f"echo '7|1|PENDING|Priority|{script}'")
    code, output = run()
    assert code == 0, output
    assert f"1 runs are queued or running in SLURM and left to it; lab cancel {script.parent} takes them off" in output
    assert [row["state"] for row in rows(tmp_path)] == ["done", "queued", "done"]

    squeue("exit 0")
    assert run()[0] == 0
    assert [row["state"] for row in rows(tmp_path)] == ["done"] * 3

    squeue("exit 1")  # where nothing is left to run only the table asks
    code, output = run()
    assert code == 0, output
    assert "squeue: exit code 1: the table shows what the run directories say" in output

    squeue("exit 0")
    (tmp_path / "sweep/seed=1/verdict.json").unlink()
    frozen = tmp_path / "sweep/seed=1/config.yaml"
    frozen.write_text(frozen.read_text().replace("accelerator: cpu", "accelerator: auto"))
    code, output = run("hydra/launcher=slurm", "hydra.launcher.dry_run=true")
    assert code == 0, output
    assert "1 runs, not submitted" in output
    assert "accelerator: cpu" in frozen.read_text(), "no node decides for itself"


def test_a_search_does_not_try_again_what_slurm_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, script = tmp_path / "bin", tmp_path / "sweep" / "job-0.sbatch"
    folder.mkdir()
    script.parent.mkdir()
    script.write_text("")
    script.with_suffix(".points").write_text("trial-0000\n")
    (folder / "squeue").write_text(f"#!/bin/sh\necho '7|0|RUNNING|None|{script}'\n")
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    process = start(tmp_path, "hydra/sweeper=optuna", "model.net.k=int(interval(1,16))")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert f"lab: trial-0000 of {script.parent} are queued or running in SLURM: wait for them with" in output


def test_a_search_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    search = ["hydra/sweeper=optuna", "model.net.k=int(interval(1,16))", "hydra.sweeper.n_trials=6"]
    process = start(tmp_path, *search)
    deadline = time.monotonic() + 120
    while len(finished(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    process = start(tmp_path, *search)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert [row["run"] for row in rows(tmp_path)] == [f"trial-{i:04d}" for i in range(6)]
    assert {row["state"] for row in rows(tmp_path)} == {"done"}

    measured = [row["objective"] for row in rows(tmp_path)]
    (tmp_path / "sweep/trial-0002/verdict.json").write_text("{")
    (tmp_path / "sweep/trial-0004/verdict.json").unlink()
    process = start(tmp_path, *search)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "trial-0002/verdict.json is not whole: kept as verdict.json.damaged, and the run is judged again" in output
    assert [row["objective"] for row in rows(tmp_path)] == measured
    assert {row["state"] for row in rows(tmp_path)} == {"done"}


def test_a_trial_that_falls_behind_is_stopped_early_and_marked(tmp_path: Path) -> None:
    search = ["hydra/sweeper=optuna", "hydra.sweeper.pruner=median", "hydra.sweeper.startup_trials=2"]
    search += ["hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=3", "hydra.launcher.n_jobs=1"]
    process = start(tmp_path, *search, "trainer.max_steps=3000", "model.optimizer.lr=tag(log,interval(1e-5,1e-1))")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert [row["state"] for row in rows(tmp_path)] == ["done", "done", "pruned"]
    assert rows(tmp_path)[2]["reason"].startswith("at step ")
    assert "3/3 trial-0002: pruned" in output
    last = [path.read_text().split()[-1] for path in sorted((tmp_path / "sweep").glob("*/metrics.csv"))]
    steps = [int(line.partition(",")[0]) for line in last]
    assert steps[:2] == [2999, 2999]
    assert steps[2] < 2999


@pytest.mark.parametrize(("name", "ranks"), [("bottleneck", 2), ("step_size", 1)])
def test_the_command_that_wandbs_agent_would_run(name: str, ranks: int, tmp_path: Path) -> None:
    import yaml
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    from lab import paths

    sweep = yaml.safe_load((paths.CONF / "sweep" / "wandb" / f"{name}.yaml").read_text())
    chosen = {key: {"value": proposed(space)} for key, space in sweep["parameters"].items()}
    arguments = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
    command = [w for w in create_sweep_command(sweep["command"]) if w != "${args_no_hyphens}"]
    assert command[-1] == "lab"
    ran = subprocess.run(
        [sys.executable, "-m", "lab", *arguments, "trainer.max_steps=20", f"run_dir={tmp_path / 'trial'}"],
        env=os.environ | {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "agent42", "WANDB_MODE": "offline"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 3, ran.stderr  # 20 steps are too few for the claims
    verdict = json.loads((tmp_path / "trial" / "verdict.json").read_text())
    assert verdict["provenance"]["world_size"] == ranks
    assert len(list((tmp_path / "trial" / "wandb").glob("offline-run-*-agent42"))) == 1
    frozen = yaml.safe_load((tmp_path / "trial" / "config.yaml").read_text())
    swept = {key for key, space in sweep["parameters"].items() if "value" not in space}
    for key in swept:
        assert value_at(frozen, key) == chosen[key]["value"], key
    kind, _, name = sweep["metric"]["name"].partition("/")
    with (tmp_path / "trial" / "metrics.csv").open() as file:
        losses = next(csv.reader(file))
    claims = [f"{claim['name']}/measured" for claim in verdict["claims"]]
    assert name in claims if kind == "claim" else f"{kind}/{name}" in losses, "what the sweep goes by is logged"


def proposed(space: dict[str, object]) -> object:
    """A value that wandb might choose from what a sweep says of a parameter."""
    if "value" in space:
        return space["value"]
    return space["values"][0] if "values" in space else space["min"]  # type: ignore[index]


def value_at(config: Any, key: str) -> object:
    for name in key.split("."):
        config = config[name]
    return config
