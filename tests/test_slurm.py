"""What is submitted and what is read of SLURM's answers, without a cluster; tests/integration/test_slurm.py has one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lab import provenance
from lab.__main__ import dispatch
from lab.compose import compose
from lab.errors import CRASHED, REFUSED, Refusal
from lab.machine import check_machine, ranks_per_node, world_size
from lab.rundir import RunDir, sealed
from lab.sweep import queue, results, task
from lab.sweep.queue import Job, expand, parse_sacct, parse_scontrol
from lab.sweep.slurm import Shape, Slurm

PCA = "experiment=pca_autoencoder"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts shell scripts on the PATH in place of SLURM's programs; git apart, all others are absent."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "git").symlink_to(str(shutil.which("git")))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.chdir(tmp_path)

    def make(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(stat.S_IRWXU)

    return make


# ------------------------------------------------------------------------------------------------------------- scripts


def test_one_value_feeds_the_job_and_the_trainer() -> None:
    cfg = compose([PCA, "trainer.num_nodes=3", "trainer.devices=2", "threads=4"])
    slurm = Slurm()
    slurm.check(cfg)
    assert slurm.shape(cfg) == Shape(nodes=3, ranks_per_node=2, gpus_per_node=0, threads=4)
    assert (ranks_per_node(cfg), world_size(cfg)) == (2, 6)
    assert cfg.trainer.accelerator == "cpu", "settled here, so that the nodes cannot differ"


def test_gpus_follow_the_trainer() -> None:
    cfg = compose([PCA, "trainer.accelerator=gpu", "trainer.devices=4"])
    assert Slurm().shape(cfg).gpus_per_node == 4
    cfg = compose([PCA, "trainer.devices=2"])
    slurm = Slurm(gpus_per_node=8)
    slurm.check(cfg)
    assert cfg.trainer.accelerator == "gpu"
    assert slurm.shape(cfg).gpus_per_node == 8


@pytest.mark.parametrize(
    ("overrides", "options", "said"),
    [
        (["trainer.devices=auto"], {}, "trainer.devices=auto is not allowed with hydra/launcher=slurm"),
        (["trainer.devices=[0,1]"], {}, r"trainer.devices=\[0, 1\] is not allowed"),
        (["trainer.devices=4"], {"gpus_per_node": 2}, "gpus_per_node=2 is fewer than trainer.devices=4"),
        (["trainer.num_nodes=2", "data.batch_size=63"], {}, "data.batch_size=63 does not divide over 2 processes"),
    ],
)
def test_what_no_node_could_run_is_refused(overrides: list[str], options: dict[str, Any], said: str) -> None:
    with pytest.raises(Refusal, match=said):
        Slurm(**options).check(compose([PCA, *overrides]))


def test_the_submitting_machine_needs_no_devices_or_data() -> None:
    Slurm().check(compose(["experiment=pca_autoencoder_mnist", "data_root=/nowhere", "trainer.devices=60"]))


def test_several_nodes_need_slurm() -> None:
    cfg = compose([PCA, "trainer.num_nodes=2"])
    with pytest.raises(Refusal, match=r"trainer.num_nodes=2 is not allowed on one machine: .* hydra/launcher=slurm"):
        check_machine(cfg)
    check_machine(cfg, nodes=2)
    with pytest.raises(Refusal, match=r"trainer.num_nodes=2, but the job has 3 nodes"):
        check_machine(cfg, nodes=3)


def test_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/src")
    path = tmp_path / "a 100% sweep" / "job-2.sbatch"
    slurm = Slurm(
        partition="gpu", time="1-12:00:00", mem="16G", constraint="a100|h100", gpu_type="a100", max_running=4,
        options=["--exclusive"], setup=["module load cuda"], python="apptainer exec lab.sif python",
    )  # fmt: skip
    lines = slurm.script(path, Shape(2, 4, 4, 8), count=32).splitlines()
    assert lines[0] == "#!/bin/bash"
    assert {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")} == {
        "--job-name='lab-a 100% sweep'",
        "--array=0-31%4",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--cpus-per-task=8",
        "--gpus-per-node=a100:4",
        "--partition=gpu",
        "--time=1-12:00:00",
        "--mem=16G",
        "--constraint='a100|h100'",
        f"--chdir={Path.cwd()}",
        f"--output='{tmp_path}/a 100%% sweep/logs/%A_%a.log'",
        "--open-mode=append",
        "--signal=B:USR1@90",
        "--requeue",
        "--exclusive",
    }
    after = lines[lines.index("module load cuda") :]
    assert lines[lines.index("module load cuda") - 1] == "export PYTHONPATH=/src"
    assert after[1:] == [
        f"exec apptainer exec lab.sif python -m lab.sweep.task '{path.parent}' '{path.with_suffix('.points')}'"
    ]
    assert "--signal" not in Slurm(signal_seconds=0).script(path, Shape(1, 1, 0, 1), count=1)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--nodes=2", "set trainer.num_nodes"),
        ("-N2", "set trainer.num_nodes"),
        ("-HN 2", "set trainer.num_nodes"),
        ("--exclusive --ntasks 2", "set trainer.devices"),
        ("--ntasks-per-socket=1", "set trainer.devices"),
        ("-c 4", "set hydra.launcher.cpus_per_task"),
        ("-G1", "set hydra.launcher.gpus_per_node"),
        ("--gres=nvme:1,gpu:a100:2", "set hydra.launcher.gpus_per_node"),
        ("--gres gpu", "set hydra.launcher.gpus_per_node"),
        ("--array=0-3", "the lab writes it itself; hydra.launcher.max_running limits"),
        ("--arr=0-3", "the lab writes it itself"),
        ("-o x", "the lab writes it itself"),
        ("--no-requeue", "the lab writes it itself"),
        ("--signal=B:TERM", "set hydra.launcher.signal_seconds"),
        ("-t 10", "set hydra.launcher.time"),
        ("--partition=gpu", "set hydra.launcher.partition"),
        ("exclusive", "an option of sbatch on one line"),
        ("--exclusive\n#SBATCH -N2", "an option of sbatch on one line"),
        ("--comment='x", "No closing quotation"),
    ],
)
def test_options_that_the_lab_writes_are_refused(option: str, said: str) -> None:
    with pytest.raises(Refusal) as refused:
        Slurm(options=["--exclusive", option])
    assert str(refused.value).startswith(f"hydra.launcher.options: {option!r} is not allowed: {said}")


def test_other_options_are_sbatchs_own_affair() -> None:
    options = [
        "--exclusive", "-x node1", "--nodelist=node2", "--mem-per-cpu=2G", "--time-min=5", "--gres=nvme:1", "-J mine",
        "--mail-type=END --mail-user=a@b", "--no-kill", "--gpu-bind=none", "--comment='-N of nodes'", "-dafterok:3",
    ]  # fmt: skip
    assert Slurm(options=options).options == options


def submit(*more: str) -> int:
    return dispatch(["-m", PCA, "hydra/launcher=slurm", "hydra.sweep.dir=s", *more])


def test_dry_run_freezes_writes_and_submits_nothing(stand_in: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit("k=2,4", "trainer.devices=1,2", "hydra.launcher.dry_run=true") == 0
    assert "job-0.sbatch: 2 runs, not submitted" in capsys.readouterr().out
    assert queue.points(Path("s/job-0.sbatch")) == ["k=2,devices=1", "k=4,devices=1"]
    assert queue.points(Path("s/job-1.sbatch")) == ["k=2,devices=2", "k=4,devices=2"]
    assert "--ntasks-per-node=2" in Path("s/job-1.sbatch").read_text()
    frozen = Path("s/k=2,devices=2")
    assert (frozen / "overrides").read_text().splitlines()[-1] == "trainer.devices=2"
    submitted = json.loads((frozen / "submitted.json").read_text())
    assert submitted["code"] == provenance.code()
    diff = provenance.tree_diff()
    if diff:
        assert (Path("s") / submitted["diff"]).read_bytes() == diff
    else:
        assert submitted["diff"] == ("not known: git does not say" if diff is None else None)
    assert not Path("s/jobs.json").exists()


def test_a_cluster_that_is_absent_or_refuses(stand_in: Any) -> None:
    with pytest.raises(Refusal, match="sbatch is not on the PATH"):
        submit()
    stand_in("squeue", "exit 0")
    stand_in("sbatch", "echo 'sbatch: error: Batch job submission failed:\nInvalid account' >&2; exit 1")
    with pytest.raises(Refusal, match=r"sbatch \S+/s/job-0.sbatch: sbatch: error: .* failed: Invalid account$"):
        submit()
    assert not Path("s/jobs.json").exists()


def test_the_environment_overrides_no_line_of_the_script(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that stand in for a setting that is null are written down; none is left for sbatch to put first."""
    said = {"ACCOUNT": "mine", "PARTITION": "other", "TIMELIMIT": "5", "ARRAY_INX": "7", "NO_REQUEUE": "1", "WAIT": "1"}
    for key, value in said.items():
        monkeypatch.setenv(f"SBATCH_{key}", value)
    stand_in("squeue", "exit 0")
    stand_in("sbatch", "export -p > environment; echo 17")
    assert submit("k=2,4", "hydra.launcher.partition=gpu") == 0
    assert "PATH=" in Path("environment").read_text()
    assert "SBATCH_" not in Path("environment").read_text()
    script = Path("s/job-0.sbatch").read_text()
    for line in ("array=0-1", "partition=gpu", "account=mine", "time=5", "requeue"):
        assert f"\n#SBATCH --{line}\n" in script


def test_an_empty_variable_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    script = Slurm().script(tmp_path / "job-0.sbatch", Shape(1, 1, 0, 1), count=1)
    assert "--partition" not in script
    assert "#SBATCH --account=mine\n" in script


def test_a_search_waits_for_its_trials(stand_in: Any) -> None:
    for options in (["hydra.launcher.dry_run=true", "hydra.launcher.wait=true"], []):
        with pytest.raises(Refusal, match=r"a search needs .*: hydra\.launcher\.wait=true"):
            submit("hydra/sweeper=optuna", "k=int(interval(1,4))", *options)
    assert not Path("s").exists()


def test_only_what_is_left_is_submitted(stand_in: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in("sbatch", "echo '17;cluster'")
    assert submit("k=2,4,8") == 0
    assert json.loads(Path("s/jobs.json").read_text()) == {"job-0.sbatch": "17"}
    numbers = dict.fromkeys(("predicted", "measured", "standard_error", "difference", "tolerance"), 0.5)
    texts = dict.fromkeys(("name", "statement", "reference", "because", "note"), "a text")
    claim = texts | numbers | {"relation": "equal", "holds": True}
    done = {"experiment": "pca_autoencoder", "chapter": 3, "holds": True, "claims": [claim], "provenance": {}}
    Path("s/k=2/verdict.json").write_text(json.dumps(done))
    script = Path("s/job-0.sbatch").absolute()
    stand_in("squeue", f"echo '17|1|PENDING|Priority|{script}'; echo '17|2|PENDING|x|/elsewhere/job-0.sbatch'")
    stand_in("sacct", "exit 1")
    stand_in("scontrol", "echo 'JobId=20 ArrayJobId=17 ArrayTaskId=2 JobState=NODE_FAIL Reason=NodeDown Restarts=0'")
    stand_in("sbatch", "echo 18")
    assert submit("k=2,4,8") == 0
    assert json.loads(Path("s/jobs.json").read_text()) == {"job-0.sbatch": "17", "job-1.sbatch": "18"}
    assert queue.points(Path("s/job-1.sbatch")) == ["k=8"]

    capsys.readouterr()
    stand_in("scontrol", "echo 'JobId=20 ArrayJobId=18 ArrayTaskId=0 JobState=OUT_OF_MEMORY Reason=OutOfMemory'")
    states = {row.name: (row.state, row.reason, row.job) for row in results.collect(Path("s"))}
    assert states["k=2"][0] == "done"
    assert states["k=4"] == ("queued", "Priority", "17_1")
    assert states["k=8"] == ("failed", "out of memory", "18_0")
    assert dispatch(["status", "s"]) == 0
    assert "3 runs: 1 failed, 1 queued, 1 done" in capsys.readouterr().out
    stand_in("squeue", "exit 0")
    stand_in("scontrol", 'echo "JobId=20 ArrayJobId=$4 ArrayTaskId=4294967294 JobState=CANCELLED Reason=Priority"')
    states = {row.name: (row.state, row.reason) for row in results.collect(Path("s"))}
    assert states["k=4"] == states["k=8"] == ("failed", "cancelled"), "each of the waiting tasks was cancelled"
    stand_in("squeue", f"echo '17|1|PENDING|Priority|{script}'")
    stand_in("scancel", 'echo "$@" > cancelled')
    assert dispatch(["cancel", "s"]) == 0
    assert Path("cancelled").read_text() == "17_1\n"


def test_a_script_that_ends_in_its_setup_is_found_by_its_run(stand_in: Any, tmp_path: Path) -> None:
    """Submitted by hand, so that the lab knows no job, and dead before the lab starts."""
    for name in ("bash", "mv"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name, path=os.defpath)))
    setup = "hydra.launcher.setup=['echo no such module', 'exit 7']"
    assert submit("k=2,4", "hydra.launcher.dry_run=true", "hydra.sweep.dir=a sweep", setup) == 0
    sweep = Path("a sweep")
    environment = os.environ | {"SLURM_ARRAY_JOB_ID": "23", "SLURM_ARRAY_TASK_ID": "1"}
    with (sweep / "logs/23_1.log").open("w") as log:
        done = subprocess.run(
            ["bash", str(sweep.absolute() / "job-0.sbatch")],
            env=environment,
            stdout=log,
            stderr=log,
            check=False,
            cwd="/",
        )
    assert done.returncode == 7
    assert (sweep / "k=4/slurm_job").read_text() == "23_1\n"
    assert not (sweep / "k=2/slurm_job").exists()
    stand_in("squeue", "exit 0")
    stand_in("sacct", "echo '23_1|FAILED'")
    rows = {row.name: (row.state, row.reason, row.job) for row in results.collect(sweep)}
    assert rows == {"k=2": ("waiting", "", ""), "k=4": ("failed", "no such module", "23_1")}


def test_a_silent_controller_is_no_answer(stand_in: Any) -> None:
    submit("hydra.launcher.dry_run=true")
    stand_in("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(Refusal, match="squeue: slurm_load_jobs error: Unable to contact"):
        dispatch(["status", "s"])


def test_cancel_refuses_a_sweep_of_this_machine(stand_in: Any) -> None:
    Path("s").mkdir()
    Path("s/sweep.json").write_text('{"experiment": "e", "overrides": [], "objective": null, "points": []}')
    with pytest.raises(Refusal, match="was not submitted to SLURM"):
        dispatch(["cancel", "s"])


@pytest.mark.parametrize("content", ["[", "[]", '{"job-0.sbatch": 17}', '{"job-0.sbatch": "x"}', "null"])
def test_a_damaged_list_of_submissions_is_said(stand_in: Any, content: str) -> None:
    submit("hydra.launcher.dry_run=true")
    stand_in("squeue", "exit 0")
    Path("s/jobs.json").write_text(content)
    for words in (["status", "s"], ["cancel", "s"]):
        with pytest.raises(Refusal, match=r"s/jobs\.json is damaged"):
            dispatch(words)
    with pytest.raises(Refusal, match=r"s/jobs\.json is damaged"):
        submit()


@pytest.mark.parametrize("content", [b"xx", b"", b"7", b"\xff_0", b"-1_0"])
def test_a_damaged_job_hides_no_other_run(stand_in: Any, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    submit("k=2,4", "hydra.launcher.dry_run=true")
    stand_in("squeue", "exit 0")
    stand_in("sacct", "echo '17_1|TIMEOUT'")
    Path("s/k=2/slurm_job").write_bytes(content)
    Path("s/k=4/slurm_job").write_text("17_1\n")
    assert dispatch(["status", "s"]) == 0
    said = capsys.readouterr()
    assert "2 runs: 1 failed, 1 waiting" in said.out
    assert "s/k=2/slurm_job is damaged" in said.err


# ------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("text", "numbers"), [("3", [3]), ("1,4-6%2", [1, 4, 5, 6]), ("0-2", [0, 1, 2]), ("N/A", []), ("", [])]
)
def test_part_of_an_array(text: str, numbers: list[int]) -> None:
    assert list(expand(text)) == numbers


def test_accounting() -> None:
    jobs = parse_sacct(["12_0|COMPLETED", "12_1|CANCELLED by 1000", "12_[3-4%1]|PENDING", "13|FAILED"])
    assert {name: job.state for name, job in jobs.items()} == {
        "12_0": "COMPLETED", "12_1": "CANCELLED", "12_3": "PENDING", "12_4": "PENDING",
    }  # fmt: skip
    assert jobs["12_1"].why == "cancelled"


def test_the_controller() -> None:
    jobs = parse_scontrol([
        "JobId=2 ArrayJobId=1 ArrayTaskId=0 JobName=t JobState=TIMEOUT Reason=TimeLimit Dependency=x",
        "JobId=1 ArrayJobId=1 ArrayTaskId=1-2%1 ArrayTaskThrottle=1 JobState=CANCELLED Reason=None",
        "JobId=9 JobName=other JobState=RUNNING Reason=None",
    ])  # fmt: skip
    assert jobs == {
        "1_0": Job("1_0", "TIMEOUT", "TimeLimit"),
        "1_1": Job("1_1", "CANCELLED", "None"),
        "1_2": Job("1_2", "CANCELLED", "None"),
    }
    assert jobs["1_0"].why == "over its time limit"


@pytest.mark.parametrize(
    ("job", "live", "why"),
    [
        (Job("1_0", "PENDING", "Priority"), True, "Priority"),
        (Job("1_0", "RUNNING", "None"), True, ""),
        (Job("1_0", "COMPLETING", "None"), True, ""),
        (Job("1_0", "NODE_FAIL", "NodeDown"), False, "its node failed"),
        (Job("1_0", "FAILED", "NonZeroExitCode"), False, ""),
    ],
)
def test_states(job: Job, live: bool, why: str) -> None:
    assert (job.live, job.why) == (live, why)


# ---------------------------------------------------------------------------------------------------------------- task


@pytest.mark.parametrize("index", ["2", "-1", "", None])
def test_an_index_that_counts_to_no_run_is_said(
    index: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = tmp_path / "job-0.points"
    points.write_text("a\nb\n")
    monkeypatch.setattr(sys, "argv", ["task", str(tmp_path), str(points)])
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    if index is not None:
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", index)
    with pytest.raises(SystemExit) as left:
        task.main()
    assert left.value.code == REFUSED
    said = f"lab: SLURM_ARRAY_TASK_ID={index or 'absent'} counts to no run of {points}: 0 to 1\n"
    assert capsys.readouterr().err == said


def code_here(monkeypatch: pytest.MonkeyPatch) -> object:
    """With what the first task of s/job-0.sbatch ends, executed in this process."""
    monkeypatch.setattr(sys, "argv", ["task", "s", "s/job-0.points"])
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    monkeypatch.setattr(task, "redirect", lambda _: None)
    before = signal.getsignal(task.WARNING)
    with pytest.raises(SystemExit) as left:
        task.main()
    signal.signal(task.WARNING, before)
    return left.value.code


@pytest.mark.parametrize("made", [Refusal("its config.yaml is not whole"), AttributeError("_invalidate_flags_cache")])
def test_what_a_library_makes_of_a_warning_is_a_warning(
    made: Exception, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OmegaConf has a `finally` that fails where its `try` was broken into too early."""
    stand_in("squeue", "exit 0")
    submit("trainer.max_steps=100000", "logger=none", "hydra.launcher.dry_run=true")
    stand_in("scontrol", 'echo "$@" >> asked; exit 1')

    def broken_into(_run: Any) -> None:
        try:
            signal.raise_signal(task.WARNING)
        finally:
            raise made

    monkeypatch.setattr(task, "_execute", broken_into)
    assert code_here(monkeypatch) == 128 + signal.SIGTERM
    assert Path("asked").read_text() == "requeue 7_0\n"


def test_a_job_that_never_gets_to_a_step_is_given_up(stand_in: Any) -> None:
    """Warned before it has saved a step, it queues again twice and no more; by hand it may try again."""
    stand_in("squeue", "exit 0")
    submit("trainer.max_steps=100000", "logger=none", "hydra.launcher.dry_run=true")
    stand_in("scontrol", 'kill -USR1 $PPID; echo "$@" >> asked; exit 1')  # warned again while it asks
    console = Path("s/run/console.log")

    def start(restarts: int) -> int:
        job = Path("s/run/slurm_job")
        job.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "lab.sweep.task", "s", "s/job-0.points"],
            env=os.environ
            | {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_RESTART_COUNT": str(restarts)},
        )
        while not job.exists():
            assert process.poll() is None, console.read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGUSR1)
        return process.wait(60)

    assert [start(0), start(1)] == [128 + signal.SIGTERM] * 2
    assert console.read_text().count("job 7_0 queues again") == 2
    assert start(2) == CRASHED
    assert Path("asked").read_text() == "requeue 7_0\n" * 2
    assert console.read_text().endswith("lab: given up: 3 starts in a row saved no step\n")
    row = results.row("run", {}, Path("s/run"), None)
    assert (row.state, row.reason) == ("failed", "given up: 3 starts in a row saved no step")
    assert start(0) == 128 + signal.SIGTERM, "submitted again it has three starts again"


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        (
            "JobState=RUNNING Reason=None PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=2026-01-01T00:00:01 X=1",
            True,
        ),
        ("JobState=RUNNING Reason=None PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=None X=1", False),
        ("JobState=COMPLETING Reason=None PreemptTime=2026-01-01T00:00:01 X=1", False),  # SLURM has queued it again
    ],
)
def test_a_job_whose_tasks_alone_were_told_queues_again(
    said: str, asked: bool, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("squeue", "exit 0")
    submit("hydra.launcher.dry_run=true")
    stand_in("scontrol", f'test "$1" != requeue && echo "{said}" && exit; echo "$@" >> asked; exit 1')
    monkeypatch.setattr(task, "_execute", lambda _: CRASHED)
    assert code_here(monkeypatch) == CRASHED
    assert Path("asked").exists() == asked


def test_a_warning_while_slurm_is_asked_does_not_end_the_job(stand_in: Any) -> None:
    """The run is over, and the job has still to say that it queues again."""
    stand_in("squeue", "exit 0")
    submit("hydra.launcher.dry_run=true")
    shown = "JobState=RUNNING Reason=None PreemptTime=2026-01-01T00:00:01 X=1"
    stand_in("scontrol", f'test "$1" = requeue && echo "$@" >> asked && exit 1; kill -USR1 $PPID; echo "{shown}"')
    done = subprocess.run(
        [sys.executable, "-m", "lab.sweep.task", "s", "s/job-0.points"],
        env=os.environ | {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_NUM_NODES": "2"},
        check=False,
    )
    assert done.returncode == REFUSED, "of a job of two nodes for a run of one"
    assert Path("asked").read_text() == "requeue 7_0\n"


@pytest.mark.parametrize(
    ("damage", "said"), [(b"name: [", "expected the node content"), (b"\xff", "decode byte"), (b"", "it is empty")]
)
def test_a_damaged_config_is_said_in_one_line(
    damage: bytes, said: str, stand_in: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submit("hydra.launcher.dry_run=true")
    Path("s/run/config.yaml").write_bytes(damage)
    capsys.readouterr()
    assert code_here(monkeypatch) == REFUSED
    line = capsys.readouterr().err
    assert line.startswith("lab: run_dir=s/run: its config.yaml is not whole (")
    assert said in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("content", ["", "2", "2 none none", "two none", "² none"])
def test_a_damaged_count_is_none(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    (tmp_path / task.UNSAVED).write_text(content)
    assert [task._unsaved(RunDir(tmp_path), None) for _ in range(2)] == [1, 2]


def test_starts_that_saved_nothing_are_not_in_a_row_where_one_between_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that SLURM ended itself, preempted or with its node, has no word in the count."""
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()

    def save(step: int) -> Path:
        path = run.checkpoints / f"step-{step:08d}.ckpt"
        path.write_bytes(sealed(b"content\0\0"))
        return path

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert [task._unsaved(run, None) for _ in range(2)] == [1, 2]
    fifth = save(5)
    assert [task._unsaved(run, fifth) for _ in range(2)] == [1, 2]
    sixth = save(6)
    assert task._unsaved(run, fifth) == 0, "it saved itself"
    assert [task._unsaved(run, sixth) for _ in range(3)] == [1, 2, 3]


# ---------------------------------------------------------------------------------------------------------------- code


def test_code_edited_after_submitting_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.edited_since_submit(tmp_path) == "", "a run that was never queued"
    then = provenance.code()
    (tmp_path / provenance.SUBMITTED).write_text(json.dumps({"code": then}))
    assert provenance.edited_since_submit(tmp_path) == ""
    (tmp_path / provenance.SUBMITTED).write_text(json.dumps({"code": then | {"commit": "abc"}}))
    assert provenance.edited_since_submit(tmp_path) == "", "another commit with the same source"
    (tmp_path / provenance.SUBMITTED).write_text(json.dumps({"code": then | {"source": "other"}}))
    assert "edited since this run was submitted (uncommitted)" in provenance.edited_since_submit(tmp_path)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository from which the package seems to run, of a user whose git is set up for diffs to look at."""
    helper = tmp_path / "show"
    helper.write_text("#!/bin/sh\necho as I like it\n")
    helper.chmod(stat.S_IRWXU)
    config = tmp_path / "gitconfig"
    config.write_text(
        "[user]\nname = a\nemail = a@b\n[color]\nui = always\n[status]\nshowUntrackedFiles = no\n"
        f"[diff]\nexternal = {helper}\nnoprefix = true\nmnemonicPrefix = true\ncontext = 0\nrelative = true\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_DIFF_OPTS", "--unified=0")
    root = tmp_path / "ä checkout"
    package = root / "src" / "lab"
    package.mkdir(parents=True)
    (root / "conf").mkdir()
    (package / "a.py").write_bytes(b"".join(b"line %d\n" % i for i in range(40)))
    (package / "gone.py").write_bytes(b"gone\n")
    (root / "latin.txt").write_bytes("é\n".encode("latin-1"))
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    return root


def git(root: Path, *words: str, stdin: bytes = b"") -> None:
    subprocess.run(["git", "-C", str(root), *words], input=stdin, check=True)


def files(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file() and ".git" not in path.parts)
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def test_the_diff_makes_the_same_files_of_a_clean_clone(checkout: Path, tmp_path: Path) -> None:
    assert provenance.tree_diff() == b""
    changed = {
        "latin.txt": "ü, no UTF-8\n".encode("latin-1"),
        "src/lab/a.py": b"".join(b"line %d\n" % (i * (i != 20)) for i in range(40)),
        "src/lab/ö.py": b"new\r\nno newline at the end",
        "src/lab/-n.py": b"",
        "src/lab/two\nlines.py": b"x\n",
        "conf/blob.bin": bytes(range(256)),
    }
    for name, content in changed.items():
        (checkout / name).write_bytes(content)
    (checkout / "src/lab/gone.py").unlink()
    diff = provenance.tree_diff()
    assert diff
    assert provenance.code()["dirty"] is True
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(checkout), str(clone))
    git(clone, "apply", stdin=diff)
    assert files(clone) == files(checkout)
    assert files(clone).items() >= changed.items()


def test_a_diff_that_git_does_not_tell_is_not_known(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "src/lab/new.py").write_text("x\n")
    (checkout / "src/lab/new.py").chmod(0)
    if os.geteuid():  # root reads everything
        assert provenance.tree_diff() is None
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "git").write_text(f'#!/bin/sh\ncase "$*" in *binary*) {shutil.which("sleep")} 5;; *) echo x;; esac\n')
    (slow / "git").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(slow))
    monkeypatch.setattr(provenance, "PATIENCE", 0.5)
    assert provenance.tree_diff() is None
    monkeypatch.chdir(tmp_path)
    assert submit("hydra.launcher.dry_run=true") == 0
    assert json.loads(Path("s/run/submitted.json").read_text())["diff"] == "not known: git does not say"
