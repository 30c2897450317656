"""`lab sample`: a run directory is enough to draw from, the same seed draws the same, refusals say why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from lab import __main__ as command
from lab.compose import compose
from lab.errors import HOLDS, Refusal
from lab.figures.images import png, tiled
from lab.rundir import RunDir, sealed


def run(*words: str) -> int:
    return command.dispatch(["sample", *words])


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run directory as training leaves it, its weights those of the start and the mean of the pixels 3."""
    return left_by(tmp_path / "run", "vae", "seed=5")


def left_by(path: Path, experiment: str, *more: str) -> Path:
    import io

    from lab.making import made

    overrides = [f"experiment={experiment}", *more]
    cfg = compose(overrides)
    cfg.id = "by-hand"
    path.mkdir()
    folder = RunDir(path)
    folder.freeze(cfg, overrides)
    model = made(folder.read_config(), "model")
    if experiment == "vae":
        model.mean.fill_(3.0)
    for step in (50, 100):
        archive = io.BytesIO()
        torch.save({"state_dict": model.state_dict(), "global_step": step}, archive)
        folder.checkpoints.mkdir(exist_ok=True)
        (folder.checkpoints / f"step-{step:09d}.ckpt").write_bytes(sealed(archive.getvalue()))
    return path


def test_samples_are_written_as_arrays_and_images(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(trained), "--count", "10") == HOLDS
    said = capsys.readouterr().out
    stem = trained / "samples" / "step-000000100-seed-0"
    assert str(stem.with_suffix(".npy")) in said
    assert "10×8×8" in said
    samples = np.load(stem.with_suffix(".npy"))
    assert samples.shape == (10, 8, 8)
    assert abs(samples.mean() - 3) < 1  # the mean of the data comes with the checkpoint
    assert stem.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_sequences_are_written_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = left_by(tmp_path / "run", "transformer", "model.length=7")
    assert run(str(path), "--count", "3") == HOLDS
    stem = path / "samples" / "step-000000100-seed-0"
    samples = np.load(stem.with_suffix(".npy"))
    assert samples.shape == (3, 7)
    text = stem.with_suffix(".txt").read_text()
    assert [list(map(int, line.split())) for line in text.split("\n\n")] == samples.tolist()
    assert not stem.with_suffix(".png").exists()
    said = capsys.readouterr().out
    assert str(stem.with_suffix(".txt")) in said
    assert text in said


def test_the_seed_decides(trained: Path, tmp_path: Path) -> None:
    def drawn(folder: str, *words: str) -> np.ndarray:
        run(str(trained), "--count", "3", "--out", str(tmp_path / folder), *words)
        [path] = (tmp_path / folder).glob("*.npy")
        return np.load(path)

    first = drawn("a")
    torch.manual_seed(99)
    np.testing.assert_array_equal(drawn("b"), first)
    assert not np.array_equal(drawn("c", "--seed", "1"), first)
    assert not (trained / "samples").exists()


def test_a_torn_checkpoint_is_passed_over(trained: Path) -> None:
    newest = trained / "checkpoints" / "step-000000100.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    run(str(trained), "--count", "2")
    assert [path.stem for path in (trained / "samples").glob("*.npy")] == ["step-000000050-seed-0"]


def test_what_cannot_be_sampled_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="is not a run directory: it has no config"):
        run(str(tmp_path / "nowhere"))
    with pytest.raises(Refusal, match="--count 0 is out of range; allowed: at least 1"):
        run(str(trained), "--count", "0")
    with pytest.raises(Refusal, match="--seed -1 is out of range; allowed: at least 0"):
        run(str(trained), "--seed", "-1")
    with pytest.raises(Refusal, match=r"is a run of Reconstruction, which draws no samples"):
        run(str(left_by(tmp_path / "pca", "pca_autoencoder")))
    for path in (trained / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(Refusal, match="has no whole checkpoint yet; go on with lab run_dir="):
        run(str(trained))


def test_another_model_than_the_checkpoints_is_refused(trained: Path) -> None:
    config = trained / "config.yaml"
    cfg = OmegaConf.load(config)
    cfg.model.net.hidden = 65
    OmegaConf.save(cfg, config)
    with pytest.raises(Refusal, match="does not fit the run's model"):
        run(str(trained))
    cfg.model.net._target_ = "os.system"
    OmegaConf.save(cfg, config)
    with pytest.raises(Refusal, match=r"its config.yaml names os.system; allowed"):
        run(str(trained))


def test_a_sheet_of_images_has_them_in_order() -> None:
    images = np.arange(5.0).reshape(5, 1, 1) * np.ones((5, 2, 3))
    sheet = tiled(images, 2)
    assert sheet.shape == (3 * 3 - 1, 2 * 4 - 1)
    assert sheet[0, 0] == 0
    assert sheet[0, 4] == 1
    assert sheet[6, 2] == 4
    assert np.isnan(sheet[2]).all()
    assert np.isnan(sheet[:, 3]).all()
    assert np.isnan(sheet[6, 4:]).all()
    assert png(images) == png(images)
