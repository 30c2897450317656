"""The claims hold, every control refutes what it must, and `lab verify` says so: real runs through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.cli.verify import _for_every_machine
from lab.compose.files import experiments, source
from lab.errors import HOLDS, REFUTED

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NAMES = list(_for_every_machine(list(experiments())))
"""The experiments that need neither files nor a GPU, variants of others among them."""
SMALLER = {
    "linear_regression": ["data.designs.small.replicates=8600"],
    "sinkhorn_ot_digits": ["data.side=2", "model.histograms.count=4", "data.images=8"],
}
"""Of these a quarter of the data says the same, with wider error bars."""


def verify(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`lab verify …` in an empty folder, on the CPU.

    It waits for nothing, so it gives way to tests beside it, which have limits to keep.
    """
    return subprocess.run(
        ["nice", "-n", "19", sys.executable, "-m", "lab", "verify", *words, "--jobs", "2"],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def verdicts(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(experiment, `claims` or `control-<name>`) → claim → what the verdict of that run says of it."""
    found = {}
    for path in folder.glob("outputs/verify/*/*/*/seed-0/verdict.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        name, kind = path.parts[-4:-2]
        assert record["experiment"] == name
        found[name, kind] = {claim["name"]: claim for claim in record["claims"]}
    return found


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    whole = [name for name in NAMES if name not in SMALLER]
    for words in ([*whole, "--controls"], *([name, "--controls", "--set", *less] for name, less in SMALLER.items())):
        done = verify(folder, *words)
        assert done.returncode == HOLDS, done.stdout + done.stderr
        assert "refuted as it must" in done.stdout
    return folder


def test_every_experiment_and_every_control_was_run(verified: Path) -> None:
    runs = {(n, f"control-{control}") for n in NAMES for control in source(n)["controls"]} | {
        (n, "claims") for n in NAMES
    }
    assert set(verdicts(verified)) == runs


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_holds(verified: Path, name: str) -> None:
    judged = verdicts(verified)[name, "claims"]
    assert list(judged) == list(source(name)["claims"])
    for claim, said in judged.items():
        assert said["holds"] is True, said
        assert said["difference"] <= said["tolerance"], claim


@pytest.mark.parametrize(("name", "control"), [(n, control) for n in NAMES for control in source(n)["controls"]])
def test_a_control_refutes_what_it_names(verified: Path, name: str, control: str) -> None:
    judged = verdicts(verified)[name, f"control-{control}"]
    for claim in source(name)["controls"][control]["refutes"]:
        said = judged[claim]
        assert said["holds"] is False, said
        beyond = said["difference"] is None or said["tolerance"] is None or said["difference"] > said["tolerance"]
        assert beyond, said


def test_a_control_that_refutes_nothing_is_an_error(tmp_path: Path) -> None:
    harmless = ["controls.no_order.overrides=[]", "~controls.relu_bottleneck", "~controls.one_more_code"]
    done = verify(tmp_path, "pca_autoencoder", "--controls", "--set", *harmless)
    assert done.returncode == REFUTED, done.stdout + done.stderr
    assert "holds but must be refuted" in done.stdout
    runs = verdicts(tmp_path)
    assert set(runs) == {("pca_autoencoder", "claims"), ("pca_autoencoder", "control-no_order")}
    assert all(claim["holds"] for judged in runs.values() for claim in judged.values())


def test_a_refuted_claim_is_an_error(tmp_path: Path) -> None:
    done = verify(tmp_path, "pca_autoencoder", "--set", "trainer.max_steps=20")
    assert done.returncode == REFUTED, done.stdout + done.stderr
    assert "refuted" in done.stdout
    assert not verdicts(tmp_path)["pca_autoencoder", "claims"]["reconstruction_error"]["holds"]
