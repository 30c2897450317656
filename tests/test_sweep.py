"""Sweeps without running them: points, folders, devices, what is read back."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lab import compose
from lab.__main__ import dispatch
from lab.claim import Judged, Verdict
from lab.cli.sweep import main
from lab.devices import Devices, Need
from lab.errors import HOLDS, REFUTED, Refusal
from lab.rundir import RunDir
from lab.sweep import plan, results
from lab.sweep.grid import Optimum
from lab.sweep.local import Local
from lab.sweep.results import Row

PCA = ["experiment=pca_autoencoder", "logger=none"]


def test_varying_a_composition_is_composing_with_the_overrides() -> None:
    more = ["seed=3", "model.net.k=4", "+model.optimizer.weight_decay=0.1", "model.nested=false", "trainer.devices=2"]
    varied = compose.vary(compose.compose(PCA), more)
    assert OmegaConf.to_container(varied) == OmegaConf.to_container(compose.compose([*PCA, *more]))


def test_a_grid_has_every_combination_once() -> None:
    points = plan.grid([*PCA, "model.net.k=2,4", "seed=range(3)"])
    assert [point.name for point in points] == [f"k={k},seed={s}" for k in (2, 4) for s in range(3)]
    assert [(p.cfg.model.net.k, p.cfg.seed) for p in points] == [(k, s) for k in (2, 4) for s in range(3)]
    assert len({point.digest for point in points}) == 6
    assert points[0].overrides == (*PCA, "model.net.k=2", "seed=0")


def test_a_group_is_swept_as_well() -> None:
    points = plan.grid(["experiment=pca_autoencoder,linear_regression", "logger=none"])
    assert [point.cfg.name for point in points] == ["pca_autoencoder", "linear_regression"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model.net.k=2,a", "model.net.k=a is not allowed: an integer"),
        ("model.net.kk=2,4", "unknown key model.net.kk=2, did you mean 'model.net.k'?"),
        ("model.k=1,2,4,8", "unknown key model.k=1, did you mean 'k' or 'model.net.k'?"),
        ("n_jobs=2", "unknown key n_jobs=2, did you mean 'hydra.launcher.n_jobs'?"),
        ("model.optimizer.lr=interval(0.1,1)", "is an interval, which a grid cannot run through"),
        ("run_dir=a,b", "a sweep sets run_dir for each of its runs"),
        ("seed=range(0)", "seed=range(0) has no value to run"),
        ("seed=range(3,1)", "seed=range(3,1) has no value to run"),
        ("seed=range(0,3,0)", "a range whose step is 0 has no end"),
        ("k=glob(*)", "k=glob(*) is not allowed: glob chooses among the files of a config group"),
        ("objective=claim/foo/measured", "objective=claim/foo/measured is not allowed: claim/<name>/<number>"),
        ("seed=1,1", "seed=1,1 gives one run twice: seed=1"),
        ("model.optimizer.lr=0.1,1e-1", "gives one run twice: model.optimizer.lr=0.1"),
    ],
)
def test_every_point_is_checked_before_the_first_one_starts(text: str, said: str) -> None:
    with pytest.raises(Refusal, match=None) as refused:
        plan.grid([*PCA, text])
    assert said in str(refused.value)


def test_a_key_that_is_swept_is_given_once() -> None:
    for texts in (["seed=choice(1,2)", "seed=4"], ["seed=4", "++seed=1,2"], ["seed=1,2", "seed=1,2"]):
        with pytest.raises(Refusal, match="seed is given twice: "):
            plan.grid([*PCA, *texts])
    assert plan.grid([*PCA, "k=2,4", "seed=4", "seed=5"])[0].cfg.seed == 5


def test_a_glob_chooses_among_files() -> None:
    points = plan.grid(["experiment=glob(pca_autoencoder*,exclude=*mnist)", "logger=none"])
    assert [point.cfg.name for point in points] == ["pca_autoencoder"]


@pytest.mark.parametrize("search", [[], ["hydra/sweeper=optuna"]], ids=["grid", "search"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hydra.sweep.dir=/proc/x/y", "hydra.sweep.dir=/proc/x/y cannot be written"),
        ("hydra.sweep.dir=/etc/passwd/x", "hydra.sweep.dir=/etc/passwd/x is not allowed: /etc/passwd is not a folder"),
        ("hydra.sweep.dir=/etc/passwd", "hydra.sweep.dir=/etc/passwd is not allowed: /etc/passwd is not a folder"),
        ("hydra.sweep.dir=", "hydra.sweep.dir= is not allowed: a folder, or auto"),
        ("hydra.sweep.dir=a,b", "a sweep has one hydra.sweep.dir"),
        ("hydra.launcher.n_jobs=1,2", "a sweep has one hydra.launcher.n_jobs"),
        ("sweep=bottleneck,step_size", "a sweep has one sweep"),
        ("hydra.sweeper.max_batch_size=2", "unknown key hydra.sweeper.max_batch_size=2"),
        ("hydra.sweep.subdir=x", "changes nothing in a sweep; of Hydra's keys it reads hydra/launcher, hydra/sweeper"),
        ("hydra.job.chdir=true", "hydra.job.chdir=true changes nothing in a sweep"),
        ("hydra.verbose=true", "hydra.verbose=true changes nothing in a sweep"),
        ("hydra.run.dir=x", "hydra.run.dir=x changes nothing in a sweep"),
        ("hydra/job_logging=default", "hydra/job_logging=default changes nothing in a sweep"),
        ("hydra.launcher=slurm", "did you mean 'hydra/launcher'"),
        ("hydra.sweeper.optimum.k=3", "hydra.sweeper.optimum.k is not swept; swept: seed"),
    ],
)
def test_what_a_sweep_would_ignore_or_cannot_write_is_refused(
    search: list[str], text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal) as refused:
        main([*PCA, "seed=0,1", *search, text])
    assert said in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_an_accelerator_left_open_is_no_other_sweep(tmp_path: Path) -> None:
    open_, settled = [*PCA, "seed=0,1"], [*PCA, "seed=0,1", "trainer.accelerator=cpu"]
    for i, (first, second) in enumerate([(open_, settled), (settled, open_)]):
        plan.Sweep(tmp_path / str(i), "pca_autoencoder", (), None).add(plan.grid(first))
        plan.Sweep(tmp_path / str(i), "pca_autoencoder", (), None).add(plan.grid(second))
        with pytest.raises(Refusal, match="holds another sweep"):
            plan.Sweep(tmp_path / str(i), "pca_autoencoder", (), None).add(plan.grid([*second, "k=4"]))


def test_a_folder_is_named_by_what_the_sweep_is(tmp_path: Path) -> None:
    _, hydra = compose.compose_with_hydra(PCA)
    points = plan.grid([*PCA, "seed=0,1"])
    named = plan.folder(hydra, "pca_autoencoder", [point.digest for point in points])
    assert named == plan.folder(hydra, "pca_autoencoder", [point.digest for point in reversed(points)])
    other = plan.grid([*PCA, "seed=0,2"])
    assert named != plan.folder(hydra, "pca_autoencoder", [point.digest for point in other])
    hydra.sweep.dir = str(tmp_path)
    assert plan.folder(hydra, "pca_autoencoder", []) == tmp_path


def test_a_folder_that_holds_another_sweep_is_refused(tmp_path: Path) -> None:
    plan.Sweep(tmp_path, "pca_autoencoder", (), None).add(plan.grid([*PCA, "seed=0,1"]))
    plan.Sweep(tmp_path, "pca_autoencoder", (), None).add(plan.grid([*PCA, "seed=0,1,2"]))
    assert [entry["name"] for entry in plan.read_record(tmp_path)["points"]] == ["seed=0", "seed=1", "seed=2"]
    with pytest.raises(Refusal, match="holds another sweep"):
        plan.Sweep(tmp_path, "pca_autoencoder", (), None).add(plan.grid([*PCA, "k=4", "seed=0,1"]))


def test_an_unreadable_verdict_hides_no_other_run_and_is_judged_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    executed: list[str] = []

    def run(_: Local, sweep: plan.Sweep, points: list[plan.Point]) -> int:
        for point in points:
            executed.append(point.name)
            finished(sweep.folder(point))
        return HOLDS

    monkeypatch.setattr(Local, "run", run)
    words = ["-m", *PCA, "seed=0,1,2", f"hydra.sweep.dir={tmp_path}"]
    assert dispatch(words) == HOLDS
    torn = [tmp_path / "seed=1/verdict.json", tmp_path / "seed=2/verdict.json"]
    torn[0].write_text("{")
    torn[1].write_text("[]")
    (tmp_path / "seed=2/verdict.json.damaged").write_text("an earlier one")
    capsys.readouterr()
    assert dispatch(["status", str(tmp_path)]) == HOLDS
    assert "3 runs: 2 failed, 1 done" in capsys.readouterr().out
    row = results.collect(tmp_path)[1]
    assert row.state == "failed"
    assert "its verdict.json is not whole" in row.reason
    executed.clear()
    assert dispatch(words) == HOLDS
    assert executed == ["seed=1", "seed=2"]
    said = capsys.readouterr()
    assert "3 of 3 runs finished" in said.out
    assert f"lab: {torn[0]} is not whole: kept as verdict.json.damaged, and the run is judged again" in said.err
    assert (tmp_path / "seed=1/verdict.json.damaged").read_text() == "{"
    assert (tmp_path / "seed=2/verdict.json.damaged").read_text() == "an earlier one"
    assert (tmp_path / "seed=2/verdict.json.damaged1").read_text() == "[]"


def test_a_second_start_in_a_folder_is_told_which_key_chooses_another(tmp_path: Path) -> None:
    with RunDir(tmp_path).lock(), pytest.raises(Refusal) as refused:
        main([*PCA, "seed=0,1", f"hydra.sweep.dir={tmp_path}"])
    said = f"hydra.sweep.dir={tmp_path} is being written by process"
    assert str(refused.value).startswith(said)
    assert str(refused.value).endswith("or choose another hydra.sweep.dir")


def test_a_long_reason_stays_on_its_line_where_the_output_is_piped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / plan.RECORD).write_text(record_with())
    (tmp_path / "k=2").mkdir()
    reason = "why [it] failed " * 20
    (tmp_path / "k=2/console.log").write_text(f"{reason}\n")
    assert dispatch(["status", str(tmp_path)]) == HOLDS
    assert reason.strip() in capsys.readouterr().out


def test_a_grid_may_be_compared_by_another_objective(tmp_path: Path) -> None:
    for objective in ("loss/net", "loss/tall"):
        points = plan.grid([*PCA, "seed=0,1", f"objective={objective}"])
        plan.Sweep(tmp_path, "pca_autoencoder", (), objective).add(points)
        assert plan.read_record(tmp_path)["objective"] == objective
        RunDir(tmp_path / "seed=0").path.mkdir(exist_ok=True)
        RunDir(tmp_path / "seed=0").freeze(points[0].cfg, [])


def record_with(**changes: object) -> str:
    point = {"name": "k=2", "values": {"k": "2"}, "digest": "x"}
    record = {"experiment": "e", "overrides": [], "objective": None, "points": [point]}
    return json.dumps(record | {"points": [point | changes]} if changes else record)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "{",
        "[" * 100_000,
        "[]",
        '{"points": []}',
        '{"experiment": 1, "overrides": 2, "objective": 3, "points": 4}',
        '{"experiment": "e", "overrides": [1], "objective": null, "points": []}',
        '{"experiment": "e", "overrides": [], "objective": null, "points": [{}]}',
        '{"experiment": "e", "overrides": [], "objective": null, "points": ["k=2"]}',
        *(record_with(name=name) for name in (2, "", ".", "..", "../../../etc", "/etc", "a/b", "a\0b")),
        record_with(values=[]),
        record_with(values={"k": 2}),
        record_with(digest=None),
        '{"experiment": "e", "overrides": [], "objective": null, "points": [], "search": 1}',
    ],
)
def test_a_folder_without_a_readable_record_is_no_sweep(tmp_path: Path, content: str | None) -> None:
    sweep = tmp_path / "s"
    sweep.mkdir()
    if content is not None:
        (sweep / plan.RECORD).write_text(content)
    for words in (["status", str(sweep)], ["cancel", str(sweep)], ["compare", str(sweep)]):
        with pytest.raises(Refusal) as refused:
            dispatch(words)
        assert len(str(refused.value).splitlines()) == 1
    if content is not None:
        with pytest.raises(Refusal, match=r"s/sweep\.json is not the record of a sweep"):
            main([*PCA, "k=2,4", f"hydra.sweep.dir={sweep}"])
        assert [path.name for path in sweep.iterdir() if path.name != ".lock"] == [plan.RECORD]


def test_a_whole_record_is_read(tmp_path: Path) -> None:
    (tmp_path / plan.RECORD).write_text(record_with())
    assert [row.state for row in results.collect(tmp_path)] == ["waiting"]


def test_no_device_is_lent_twice() -> None:
    devices = Devices({"cpu": [0, 1, 2], "cuda": [0, 1]})
    assert devices.take(Need("cpu", 2)) == (0, 1)
    assert devices.take(Need("cpu", 2)) is None
    assert devices.take(Need("cpu", 1)) == (2,)
    devices.give(Need("cpu", 2), (0, 1))
    assert devices.take(Need("cpu", 2)) == (0, 1)
    assert devices.take(Need("cuda", 1, exactly=(1,))) == (1,)
    assert devices.take(Need("cuda", 1, exactly=(1,))) is None
    assert devices.take(Need("cuda", 1)) == (0,)


def test_what_a_run_needs() -> None:
    assert Need.of(compose.compose([*PCA, "trainer.accelerator=cpu", "threads=1"])) == Need("cpu", 1)


def row(name: str, objective: float, *, held: int = 1, state: results.State = "done", **values: str) -> Row:
    return Row(name, values, Path(name), state, objective=objective, compared="loss", held=held, claims=1, seconds=1.0)


def test_seeds_are_averaged_with_their_standard_error() -> None:
    groups = results.by_values(
        [row("a", 1.0, k="2", seed="0"), row("b", 3.0, k="2", seed="1"), row("c", 5.0, k="4", seed="0")]
    )
    assert [group.values for group in groups] == [{"k": "2"}, {"k": "4"}]
    assert groups[0].mean == 2.0
    assert groups[0].standard_error == pytest.approx(math.sqrt(2) / math.sqrt(2))
    assert math.isnan(groups[1].standard_error)


def test_seeds_alone_are_rows_of_their_own() -> None:
    assert len(results.by_values([row("a", 1.0, seed="0"), row("b", 3.0, seed="1")])) == 2


def test_the_best_row_is_held_against_theory(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("a", 2.0, lr="0.5"), row("b", 1.0, lr="0.99"), row("c", math.nan, lr="1.5")]
    assert Optimum({"lr": 1.0}, "minimize", 0.02, "").judge(rows) == HOLDS
    assert Optimum({"lr": 1.0}, "minimize", 0.001, "").judge(rows) == REFUTED
    assert Optimum({"lr": 0.5}, "maximize", 0.0, "").judge(rows) == HOLDS
    assert "as theory says" in capsys.readouterr().out


def test_the_first_losses_of_two_experiments_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for name, loss in (("a", "loss/net"), ("b", "loss/tall"), ("c", "loss/net")):
        path = finished(tmp_path / name, metrics=f"step,{loss}\n0,2.5\n")
        record = json.loads((path / "verdict.json").read_text())
        (path / "verdict.json").write_text(json.dumps(record | {"experiment": name}))
        rows.append(results.row(name, {"experiment": name}, path, None))
    for some in (rows[:2], rows[::2]):
        results.print_table(some)
        assert Optimum({}, "minimize", 0.0, "").judge(some) == HOLDS
        out = capsys.readouterr().out
        assert out.split()[:2] == ["experiment", "objective"]
        assert "best" not in out
        for found in some:
            assert f"{found.compared} 2.5" in out
    asked = [results.row(row.name, row.values, Path(row.path), "loss/net") for row in rows]
    results.print_table(asked)
    assert Optimum({}, "minimize", 0.0, "").judge(asked) == HOLDS
    out = capsys.readouterr().out
    assert out.split()[:2] == ["experiment", "loss/net"]
    assert [line.split()[:2] for line in out.splitlines() if "1/2" in line] == [["a", "2.5"], ["b", "–"], ["c", "2.5"]]
    assert "best" in out


def finished(path: Path, *, metrics: str = "step,loss/net\n0,4.0\n50,2.5\n") -> Path:
    path.mkdir(exist_ok=True)
    (path / "metrics.csv").write_text(metrics)
    judged = [
        Judged(name, "", "", "equal", "", 7.0, measured, 0.0, 0.0, 1.0, holds)
        for name, measured, holds in (("a", 7.0, True), ("b", math.nan, False))
    ]
    verdict = Verdict("pca_autoencoder", 3, tuple(judged), {"seconds": 3.0})
    (path / "verdict.json").write_text(json.dumps(verdict.to_json()))
    return path


@pytest.mark.parametrize(
    ("objective", "expected"),
    [(None, 2.5), ("loss/net", 2.5), ("claim/a/measured", 7.0), ("claim/b/measured", None), ("nothing", None)],
)
def test_the_objective_of_a_run(tmp_path: Path, objective: str | None, expected: float | None) -> None:
    found = results.row("r", {}, finished(tmp_path / "r"), objective)
    assert (found.state, found.held, found.claims, found.holds) == ("done", 1, 2, False)
    assert found.objective == expected if expected is not None else math.isnan(found.objective)


def test_a_duration_that_is_no_number_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path / "a")
    record = json.loads((run / "verdict.json").read_text())
    (run / "verdict.json").write_text(json.dumps(record | {"provenance": {"seconds": "x"}}))
    found = results.row("a", {}, run, None)
    assert math.isnan(found.seconds)
    results.print_table([found])
    assert "nan" in capsys.readouterr().out


def test_a_torn_last_row_is_not_read(tmp_path: Path) -> None:
    found = results.row("r", {}, finished(tmp_path / "r", metrics="step,loss/net\n0,4.0\n50"), None)
    assert found.objective == 4.0


def test_the_state_of_runs_without_a_verdict(tmp_path: Path) -> None:
    assert results.row("a", {}, tmp_path / "a", None).state == "waiting"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "console.log").write_text("Traceback\nRuntimeError: no\n\n")
    failed = results.row("b", {}, tmp_path / "b", None)
    assert (failed.state, failed.reason) == ("failed", "RuntimeError: no")


def test_the_table_is_kept_as_it_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.print_table([row("a", 1.0, k="2"), row("b", 3.0, k="4")], file=tmp_path / results.TABLE)
    kept = (tmp_path / results.TABLE).read_text()
    assert [line.split() for line in kept.splitlines() if line.strip()] == [
        line.split() for line in capsys.readouterr().out.splitlines() if line.strip()
    ]
    assert "\x1b" not in kept
    assert kept.split()[:2] == ["k", "loss"]


def test_results_csv_has_a_line_for_every_point(tmp_path: Path) -> None:
    bound = replace(row("c", 3.0, k="8"), compared="claim/bound/measured")
    failed = replace(row("b", math.nan, state="failed", k="4"), compared="")
    results.write_csv([row("a", 1.0, k="2"), failed, bound], tmp_path / "results.csv")
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    columns = ("run", "k", "state", "objective", "objective_name", "claims_held")
    assert [tuple(line[column] for column in columns) for line in lines] == [
        ("a", "2", "done", "1.0", "loss", "1"),
        ("b", "4", "failed", "", "", "1"),
        ("c", "8", "done", "3.0", "claim/bound/measured", "1"),
    ]


def test_of_one_text_given_twice_the_last_counts() -> None:
    points = plan.grid([*PCA, "seed=0,1", "model.net.k=2", "model.net.k=4", "model.net.k=2"])
    assert [point.cfg.model.net.k for point in points] == [2, 2]
