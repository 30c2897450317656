"""From the command line's `key=value` to one composed configuration, with every mistake said in one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from lab import paths
from lab.compose.files import check_files, taken_out
from lab.compose.overrides import chooses_group, for_hydra, parse, rewrite, values
from lab.compose.refusals import refusals
from lab.errors import Refusal

if TYPE_CHECKING:
    from omegaconf import DictConfig


def compose(overrides: Sequence[str]) -> DictConfig:
    """The composition of `experiment=… key=value …`, interpolations unresolved; a Refusal where it cannot be made."""
    return compose_with_hydra(overrides)[0]


def compose_with_hydra(overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
    """(the composition, Hydra's own part of it: launcher, sweeper, …)"""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import open_dict

    rewritten = rewrite(overrides)
    for override in map(parse, rewritten):
        if override.key_or_group == "experiment" and not override.is_delete():
            for name in values(override):
                check_files(str(name).removesuffix(".yaml"))
    GlobalHydra.instance().clear()
    with refusals(), initialize_config_dir(str(paths.CONF.absolute()), job_name="lab", version_base="1.3"):
        cfg = hydra_compose("config", rewritten, return_hydra_config=True)
    hydra = cfg.hydra
    with open_dict(cfg):
        del cfg["hydra"]
        for group, name in taken_out(hydra.runtime.choices["experiment"]):
            if name in cfg[group] and cfg[group]._get_node(name)._is_none():
                del cfg[group][name]
    require_name(cfg, hydra.runtime.choices["experiment"])
    return cfg, hydra


def vary(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A copy of a composition with further `key=value` overrides, as composing with them would give.

    Composing again takes 25 times as long. Not for overrides that choose a config group: `chooses_group`.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from omegaconf import flag_override

    varied = deepcopy(cfg)
    with refusals(), flag_override(varied, "struct", True):
        rewritten = [parse(for_hydra(text, parse(text))) for text in overrides]
        ConfigLoaderImpl._apply_overrides_to_config(rewritten, varied)
    return varied


def require_name(cfg: DictConfig, experiment: str) -> None:
    """Refuse a composition whose `name` is not that of its experiment file."""
    name = cfg._get_node("name")
    if name is None or name._value() != experiment:
        found = "missing" if name is None else name._value()
        raise Refusal(f"name={found} must equal the name of its file, conf/experiment/{experiment}.yaml")


def changed(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A composition under more overrides. It is composed again only where they choose other files."""
    if any(map(chooses_group, overrides)):
        return compose([f"experiment={cfg.name}", *overrides])
    return vary(cfg, overrides)


def plain(cfg: DictConfig, *, resolve: bool = True, complete: bool = True) -> dict[str, Any]:
    """`cfg` as plain dictionaries and lists; a missing value or a broken interpolation is a Refusal naming its key.

    Args:
        complete: False leaves `???` where a value is missing.
    """
    from omegaconf import OmegaConf

    with refusals():
        return OmegaConf.to_container(cfg, resolve=resolve, throw_on_missing=complete)  # type: ignore[return-value]


def require(cfg: DictConfig, keys: Iterable[str]) -> None:
    """Refuse where one of these keys is missing or refers to something that is."""
    with refusals():
        for key in keys:
            cfg[key]
