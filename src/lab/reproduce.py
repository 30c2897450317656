"""A recorded run, run again: what it needs, what agrees with the record, what does not. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lab import compose
from lab.compare.load import Claim, claim, read_verdict
from lab.compose.files import experiments
from lab.compose.refusals import refusals
from lab.errors import Refusal, nearest
from lab.rundir import RunDir

if TYPE_CHECKING:
    from omegaconf import DictConfig

Outcome = Literal["bitwise", "within tolerance", "not reproduced"]
_PACKAGES = ("lab", "torch", "lightning")
"""Whose classes a config from elsewhere may name: making one runs its code."""


@dataclass(frozen=True)
class Line:
    """One thing that was recorded and what it is here."""

    what: str
    agrees: bool | None
    """None where one side does not say."""
    said: str


def config_of(path: Path) -> tuple[DictConfig, list[str]]:
    """(the config to run again, the overrides it came from); a Refusal where the record does not tell."""
    run = RunDir(path)
    if path.exists() and not path.is_dir():
        whole = RunDir(path.parent)
        close = f", did you mean '{path.parent}'?" if whole.exists or whole.finished else ""
        raise Refusal(f"{path} is a file, not a run directory{close}")
    if not path.is_dir():
        beside = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise Refusal(f"{path} is not a run directory{nearest(str(path), beside)}")
    if not run.finished:
        if run.config.exists():
            raise Refusal(f"{path} is not finished: it has no verdict.json; go on with {run.continued}")
        raise Refusal(f"{path} is not a run directory: it has neither config.yaml nor verdict.json")
    record = read_verdict(run.verdict)
    if not run.config.exists():
        return _recorded(path, record)
    from omegaconf import DictConfig, OmegaConf

    with refusals():
        cfg = OmegaConf.load(run.config)
    if not isinstance(cfg, DictConfig) or cfg.get("name") != record["experiment"]:
        raise Refusal(f"{path}: its config.yaml is not that of a run of {record['experiment']}")
    refuse_strangers(path, cfg)
    cfg.id = None
    try:
        overrides = run.overrides.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        overrides = []
    return cfg, [text for text in overrides if not text.lstrip("+").startswith(("run_dir=", "id="))]


def _recorded(path: Path, record: dict[str, Any]) -> tuple[DictConfig, list[str]]:
    """Of what `lab record` kept: the experiment's own config with the recorded seed and number of processes."""
    name, provenance = record["experiment"], record["provenance"]
    known = experiments()
    if name not in known:
        raise Refusal(f"{path} is a run of {name}, which is no experiment here{nearest(name, known)}")
    seed, ranks = provenance.get("seed"), provenance.get("world_size")
    if not isinstance(seed, int) or not isinstance(ranks, int):
        raise Refusal(f"{path / 'verdict.json'} does not say with which seed and on how many devices the run was made")
    device = str(provenance.get("device", "")).partition(":")[0]
    overrides = [f"experiment={name}", f"seed={seed}", f"trainer.devices={ranks}"]
    overrides += ["trainer.accelerator=cpu"] if device == "cpu" else []
    return compose.compose(overrides), overrides


def refuse_strangers(path: Path, cfg: DictConfig) -> None:
    """Refuse the frozen config of the run in `path` where it names classes of packages that are not known."""
    from omegaconf import OmegaConf

    _refuse_strangers(path, OmegaConf.to_container(cfg))


def _refuse_strangers(path: Path, node: Any) -> None:
    if isinstance(node, dict):
        target = node.get("_target_", "lab.")
        if str(target).partition(".")[0] not in _PACKAGES:
            raise Refusal(f"{path}: its config.yaml names {target}; allowed: what {', '.join(_PACKAGES)} define")
        node = list(node.values())
    for item in node if isinstance(node, list) else []:
        _refuse_strangers(path, item)


def same_place(there: Path, here: Path) -> bool:
    """Whether the new run would write into the old one."""
    return here.resolve().is_relative_to(there.resolve())


def may_be_made_in(run: RunDir) -> bool:
    """Whether nothing lies there, or a run that was stopped before its verdict: that goes on, if it is the same one."""
    if run.finished or not run.path.is_dir():
        return not run.finished
    begun = {run.overrides.name}  # written, like hidden files, before there is a run
    return run.exists or all(file.name.startswith(".") or file.name in begun for file in run.path.iterdir())


# ----------------------------------------------------------------------------------------------------------- provenance


def origin(recorded: dict[str, Any], here: dict[str, Any]) -> Iterator[Line]:
    """Commit, changes, versions and hardware, of the record and of the run made now."""
    yield _line("commit", recorded.get("commit"), here.get("commit"))
    changes = {True: "uncommitted changes", False: "no uncommitted changes"}
    dirty = [changes.get(bool(side["dirty"])) if side.get("dirty") is not None else None for side in (recorded, here)]
    if dirty == [changes[True]] * 2:
        yield Line("tree", None, "uncommitted changes both times, which may not be the same")
    else:
        yield _line("tree", *dirty)
    versions = [
        provenance["versions"] if isinstance(provenance.get("versions"), dict) else {}
        for provenance in (recorded, here)
    ]
    for package in dict.fromkeys([*versions[1], *versions[0]]):
        yield _line(package, *(version.get(package) for version in versions))
    for what in ("device", "hardware", "world_size"):
        yield _line(what.replace("_", " "), recorded.get(what), here.get(what))


def _line(what: str, recorded: Any, here: Any) -> Line:
    if recorded is None or here is None:
        said = " and ".join(side for side, value in (("recorded", recorded), ("known here", here)) if value is None)
        other = here if recorded is None else recorded
        return Line(
            what, None, f"not {said}" + (f"; {'here' if recorded is None else 'recorded'} {other}" if other else "")
        )
    if recorded == here:
        return Line(what, True, str(here))
    return Line(what, False, f"recorded {recorded}, here {here}")


# -------------------------------------------------------------------------------------------------------------- outcome


def outcome(there: Path, here: Path) -> tuple[Outcome, list[Line]]:
    """How the run in `here` compares with the one in `there`."""
    recorded, made = (read_verdict(RunDir(path).verdict) for path in (there, here))
    lines = [*_claims(recorded, made), *_curves(RunDir(there), RunDir(here)), *_weights(RunDir(there), RunDir(here))]
    numbers = [[_numbers(entry) for entry in verdict["claims"]] for verdict in (recorded, made)]
    if numbers[0] == numbers[1] and all(line.agrees is not False for line in lines):
        return "bitwise", lines
    held = all(line.agrees is not False for line in lines if line.what.startswith("claim "))
    return ("within tolerance" if held else "not reproduced"), lines


def _claims(recorded: dict[str, Any], made: dict[str, Any]) -> Iterator[Line]:
    old, new = ({c["name"]: c for c in verdict["claims"]} for verdict in (recorded, made))
    for name in dict.fromkeys([*old, *new]):
        if name not in old or name not in new:
            yield Line(f"claim {name}", False, f"only {'here' if name in new else 'in the record'}")
        elif _numbers(old[name]) == _numbers(new[name]):
            allowed = [entry.get("tolerance") for entry in (old[name], new[name])]
            other = f"; allowed {allowed[0]} then, {allowed[1]} now" if allowed[0] != allowed[1] else ""
            yield Line(f"claim {name}", True, f"the same numbers{other}")
        else:
            yield _difference(claim(name, old[name]), claim(name, new[name]))


def _numbers(entry: dict[str, Any]) -> dict[str, Any]:
    """What a run decides of a claim; the words and the tolerance are the code's."""
    return {key: entry.get(key) for key in ("name", "predicted", "measured", "standard_error", "curve")}


def _difference(old: Claim, new: Claim) -> Line:
    """Two outcomes of one claim: as near to each other as the claim lets theory and measurement be.

    A bound of tolerance 0 says nothing about how far two measurements may be apart: there it is the distance to the
    bound.
    """
    room = old.tolerance
    if old.relation != "equal":
        room = max(room, abs(old.predicted - old.measured) + old.tolerance)
    apart = [abs(new.measured - old.measured), abs(new.predicted - old.predicted)]
    finite = all(map(math.isfinite, apart))
    agrees = finite and max(apart) <= room and old.holds == new.holds
    said = f"{max(apart):.3g} apart, {room:.3g} allowed" if finite else "not finite in one of them"
    if old.holds != new.holds:
        said += f"; {'held' if old.holds else 'refuted'} in the record, {'holds' if new.holds else 'refuted'} here"
    return Line(f"claim {old.name}", agrees, said)


def _curves(there: RunDir, here: RunDir) -> Iterator[Line]:
    try:
        same = there.metrics.read_bytes() == here.metrics.read_bytes()
    except OSError:
        yield Line("curves", None, "the record has no metrics.csv")
    else:
        yield Line("curves", same, "the same bytes" if same else "not the same bytes")


def _weights(there: RunDir, here: RunDir) -> Iterator[Line]:
    """The state that the newest checkpoints hold, tensor by tensor, bit by bit."""
    old, new = there.newest_checkpoint()[0], here.newest_checkpoint()[0]
    if old is None or new is None:
        yield Line("weights", None, f"{'the record' if old is None else 'the new run'} has no whole checkpoint")
        return
    import torch

    states = []
    for path in (old, new):
        try:
            checkpoint = torch.load(path, weights_only=True, map_location="cpu")
            state = {name: value for name, value in checkpoint["state_dict"].items() if isinstance(value, torch.Tensor)}
            states.append((checkpoint.get("global_step"), state))
        except Exception as error:  # whatever a file from elsewhere makes the reader raise
            yield Line("weights", None, f"{path} cannot be read: {type(error).__name__}")
            return
    (step, old_state), (new_step, new_state) = states
    if step != new_step:
        yield Line("weights", False, f"of step {step} in the record, of step {new_step} here")
        return
    differing = [
        name for name in old_state.keys() | new_state.keys() if not _same_bits(old_state.get(name), new_state.get(name))
    ]
    if not differing:
        yield Line("weights", True, f"{len(new_state)} tensors of step {step}, bit by bit")
    else:
        yield Line("weights", False, f"{len(differing)} of {len(new_state)} tensors differ in some bit")


def _same_bits(a: Any, b: Any) -> bool:
    """A NaN equals itself; tensors of other types or shapes do not."""
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    import torch

    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) if t.numel() else t.reshape(-1) for t in (a, b)))


def provenance_of(path: Path) -> dict[str, Any]:
    """Where the verdict in a run directory says that it comes from."""
    return dict(read_verdict(RunDir(path).verdict)["provenance"])
