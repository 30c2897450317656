"""gnn_cora from its config to its verdict, on a small network in the files' format: the real ones do not ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.compose.files import source


def test_a_citation_network_is_trained_on_and_judged(tmp_path: Path, planetoid: Any, finished: Any) -> None:
    planetoid(tmp_path, "cora", d=1433, classes=7, tested=100, telling=True)
    run = finished(
        [
            "experiment=gnn_cora",
            f"data_root={tmp_path}",
            "logger=none",
            "trainer.accelerator=cpu",
            "trainer.max_steps=20",
            "model.copies=2",
        ]
    )
    said = {claim["name"]: claim for claim in run.verdict["claims"]}
    assert list(said) == list(source("gnn_cora")["claims"])
    assert said["equivariance"]["holds"]
    assert said["citations_help"]["holds"]
    assert said["gcn_published"]["predicted"] == 0.815
    assert {path.name for path in run.path.glob("*.svg")} == {"figure.svg", "papers.svg"}
    assert set(run.curves) >= {"step", "loss/mlp", "loss/gcn", "loss/gin", "loss/gat"}
    assert "of 100 test nodes right" in (run.path / "run.log").read_text()
