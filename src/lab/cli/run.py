"""`lab experiment=<name> [key=value ...]`: compose, check, launch; with Hydra's own flags, through Hydra."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import compose, paths
from lab.compose.overrides import parse, rewrite, verbatim
from lab.compose.refusals import refusals
from lab.errors import HOLDS, Refusal, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from omegaconf import DictConfig

_SHORT = {
    "-c": "--cfg",
    "-p": "--package",
    "-r": "--run",
    "-m": "--multirun",
    "-sc": "--shell-completion",
    "-cp": "--config-path",
    "-cn": "--config-name",
    "-cd": "--config-dir",
    "-i": "--info",
}
_VALUED = ("--cfg", "--package", "--config-path", "--config-name", "--config-dir", "--experimental-rerun")
_PLAIN = ("--run", "--multirun", "--shell-completion", "--resolve", "--hydra-help", "--version")
_CHOICES = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
_ELSEWHERE = ("--config-path", "--config-name", "--config-dir", "--experimental-rerun")
"""Flags after which the composition is not the lab's own, so that only Hydra can read it."""


def main(argv: list[str]) -> int:
    """Run what the arguments describe; returns the exit code."""
    flags, overrides = split(argv)
    overrides = [verbatim(text) for text in overrides]
    flags.pop("--run", None)
    if "--version" in flags:
        from hydra import __version__ as hydra_version

        from lab import __version__

        print(f"lab {__version__}, Hydra {hydra_version}")
        return HOLDS
    if flags.keys() == {"--multirun"}:
        from lab.cli.sweep import main as sweep

        return sweep(overrides)
    return _with_hydra(flags, overrides) if flags else _run(overrides)


def split(argv: Sequence[str]) -> tuple[dict[str, str | None], list[str]]:
    """(Hydra's flags with their values, overrides); refuses flags that do not exist."""
    flags: dict[str, str | None] = {}
    overrides: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            overrides.append(word)
            continue
        name, given, value = word.partition("=")
        name = _SHORT.get(name, name)
        if name in _PLAIN:
            if given:
                raise Refusal(f"{word} is not allowed: {name} takes no value")
            flags[name] = None
        elif name == "--info":
            flags[name] = value if given else rest.pop(0) if rest and rest[0] in _CHOICES[name] else "all"
        elif name in _VALUED:
            if not given and not rest:
                raise Refusal(f"{word} needs a value")
            flags[name] = value if given else rest.pop(0)
        else:
            known = [*_VALUED, *_PLAIN, "--info", "--help"]
            raise Refusal(f"{word} is not a flag of the lab or of Hydra{nearest(name, known)}; see lab --help")
        found, allowed = flags[name], _CHOICES.get(name, ())
        if found is not None and allowed and found not in allowed:
            raise Refusal(f"{name} {found} is not allowed: one of {', '.join(allowed)}{nearest(found, allowed)}")
    return flags, overrides


def _run(overrides: list[str]) -> int:
    _refuse_ignored(overrides)
    frozen = _frozen(overrides)
    cfg = compose.compose(overrides) if frozen is None else frozen
    from lab import check

    check.check(cfg)  # a frozen config too: it may be torn, of another version, or of another machine
    from lab.launch import launch

    return launch(cfg, overrides)


def _refuse_ignored(overrides: list[str]) -> None:
    """Refuse what would silently change nothing in a single run."""
    for override in map(parse, overrides):
        key = override.key_or_group
        if key == "hydra.run.dir":
            raise Refusal(f"{override.input_line} changes nothing: run_dir=<path> chooses where a run is written")
        if key == "sweep" or key.partition(".")[0].partition("/")[0] == "hydra":
            raise Refusal(f"{override.input_line} changes nothing in a single run: it is for a sweep, which -m starts")


def _frozen(overrides: list[str]) -> DictConfig | None:
    """The config of the run that a lone `run_dir=<path>` continues; None where the overrides describe a run."""
    values = {override.key_or_group: override.value() for override in map(parse, overrides)}
    if "run_dir" not in values or "experiment" in values:
        return None
    from lab.rundir import RunDir

    path = Path(str(values["run_dir"]))
    run = RunDir(path)
    if not run.exists:
        raise Refusal(f"run_dir={path} holds no run to continue; say experiment=<name> to start one there")
    if len(overrides) > 1:
        other = next(text for text in overrides if not text.lstrip("+").startswith("run_dir="))
        raise Refusal(f"{other}: the run in run_dir={path} goes on with its frozen config, which takes no overrides")
    cfg = run.read_config()
    cfg.run_dir = str(path)
    return cfg


def _with_hydra(flags: dict[str, str | None], overrides: list[str]) -> int:
    """Let Hydra do what its flags ask; our own composition comes first, to say mistakes in one line."""
    elsewhere = flags.keys() & set(_ELSEWHERE)
    if "--multirun" in flags and elsewhere:
        raise Refusal(f"{min(elsewhere)} is not allowed with -m: a sweep is of the lab's own configuration")
    if not elsewhere and not flags.keys() & {"--hydra-help", "--shell-completion"}:
        cfg = compose.compose(overrides)
        if "--cfg" in flags:
            from lab import check

            check.check_config(cfg)
    if "--shell-completion" not in flags and overrides:
        overrides = rewrite(overrides)
    words = [word for flag, value in flags.items() for word in (flag, value) if word is not None]
    codes: list[int] = []
    with _hydra_argv([*words, *overrides]), refusals():
        _hydra_main(codes)()
    return max(codes, default=HOLDS)


def _hydra_main(codes: list[int]) -> Any:
    """Hydra's entry point; a run of it appends its exit code."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    @hydra.main(version_base="1.3", config_path=str(paths.CONF.absolute()), config_name="config")
    def job(cfg: DictConfig) -> None:
        from lab import check
        from lab.launch import launch

        mine = HydraConfig.get()
        overrides = [str(override).lstrip("+") for override in mine.overrides.task]
        compose.require_name(cfg, str(mine.runtime.choices["experiment"]))
        check.check(cfg)
        codes.append(launch(cfg, overrides))

    return job


@contextmanager
def _hydra_argv(words: list[str]) -> Iterator[None]:
    """Hydra reads sys.argv; with HYDRA_FULL_ERROR it raises what it would otherwise print over many lines."""
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [before[0], *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR")
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full
