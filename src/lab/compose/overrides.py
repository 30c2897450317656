"""One `key=value` of the command line: read, refused, and rewritten as Hydra takes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lab.compose.files import base_keys, experiments, groups, has_option, is_group, options
from lab.errors import Refusal, nearest, nearest_key

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

FOLDERS = ("run_dir", "hydra.sweep.dir")
"""Keys whose value is taken as it is written."""


def chooses_group(text: str) -> bool:
    """Whether an override changes which files are composed, not only what stands in them."""
    key = parse(text).key_or_group
    return is_group(key) or key == "hydra" or key.startswith(("hydra.", "hydra/"))


def rewrite(overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra takes them: `key=value` becomes `++key=value` unless `key` is a config group.

    So a parameter that is in a signature but not in any YAML file can be set without knowing that; `lab.check` refuses
    those that are in no signature. Refuses what is no override, and options that do not exist.
    """
    parsed = [parse(text) for text in overrides]
    chosen = [o.input_line for o in parsed if o.key_or_group == "experiment" and not o.is_delete()]
    if not chosen:
        raise Refusal(f"no experiment: say experiment=<name>; allowed: {', '.join(experiments())}")
    if len(chosen) > 1:
        raise Refusal(f"{chosen[1]} is not allowed: {chosen[0]} chose an experiment already; a run has one")
    return [for_hydra(text, override) for text, override in zip(overrides, parsed, strict=True)]


def parse(text: str) -> Override:
    """One override as Hydra reads it; a Refusal where it is none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if text.startswith("-"):
        raise Refusal(f"{text} is not a flag of the lab or of Hydra: see lab --help")
    if "=" not in text and not text.startswith("~"):
        close = nearest(f"experiment={text}", [f"experiment={name}" for name in experiments()])
        raise Refusal(f"{text} is not an override: write key=value{close if nearest(text, experiments()) else ''}")
    if text.startswith("="):
        raise Refusal(f"{text} is not an override: write key=value, without a space before '='")
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        problem = str(error).partition(" expecting {")[0]
        close = nearest_key(text.partition("=")[0].lstrip("+~"), base_keys())
        raise Refusal(f"{text} is not an override Hydra can read: {' '.join(problem.split())}{close}") from None


def verbatim(text: str) -> str:
    """An override, quoted for Hydra where it names a folder in a way that Hydra would not read as that name.

    A sweep's runs lie in folders such as `k=4,seed=0`. What is quoted or escaped already, and `null`, stays.
    """
    from hydra.core.override_parser.types import Quote, QuotedString

    key, _, value = text.partition("=")
    if key.lstrip("+") not in FOLDERS or not value or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return text
    try:
        read = parse(text).value()
    except Refusal:
        read = False
    if read is None or (isinstance(read, str) and (read == value or "\\" in value)):
        return text
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def for_hydra(text: str, override: Override) -> str:
    """One parsed override as Hydra takes it: see `rewrite`."""
    from hydra.core.override_parser.types import OverrideType

    key = override.key_or_group
    if override.is_sweep_override():
        alternative = f", {key}=[{text.partition('=')[2]}] is a list" if "." in key else ""
        raise Refusal(f"{text} has several values: -m runs each of them{alternative}")
    if override.value() == {} and not override.is_delete():
        raise Refusal(f"{text} changes nothing, since mappings are merged; ~{key}.<name> takes out one of its entries")
    chooses = is_group(key)
    if chooses and not override.is_delete():
        _check_option(key, override)
    if "/" in key and not chooses and not key.startswith("hydra/"):
        raise Refusal(f"{text}: there is no config group {key}{nearest(key, groups())}; allowed: {', '.join(groups())}")
    hydra = key == "hydra" or (
        key.startswith(("hydra.", "hydra/")) and not key.startswith(("hydra.launcher.", "hydra.sweeper."))
    )
    if chooses or hydra or override.package is not None or override.type != OverrideType.CHANGE:
        return text
    return f"++{text}"


def _check_option(group: str, override: Override) -> None:
    """Refuse several options, or one without a file, before Hydra merges the ones or says the other on many lines."""
    allowed = options(group)
    if not override.is_discrete_sweep() and isinstance(override.value(), list):
        raise Refusal(f"{override.input_line} is not allowed: a run has one {group}; allowed: {', '.join(allowed)}")
    for value in values(override):
        if isinstance(value, bool | int | float) or (isinstance(value, str) and not has_option(group, value)):
            raise Refusal(
                f"{group}={value} does not exist; allowed: {', '.join(allowed)}{nearest(str(value), allowed)}"
            )
        if value is None and group in ("experiment", "data", "model", "trainer", "logger", "callbacks"):
            raise Refusal(f"{group}=null is not allowed; allowed: {', '.join(allowed)}")


def values(override: Override) -> Iterator[Any]:
    """Each of the values that an override gives: one, those of a list, or those of a sweep."""
    if override.is_discrete_sweep():
        yield from override.sweep_iterator()
        return
    value = override.value()
    yield from value if isinstance(value, list) else [value]
