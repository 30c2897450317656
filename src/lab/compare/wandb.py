"""Runs as wandb kept them: offline files, read by wandb's own viewer, and projects on a server."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from lab.compare.load import Claim, Curve, Loaded, claim, number, printable
from lab.errors import Refusal
from lab.rundir import flat
from lab.sweep.results import State
from lab.wandb_server import STEP, TIMEOUT, connect, one_line

READING = 120
"""Seconds that wandb's viewer may take for one file."""
SAMPLES = 1000
"""Points of a curve that the server sends."""
MOST_RUNS = 1000
"""Of a project: more are a mistake in the filters."""


def offline(path: Path) -> Loaded:
    """The run in a `.wandb` file, as far as the file is whole."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    try:
        read = subprocess.run(
            command,
            env=os.environ | {"WANDB_ERROR_REPORTING": "false"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=READING,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refusal(f"{path} cannot be read by wandb's viewer: {one_line(error)}") from None
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    ended: dict[str, Any] | None = None
    for line in read.stdout.splitlines():
        record = _json(line)
        match record.get("type"):
            case "run":
                about = _mapping(record, "run")
                config |= _mapping(_mapping(about, "config"), "update")
            case "config":
                config |= _mapping(_mapping(record, "config"), "update")
            case "summary":
                summary |= _mapping(_mapping(record, "summary"), "update")
            case "history":
                history.append(_mapping(_mapping(record, "history"), "item"))
            case "exit":
                ended = _mapping(record, "exit")
    said = read.stderr.strip().removeprefix("wandb leet inspect: ").removeprefix("Error: ")
    if not about:
        raise Refusal(f"{path} is torn or not a file of wandb's: {printable(said) or 'it holds no run'}")
    code = None if ended is None else ended.get("exit_code", 0)
    state: State = "done" if code == 0 else "failed"
    reason = "" if code == 0 else f"exit code {code}" if ended is not None else said or "it has no end"
    return loaded(
        str(about.get("display_name") or about.get("run_id") or path.stem),
        path,
        config,
        summary,
        history,
        state=state,
        reason=reason,
        id_=str(about.get("run_id", "")),
    )


def online(address: str) -> list[Loaded]:
    """The runs of wandb://entity/project[?filters] on the server that wandb is logged in to."""
    entity, project, filters = parse(address)
    api = open_api(address)
    import wandb

    path = f"{entity}/{project}"
    try:
        found = api.runs(path, filters=filters, per_page=50, lazy=False)
        count = len(found)
        if count > MOST_RUNS:
            raise Refusal(f"{address} has {count} runs; at most {MOST_RUNS} are compared: add filters")
        runs = [_online_run(run) for run in found]
    except (wandb.Error, ValueError, OSError) as error:
        raise Refusal(f"{address} cannot be read: {one_line(error)}") from None
    if not runs:
        raise Refusal(f"{address} has no run{' that the filters let through' if filters else ''}")
    return runs


def parse(address: str) -> tuple[str, str, dict[str, Any]]:
    """(entity, project, filters): `?state=finished&config.seed=0`, or a JSON object with MongoDB's operators."""
    place, _, query = address.partition("?")
    match = re.fullmatch(r"wandb://([\w.-]+)/([\w.-]+)/?", place)
    if not match:
        raise Refusal(f"{address} is no address: write wandb://entity/project[?filters]")
    filters: Any
    if query.lstrip().startswith("{"):
        try:
            filters = json.loads(query)
        except ValueError as error:
            raise Refusal(f"{address}: the filters are not JSON: {error}") from None
    else:
        pairs = parse_qsl(query, keep_blank_values=True)
        if query and not all(re.match(r"[^=]+=", part) for part in query.split("&")):
            raise Refusal(f"{address}: filters are key=value joined by &, or a JSON object")
        filters = {key: _value(text) for key, text in pairs}
    return match[1], match[2], filters


def open_api(address: str) -> Any:
    """wandb's Api, which asks nothing; a Refusal offline, without a key, or where no server answers in time."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True, console="off")).settings
    url = str(settings.base_url)
    if settings.mode not in ("online", "run", "shared"):
        where = "WANDB_MODE" if os.environ.get("WANDB_MODE") else "mode, in wandb's settings file,"
        raise Refusal(
            f"{address}: {where} is {settings.mode}, so no server is asked: set WANDB_MODE=online, and WANDB_API_KEY "
            f"where wandb login has stored no key for {url}"
        )
    try:
        if not wandb.login(verify=False, prompt=False):
            raise Refusal(f"{address}: no key for {url} is configured: wandb login sets one, or WANDB_API_KEY")
        connect(url)
        return wandb.Api(timeout=TIMEOUT)
    except OSError as error:
        raise Refusal(f"{address}: {url} cannot be reached ({one_line(error)})") from None
    except wandb.Error as error:
        raise Refusal(f"{address}: {url} does not answer or refuses the key ({one_line(error)})") from None


def _online_run(run: Any) -> Loaded:
    states: dict[str, State] = {"finished": "done", "running": "running", "pending": "waiting"}
    state = states.get(run.state, "failed")
    return loaded(
        str(run.name or run.id),
        str(run.url),
        dict(run.config),
        dict(run.summary_metrics),
        run.history(samples=SAMPLES, pandas=False),
        state=state,
        reason="" if state != "failed" else str(run.state),
        id_=str(run.id),
    )


def loaded(
    name: str,
    source: Path | str,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    history: Iterable[Mapping[str, Any]],
    *,
    state: State,
    reason: str,
    id_: str,
) -> Loaded:
    """A run from wandb's three tables, none of which needs to stem from the lab."""
    numbers = flat(dict(summary))
    return Loaded(
        printable(name),
        source,
        state,
        {printable(key): _shown(value) for key, value in flat(dict(config)).items() if _is_config(key)},
        claims=tuple(_claims(numbers)),
        curves=_curves(history),
        seconds=number(numbers.get("_runtime")),
        reason=printable(reason),
        id=printable(id_),
    )


def _claims(summary: Mapping[str, Any]) -> Iterable[Claim]:
    records: dict[str, dict[str, Any]] = {}
    for key, value in summary.items():
        if match := re.fullmatch(r"claim/(.+)/(predicted|measured|standard_error|tolerance|relation|holds)", key):
            records.setdefault(match[1], {})[match[2]] = value
    return (claim(name, record) for name, record in records.items() if "holds" in record)


def _curves(history: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for row in history:
        step = number(row.get(STEP, row.get("_step")))
        for key, value in row.items():
            if (
                _is_number(value)
                and not key.startswith("_")
                and key != STEP
                and f"{key.partition('.')[0]}._type" not in row
            ):
                steps, values = curves.setdefault(printable(key), ([], []))
                steps.append(step)
                values.append(number(value))
    return {name: curve for name, curve in curves.items() if all(map(math.isfinite, curve[0]))}


def _is_number(value: Any) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or value in ("NaN", "Infinity", "-Infinity")


def _is_config(key: str) -> bool:
    return bool(key) and key.partition(".")[0] != "_wandb"


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _json(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _mapping(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = record.get(key)
    return found if isinstance(found, dict) else {}
