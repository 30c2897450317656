"""Whether a run made again is the recorded one: bit by bit, within what its claims allow, or not."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lab.cli import reproduce as command
from lab.compose import compose, plain
from lab.errors import Refusal
from lab.reproduce import config_of, may_be_made_in, origin, outcome
from lab.rundir import RunDir, sealed

CLAIM = {
    "name": "error",
    "relation": "equal",
    "predicted": 1.0,
    "measured": 1.25,
    "standard_error": 0.0,
    "tolerance": 0.5,
    "holds": True,
    "because": "words",
}
BOUND = CLAIM | {"relation": "at_most", "measured": 0.25, "tolerance": 0.0}
WEIGHTS = {"w": torch.tensor([1.0, math.nan]), "n": torch.tensor(3)}


def run(
    path: Path, *, weights: dict[str, Any] | None = None, metrics: str | None = None, step: int = 50, **claim: Any
) -> Path:
    path.mkdir()
    record = {"experiment": "pca_autoencoder", "chapter": 3, "holds": True, "claims": [CLAIM | claim]}
    (path / "verdict.json").write_text(
        json.dumps(record | {"provenance": {"seed": 3, "world_size": 1, "device": "cpu"}})
    )
    if metrics is not None:
        (path / "metrics.csv").write_text(metrics)
    if weights is not None:
        buffer = io.BytesIO()
        torch.save({"state_dict": weights, "global_step": step}, buffer)
        (path / "checkpoints").mkdir()
        (path / "checkpoints" / f"step-{step:09d}.ckpt").write_bytes(sealed(buffer.getvalue()))
    return path


@pytest.mark.parametrize(
    ("there", "here", "expected", "said"),
    [
        ({}, {}, "bitwise", "the same numbers"),
        ({}, {"tolerance": 0.1, "because": "other words"}, "bitwise", "the same numbers; allowed 0.5 then, 0.1 now"),
        ({}, {"measured": 1.25 + 2**-50}, "within tolerance", "apart, 0.5 allowed"),
        ({}, {"measured": 1.8}, "not reproduced", "0.55 apart, 0.5 allowed"),
        ({}, {"predicted": 2.0}, "not reproduced", "1 apart"),
        ({}, {"measured": 1.3, "holds": False}, "not reproduced", "held in the record, refuted here"),
        ({}, {"measured": None}, "not reproduced", "not finite in one of them"),
        ({"measured": None}, {"measured": None}, "bitwise", "the same numbers"),
        (BOUND, {"measured": 0.9}, "within tolerance", "0.65 apart, 0.75 allowed"),
        (BOUND, {"measured": 1.1}, "not reproduced", "0.85 apart"),
        ({"curve": {"measured": [1, 2]}}, {"curve": {"measured": [1, 3]}}, "within tolerance", "0 apart"),
    ],
)
def test_the_numbers_of_a_claim(
    tmp_path: Path, there: dict[str, Any], here: dict[str, Any], expected: str, said: str
) -> None:
    found, lines = outcome(run(tmp_path / "a", **there), run(tmp_path / "b", **there | here))
    assert found == expected
    assert said in lines[0].said


@pytest.mark.parametrize(
    ("there", "here", "expected", "said"),
    [
        ({"weights": WEIGHTS}, {"weights": WEIGHTS}, "bitwise", "2 tensors of step 50, bit by bit"),
        ({}, {"weights": WEIGHTS}, "bitwise", "the record has no whole checkpoint"),
        (
            {"weights": WEIGHTS},
            {"weights": WEIGHTS | {"n": torch.tensor(4)}},
            "within tolerance",
            "1 of 2 tensors differ",
        ),
        ({"weights": WEIGHTS}, {"weights": WEIGHTS | {"n": torch.tensor(3.0)}}, "within tolerance", "1 of 2 tensors"),
        ({"weights": WEIGHTS}, {"weights": {"w": WEIGHTS["w"]}}, "within tolerance", "1 of 1 tensors"),
        ({"weights": {"w": torch.tensor(0.0)}}, {"weights": {"w": torch.tensor(-0.0)}}, "within tolerance", "1 of 1"),
        (
            {"weights": WEIGHTS},
            {"weights": WEIGHTS, "step": 60},
            "within tolerance",
            "of step 50 in the record, of step 60",
        ),
        ({"weights": {"w": Path("code")}}, {"weights": WEIGHTS}, "bitwise", "cannot be read: UnpicklingError"),
    ],
)
def test_the_weights(tmp_path: Path, there: dict[str, Any], here: dict[str, Any], expected: str, said: str) -> None:
    found, lines = outcome(run(tmp_path / "a", **there), run(tmp_path / "b", **here))
    assert found == expected
    assert said in lines[-1].said


def test_the_curves(tmp_path: Path) -> None:
    a, b, c = (
        run(tmp_path / name, metrics=text) for name, text in (("a", "step,l\n"), ("b", "step,l\n"), ("c", "step,m\n"))
    )
    assert outcome(a, b)[0] == "bitwise"
    assert outcome(a, c)[0] == "within tolerance"


def test_where_it_comes_from() -> None:
    recorded = {"commit": "a" * 40, "dirty": False, "versions": {"torch": "2.11", "old": "1"}, "device": "cpu"}
    here = {"commit": "a" * 40, "dirty": True, "versions": {"torch": "2.14"}, "device": "cpu", "hardware": "a CPU"}
    lines = {line.what: (line.agrees, line.said) for line in origin(recorded, here)}
    assert lines == {
        "commit": (True, "a" * 40),
        "tree": (False, "recorded no uncommitted changes, here uncommitted changes"),
        "torch": (False, "recorded 2.11, here 2.14"),
        "old": (None, "not known here; recorded 1"),
        "device": (True, "cpu"),
        "hardware": (None, "not recorded; here a CPU"),
        "world size": (None, "not recorded and known here"),
    }
    assert {line.agrees for line in origin(here, here) if line.what == "tree"} == {None}


def test_a_record_without_a_config_is_composed_again(tmp_path: Path) -> None:
    cfg, overrides = config_of(run(tmp_path / "a"))
    assert (cfg.name, cfg.seed, cfg.trainer.devices, cfg.trainer.accelerator) == ("pca_autoencoder", 3, 1, "cpu")
    assert overrides[:2] == ["experiment=pca_autoencoder", "seed=3"]


def test_a_frozen_config_is_taken_as_it_is_under_a_new_id(tmp_path: Path) -> None:
    there = run(tmp_path / "a")
    frozen = plain(compose(["experiment=pca_autoencoder", "seed=5", "model.net.k=3", "id=old"]))
    RunDir(there).config.write_text(yaml.safe_dump(frozen))
    RunDir(there).overrides.write_text("experiment=pca_autoencoder\nseed=5\nmodel.net.k=3\nid=old\nrun_dir=x\n")
    cfg, overrides = config_of(there)
    assert plain(cfg) == frozen | {"id": None}
    assert overrides == ["experiment=pca_autoencoder", "seed=5", "model.net.k=3"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: (path / "verdict.json").unlink(), "it has neither config.yaml nor verdict.json"),
        (lambda path: (path / "verdict.json").write_text("{"), "verdict.json is torn"),
        (
            lambda path: (path / "verdict.json").write_text('{"experiment": "pcaa", "claims": [], "provenance": {}}'),
            "pcaa",
        ),
        (lambda path: (path / "config.yaml").write_text("name: other"), "is not that of a run of pca_autoencoder"),
        (lambda path: (path / "config.yaml").write_text("a: ["), "is not YAML"),
        (
            lambda path: (path / "config.yaml").write_text("name: pca_autoencoder\nx: [{_target_: os.system}]"),
            "names os.system; allowed: what lab, torch, lightning define",
        ),
    ],
)
def test_what_cannot_be_made_again_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    there = run(tmp_path / "a")
    change(there)
    with pytest.raises(Refusal, match=said):
        config_of(there)


def test_an_unfinished_run_and_the_old_folder_are_refused(tmp_path: Path) -> None:
    there = run(tmp_path / "a")
    with pytest.raises(Refusal, match="is the run that is to be reproduced"):
        command.main([str(there), f"--run_dir={there}"])
    with pytest.raises(Refusal, match="did you mean"):
        command.main([str(tmp_path / "b")])
    (there / "verdict.json").rename(there / "config.yaml")
    with pytest.raises(Refusal, match="is not finished"):
        command.main([str(there)])


def test_a_folder_that_holds_something_is_not_where_a_run_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.launch.launch", lambda *_: pytest.fail("it was run"))
    there, here = run(tmp_path / "a"), run(tmp_path / "b")
    with pytest.raises(Refusal, match=f"--run_dir {here} is not empty: .* choose another one"):
        command.main([str(there), f"--run_dir={here}"])


def test_a_run_that_was_begun_again_goes_on_there(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "b")
    assert may_be_made_in(run)
    run.path.mkdir()
    for name, goes_on in ((".lock", True), ("overrides", True), ("run.log", False), ("config.yaml", True)):
        (run.path / name).write_text("")
        assert may_be_made_in(run) == goes_on, name
    run.verdict.write_text("")
    assert not may_be_made_in(run), "it has been made again"


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    there, alone = run(tmp_path / "a"), tmp_path / "alone"
    alone.write_text("")
    for file, said in ((there / "verdict.json", f", did you mean '{there}'?"), (alone, "")):
        with pytest.raises(Refusal) as refused:
            config_of(file)
        assert str(refused.value) == f"{file} is a file, not a run directory{said}"
