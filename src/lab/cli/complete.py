"""What the Tab key offers after `lab <verb>`, where Hydra's completion knows only overrides.

The script that `lab -sc install=bash` prints calls `lab -sc query=bash` with the line typed so far in COMP_LINE and
keeps of the answer what begins with the word under the cursor.
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from lab import compose
from lab.compose.files import experiments
from lab.errors import HOLDS

FLAGS = {
    "list": ("--help",),
    "show": ("--help",),
    "verify": ("--controls", "--seeds", "--jobs", "--set", "--help"),
    "record": ("--index-only", "--check", "--dirty", "--help"),
    "status": ("--failed", "--help"),
    "cancel": ("--help",),
    "compare": ("--by", "--metric", "--html", "--csv", "--report", "--help"),
    "reproduce": ("--run_dir", "--run-dir", "--help"),
    "sample": ("--count", "--seed", "--out", "--help"),
}
"""Verb → its flags."""


def main(argv: list[str]) -> int:
    """Print the words, separated by spaces; a line that cannot be read has none, and says nothing."""
    line = os.environ.get("COMP_LINE", "")
    words = offered(line)
    if words is not None:
        print(" ".join(words))
        return HOLDS
    from lab.cli import run

    said = io.StringIO()
    with contextlib.suppress(Exception, SystemExit), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.redirect_stdout(said):
            run.main(argv)
        print(said.getvalue().rstrip("\n"), *parameters(*_split(line)))
    return HOLDS


def offered(line: str) -> list[str] | None:
    """What could stand where `line` ends, or None where that is an override, which Hydra completes."""
    before, word = _split(line)
    if not before:
        first = [choice for choice in (*FLAGS, "experiment=", "run_dir=") if choice.startswith(word) and choice != word]
        return first or None
    verb, *_ = before
    if verb not in FLAGS:
        return None
    choices: list[str] = list(FLAGS[verb]) if word.startswith("-") else []
    if not word.startswith("-") and (verb == "verify" or (verb == "show" and len(before) == 1)):
        choices = experiments()
    return [choice for choice in choices if choice.startswith(word)]


def parameters(before: list[str], word: str) -> list[str]:
    """`model.net.k=` and so on: what the node that is being typed takes and no file sets; Hydra offers the others."""
    from omegaconf import DictConfig, OmegaConf

    from lab.signature import signature

    place, dot, name = word.partition("=")[0].rpartition(".")
    if not dot or "=" in word:
        return []
    with contextlib.suppress(Exception):  # a line that is half typed may not compose
        node = OmegaConf.select(compose.compose([text for text in before if "=" in text]), place)
        if isinstance(node, DictConfig) and "_target_" in node:
            taken = signature(str(node["_target_"])).parameters
            return [f"{place}.{other}=" for other in taken if other not in node and other.startswith(name)]
    return []


def _split(line: str) -> tuple[list[str], str]:
    """(the words after `lab` or `python -m lab`, the word that is being typed), which is empty after a space."""
    words = line.split()
    word = words.pop() if words and not line[-1].isspace() else ""
    called = next((i for i, w in enumerate(words) if Path(w).name == "lab"), 0)
    return words[called + 1 :], word
