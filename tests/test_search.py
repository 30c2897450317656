"""The space a search draws from, and what its study is told."""

from __future__ import annotations

import json
import math
import re
import warnings
from pathlib import Path
from typing import get_args

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lab import compose, paths
from lab.claim import Judged, Verdict
from lab.cli.sweep import main
from lab.compose.files import experiments, lineage
from lab.errors import Refusal
from lab.sweep import plan
from lab.sweep.search import Sampler, Search, _Trials
from lab.sweep.space import corners, space_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=interval(0.1,2)", FloatDistribution(0.1, 2.0)),
        ("a=tag(log,interval(0.1,2))", FloatDistribution(0.1, 2.0, log=True)),
        ("a=int(interval(1,16))", IntDistribution(1, 16)),
        ("a=range(1,9)", IntDistribution(1, 8)),
        ("a=range(0,9,2)", IntDistribution(0, 8, step=2)),
        ("a=range(5)", IntDistribution(0, 4)),
        ("a=relu,identity", CategoricalDistribution(["relu", "identity"])),
        ("a=choice(1,2)", CategoricalDistribution([1, 2])),
    ],
)
def test_what_hydra_sweeps_is_a_distribution(text: str, expected: object) -> None:
    space, fixed = space_of([text, "b=1"])
    assert space == {"a": expected}
    assert fixed == ["b=1"]


@pytest.mark.parametrize(
    "text",
    [
        "range(1,9)",
        "range(0,10,3)",
        "range(0,11,4)",
        "range(0.5,2.5,0.5)",
        "range(0.5,2.6,0.5)",
        "range(0,0.8,0.1)",
        "range(0.0,0.9,0.3)",
        "range(5.5)",
        "range(-1,1,0.25)",
    ],
)
def test_a_range_is_what_a_grid_runs(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna's of a range whose end its steps do not reach
        found = space_of([f"a={text}"])[0]["a"]
    assert isinstance(found, IntDistribution | FloatDistribution)
    assert found.step
    values = [float(override.partition("=")[2]) for override in plan.choices_of(f"a={text}")]
    steps = round((found.high - found.low) / found.step)
    assert [found.low + i * found.step for i in range(steps + 1)] == pytest.approx(values)


@pytest.mark.parametrize(
    "text",
    [
        "a=tag(lag,interval(1,2))",
        "a=interval(3,2)",
        "a=interval(0,0)",
        "a=interval(0.5,0.5)",
        "a=int(interval(2,2))",
        "a=tag(log,interval(0,1))",
        "a=range(1,1)",
        "a=range(1.0,1.0)",
        "a=range(1,9,0)",
        "a=range(1.0,9,0)",
        "a=range(9,1,-2)",
        "a=tag(log,range(0.5,2.5,0.5))",
        "a=[1],[2]",
    ],
)
def test_a_space_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Refusal):
        space_of([text])


def test_unlike_losses_are_not_searched() -> None:
    with pytest.raises(Refusal, match="a search among experiments needs objective=<name>"):
        main(["experiment=pca_autoencoder,linear_regression", "hydra/sweeper=optuna", "logger=none"])


def test_nothing_to_search_is_refused() -> None:
    with pytest.raises(Refusal, match="nothing to search"):
        space_of(["a=1"])


def test_the_ends_of_every_dimension_are_tried_before_anything_starts() -> None:
    space, _ = space_of(["a=int(interval(1,16))", "b=x,y"])
    assert list(corners(space)) == [
        {"a": "1", "b": "x"},
        {"a": "16", "b": "x"},
        {"a": "1", "b": "x"},
        {"a": "1", "b": "y"},
    ]
    with pytest.raises(Refusal, match=r"model\.net\.k=0 is not allowed"):
        main(["experiment=pca_autoencoder", "hydra/sweeper=optuna", "model.net.k=int(interval(0,4))"])


SEARCH = ["experiment=pca_autoencoder", "logger=none", "hydra/sweeper=optuna", "objective=loss/net"]
SPACE = "model.net.k=2,4"


def test_a_folder_that_holds_another_search_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    monkeypatch.setattr(Search, "run", lambda self, *_: ran.append(self.n_trials) or 0)
    there = f"hydra.sweep.dir={tmp_path}"

    def refusal(*texts: str) -> str:
        with pytest.raises(Refusal, match="choose another folder, or remove this one") as refused:
            main([*texts, there])
        return str(refused.value)

    main([*SEARCH, SPACE, there])
    main([*SEARCH, SPACE, there, "hydra.sweeper.n_trials=40", "trainer.accelerator=cpu"])
    assert ran == [30, 40]
    for text, said in (
        ("trainer.max_steps=7", "the config of its trials is another"),
        ("hydra.sweeper.seed=1", "hydra.sweeper.seed is 0 there and 1 here"),
        ("hydra.sweeper.sampler=random", "hydra.sweeper.sampler is tpe there and random here"),
        ("hydra.sweeper.direction=maximize", "hydra.sweeper.direction is minimize there and maximize here"),
        ("hydra.sweeper.log=true", "hydra.sweeper.log is False there and True here"),
        ("seed=1,2", "seed is not searched there and CategoricalDistribution(choices=(1, 2)) here"),
    ):
        assert f"holds another search: {said}" in refusal(*SEARCH, SPACE, text)
    assert "objective is loss/net there and loss/tall here" in refusal(*SEARCH[:-1], SPACE, "objective=loss/tall")
    assert "model.net.k is CategoricalDistribution(choices=(2, 4)) there" in refusal(*SEARCH, "model.net.k=2,4,8")
    assert "holds a search and this is a grid" in refusal(*SEARCH[:2], "seed=1,2")
    assert ran == [30, 40]


def test_a_search_is_refused_where_a_grid_lies(tmp_path: Path) -> None:
    plan.Sweep(tmp_path, "pca_autoencoder", (), None).add(plan.grid([*SEARCH[:2], SPACE]))
    with pytest.raises(Refusal, match="holds a grid and this is a search"):
        main([*SEARCH, SPACE, f"hydra.sweep.dir={tmp_path}"])


def test_only_trials_whose_verdict_is_lost_are_composed_again(tmp_path: Path) -> None:
    """One that is whole is not, which a later version of the lab may refuse."""
    import optuna

    verdict = Verdict("pca_autoencoder", 3, (Judged("a", "", "", "equal", "", 7.0, 7.0, 0.0, 0.0, 1.0, True),), {})
    study, space = optuna.create_study(), {"k": CategoricalDistribution([-1, 2, 4, 8])}
    for number, k in enumerate((-1, 2, 4, 8)):
        study.add_trial(optuna.create_trial(params={"k": k}, distributions=space, value=1.0))
        folder = tmp_path / f"trial-{number:04d}"
        folder.mkdir()
        if k != 4:
            (folder / "verdict.json").write_text(json.dumps(verdict.to_json()) if k != 8 else "{")
    ran: list[str] = []

    class Launcher:
        def check(self, cfg: object) -> None:
            pass

        def run(self, _: plan.Sweep, points: list[plan.Point]) -> int:
            ran.extend(f"{point.name} {point.values}" for point in points)
            return 7

    sweep = plan.Sweep(tmp_path, "pca_autoencoder", (), None, {})
    trials = _Trials(Search(), sweep, study, space, SEARCH[:2])
    assert trials.judge_lost(Launcher()) == 7
    assert ran == ["trial-0002 {'k': '4'}", "trial-0003 {'k': '8'}"]


def told(objective: float, **options: object) -> float:
    trials = _Trials.__new__(_Trials)
    trials.search = Search(**options)  # type: ignore[arg-type]
    return trials._told(objective)


def test_what_diverged_is_the_worst_there_is() -> None:
    assert told(math.nan) == math.inf
    assert told(math.nan, direction="maximize") == -math.inf
    assert told(1e30, worst=1.0) == 1.0
    assert told(0.5, worst=1.0, log=True) == pytest.approx(math.log(0.5))


def test_proposals_depend_on_the_number_of_the_trial_alone() -> None:
    space, _ = space_of(["a=interval(0,1)"])

    def draw(number: int) -> object:
        import optuna

        study = optuna.create_study(sampler=Search(seed=3).sampler_for(number))
        return study.ask(space).params["a"]

    assert draw(0) == draw(0)
    assert len({draw(number) for number in range(5)}) == 5


@pytest.mark.parametrize("sampler", get_args(Sampler))
def test_every_sampler_proposes_beyond_its_first_trials(sampler: Sampler) -> None:
    import optuna

    space, _ = space_of(["a=interval(0,1)", "b=int(interval(1,4))", "c=x,y"])
    search = Search(sampler=sampler, startup_trials=2)
    study = optuna.create_study()
    for number in range(4):
        study.sampler = search.sampler_for(number)
        trial = study.ask(space)
        study.tell(trial, trial.params["a"] * trial.params["b"])
    assert len({trial.params["a"] for trial in study.trials}) >= 3  # one may look twice at the best


READY = {
    path.stem: re.search(rf"-m experiment=(\w+) sweep={path.stem}\n", path.read_text())[1]  # type: ignore[index]
    for path in sorted((paths.CONF / "sweep").glob("*.yaml"))
}
"""Search space → its experiment, as the file's own command says."""


@pytest.mark.parametrize(("sweep", "experiment"), READY.items(), ids=READY)
def test_a_ready_search_space_composes_and_predicts_an_optimum(sweep: str, experiment: str) -> None:
    cfg, hydra = compose.compose_with_hydra([f"experiment={experiment}", f"sweep={sweep}"])
    assert cfg.objective.split("/")[1] in cfg.claims
    assert hydra.sweeper.optimum
    assert set(hydra.sweeper.optimum) <= set(hydra.sweeper.params)
    assert hydra.sweeper.because
    assert f"| `lab -m experiment={experiment} sweep={sweep}` |" in Path("docs/sweeps.md").read_text()
    texts = plan.with_params([f"experiment={experiment}", f"sweep={sweep}"], hydra)
    if hydra.runtime.choices["hydra/sweeper"] == "optuna":
        assert space_of(texts)[0].keys() == set(hydra.sweeper.optimum)
    else:
        assert {key for point in plan.grid(texts) for key in point.values} == set(hydra.sweeper.optimum)


def test_every_experiment_has_a_ready_search_space() -> None:
    variants = {name for name in experiments() if len(lineage(name)) > 1}
    assert sorted(READY.values()) == sorted(set(experiments()) - variants)


def test_a_study_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"no database" * 1000)
    words = ["experiment=pca_autoencoder", "logger=none", "hydra/sweeper=optuna", "k=int(interval(1,4))"]
    with pytest.raises(Refusal) as refused:
        main([*words, f"hydra.sweep.dir={tmp_path}"])
    assert re.search(r"study\.db cannot be used as the search's study: file is not a database; ", str(refused.value))
