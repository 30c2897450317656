"""What Hydra, OmegaConf and the YAML reader raise, said in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import paths
from lab.compose.files import base_keys, options, relative, yaml_refusal
from lab.errors import Refusal, nearest


@contextmanager
def refusals() -> Iterator[None]:
    """Turns what Hydra, OmegaConf and the YAML reader raise into a Refusal of one line."""
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        if line := _line(error):
            raise Refusal(line) from None
        raise


def _line(error: BaseException) -> str:
    """One line for an error of the composition; "" for an error that is none."""
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import (
        InterpolationKeyError,
        InterpolationToMissingValueError,
        MissingMandatoryValue,
        OmegaConfBaseException,
    )
    from yaml import YAMLError

    if isinstance(error, YAMLError):
        return yaml_refusal(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        allowed = list(error.options or options(group))
        return f"{group}={option} does not exist; allowed: {', '.join(allowed)}{nearest(option, allowed)}"
    cause = error.__cause__
    if undone := re.match(r"Could not delete from config. '([^']+)' does not exist", str(error)):
        known = sorted(base_keys())
        close = nearest(undone[1], known)
        return f"~{undone[1]}: there is no such key to take out; at the top there are {', '.join(known)}{close}"
    if unchosen := re.match(r"You must specify '([^']+)'", str(error)):
        group = unchosen[1]
        return (
            f"{group}=??? is missing: the defaults of the experiment choose one with '- override /{group}: <name>'; "
            f"allowed: {', '.join(options(group))}"
        )
    if isinstance(error, UnicodeDecodeError):
        return f"{relative(_undecodable())} is not UTF-8 text: {error.reason} at byte {error.start}"
    if isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException | YAMLError):
        return _line(cause) or _flat(error)
    if isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
        said = str(error).partition("Missing mandatory value: ")[2].split()
        return f"{said[0] if said else error.full_key}=??? is missing: the experiment or the command line must set it"
    if isinstance(error, InterpolationKeyError):
        return _dangling(error)
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {_flat(error)}" if error.full_key else _flat(error)
    return _flat(error) if isinstance(error, HydraException) else ""


def _undecodable() -> Path:
    """The first configuration file that is not UTF-8: the decoder's own error does not name it."""
    for path in sorted(paths.CONF.rglob("*.yaml")):
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return path
    return paths.CONF


def _flat(error: BaseException) -> str:
    """The message without OmegaConf's indented appendix, on one line."""
    lines = [
        line for line in str(error).splitlines() if not re.match(r"\s+(full_key|object_type|reference_type)", line)
    ]
    return " ".join(" ".join(lines).split())


def _dangling(error: Any) -> str:
    """What refers to a key that is not there, with the nearest that is."""
    from omegaconf import OmegaConf

    wanted = re.search(r"'([^']+)' not found", str(error))
    root = error.parent_node._get_root() if error.parent_node is not None else None
    if wanted is None or root is None:
        return f"{error.full_key}: {_flat(error)}"
    keys = list(_keys(OmegaConf.to_container(root, resolve=False)))
    return f"{error.full_key} refers to {wanted[1]}, which is not there{nearest(wanted[1], keys)}"


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of nested mappings."""
    for name, child in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{name}"
        yield from _keys(child, f"{prefix}{name}.")
