"""Which of `sbatch`'s options the lab writes itself, so that nobody gives them twice. Imports nothing heavy."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator

from lab.errors import Refusal

_ITSELF = "the lab writes it itself"
_WRITTEN = {
    "nodes": "set trainer.num_nodes",
    "ntasks": "set trainer.devices",
    "ntasks-per-node": "set trainer.devices",
    "ntasks-per-core": "set trainer.devices",
    "ntasks-per-gpu": "set trainer.devices",
    "ntasks-per-socket": "set trainer.devices",
    "cpus-per-task": "set hydra.launcher.cpus_per_task",
    "cpus-per-gpu": "set hydra.launcher.cpus_per_task",
    "gpus": "set hydra.launcher.gpus_per_node",
    "gpus-per-node": "set hydra.launcher.gpus_per_node",
    "gpus-per-socket": "set hydra.launcher.gpus_per_node",
    "gpus-per-task": "set hydra.launcher.gpus_per_node",
    "array": f"{_ITSELF}; hydra.launcher.max_running limits how many run at a time",
    "output": _ITSELF,
    "error": _ITSELF,
    "open-mode": _ITSELF,
    "chdir": _ITSELF,
    "requeue": _ITSELF,
    "no-requeue": _ITSELF,
    "signal": "set hydra.launcher.signal_seconds",
    **{key: f"set hydra.launcher.{key}" for key in ("partition", "account", "qos", "constraint", "time", "mem")},
}
"""Long option → what to do instead. `job-name` is not here: nothing depends on it."""
_SHORT = {
    "N": "nodes", "n": "ntasks", "c": "cpus-per-task", "G": "gpus", "a": "array", "o": "output", "e": "error",
    "D": "chdir", "p": "partition", "A": "account", "q": "qos", "C": "constraint", "t": "time",
}  # fmt: skip
_RESOURCES = ("gres", "tres-per-node", "tres-per-socket", "tres-per-task")
"""Refused where they ask for what the job's other lines say, allowed for all else that a cluster hands out."""


def refuse_written(options: Iterable[str]) -> None:
    """Refuse an option in `hydra.launcher.options` that stands in the script already: the job would not be the run's.

    Each is a line for `#SBATCH`, which may hold several options, and SLURM takes a long one that is cut short.
    """
    for line in options:
        said = f"hydra.launcher.options: {line!r} is not allowed"
        if not line.startswith("-") or len(line.splitlines()) != 1:
            raise Refusal(f"{said}: an option of sbatch on one line, such as --exclusive")
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise Refusal(f"{said}: {error}") from None
        for name, value in _named(words):
            meant = name if name in _WRITTEN else _meant(name)
            if meant in _WRITTEN:
                raise Refusal(f"{said}: {_WRITTEN[meant]}")
            if name in _RESOURCES and re.search(r"\b(gpu|cpu)\b", value):
                kind = "gpus_per_node" if re.search(r"\bgpu\b", value) else "cpus_per_task"
                raise Refusal(f"{said}: set hydra.launcher.{kind}")


def _named(words: list[str]) -> Iterator[tuple[str, str]]:
    """(option, value) of each word that is one; several flags of one letter may precede a letter that takes a value."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            yield name, value if equals else after
        elif match := re.match(r"-[HIkOQsVWh]*([A-Za-z])", word):
            yield _SHORT.get(match[1], ""), ""


def _meant(name: str) -> str:
    """The option that is cut short to `name`: SLURM refuses one that several could be, so the first is as good."""
    return next((written for written in _WRITTEN if len(name) > 2 and written.startswith(name)), "")
