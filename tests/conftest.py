"""What tests of several modules use."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lab import paths


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ that the test may spoil."""
    copy = tmp_path / "conf"
    shutil.copytree(paths.CONF, copy)
    monkeypatch.setattr(paths, "CONF", copy)
    return copy
