"""Pictures: drawn after judging in the lab's style, the same bytes for the same run, into files and to wandb."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import pytest

from lab import figures, loggers
from lab import run as module
from lab.claim import Run
from lab.pictures import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Line(Picture):
    """The weights as a line."""

    def draw(self, run: Run) -> Figure:
        assert mpl.rcParams["svg.hashsalt"] == "lab", "the lab's style is in force"
        figure = figures.blank(8, 5)
        figure.subplots().plot(run.model)
        return figure


def test_a_picture_is_an_svg_and_a_png_of_its_name(tmp_path: Path) -> None:
    drawn = module._draw({"line": Line(), "other": Line()}, Run([1.0, 3.0, 2.0], None), tmp_path)
    assert drawn == {name: tmp_path / f"{name}.png" for name in ("line", "other")}
    assert {p.name for p in tmp_path.iterdir()} == {"line.svg", "line.png", "other.svg", "other.png"}
    assert all(p.stat().st_size > 1000 for p in tmp_path.iterdir())


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder, weights in (("a", [1.0, 2.0]), ("b", [1.0, 2.0]), ("c", [2.0, 1.0])):
        (tmp_path / folder).mkdir()
        module._draw({"line": Line()}, Run(weights, None), tmp_path / folder)
    for suffix in ("svg", "png"):
        a, b, c = ((tmp_path / folder / f"line.{suffix}").read_bytes() for folder in "abc")
        assert a == b != c


def test_a_diverged_run_is_not_drawn(tmp_path: Path) -> None:
    assert module._draw({"line": Line()}, Run(None, None, finite=False), tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_blank_is_in_centimetres() -> None:
    assert figures.blank(25.4, 12.7).get_size_inches().tolist() == pytest.approx([10, 5])


def test_wandb_gets_every_image_at_the_last_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import wandb

    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "Image", lambda path: f"image of {Path(path).name}")
    logger = loggers.Wandb(save_dir=str(tmp_path))
    logger._run = SimpleNamespace(log=lambda row, step: rows.append(row | {"at": step}), summary=summary)
    images = {"figure": tmp_path / "figure.png", "picture/plan": tmp_path / "plan.png"}
    logger.log_verdict({"holds": True}, images, 7)
    while not logger._calls.empty():
        call = logger._calls.get()
        if call is not None and call.__qualname__.startswith("Wandb.log_verdict"):
            call()
    [row] = rows
    assert {k: row[k] for k in ("figure", "picture/plan", "at")} == {
        "figure": "image of figure.png",
        "picture/plan": "image of plan.png",
        "at": 7,
    }
    assert summary == {"holds": True}
