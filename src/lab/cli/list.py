"""`lab list`: every experiment by chapter, with its claims, its controls and when it was last verified here."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from pathlib import Path

from lab import paths
from lab.cli.arguments import Arguments
from lab.cli.catalogue import by_chapter, foreign_override, heading, refuted_by


def main(argv: list[str]) -> int:
    """Print the list."""
    Arguments(
        "list", "Every experiment by chapter: its claims, its controls, when it was last verified here."
    ).parse_args(argv)
    verified = last_verified(paths.OUTPUTS)
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    terminal = sys.stdout.isatty()
    plain = io.StringIO()
    console = Console() if terminal else Console(file=plain, width=10_000)  # a pipe has no width to truncate at
    for chapter, entries in by_chapter().items():
        table = Table(title=f"Chapter {heading(chapter)}", title_justify="left", box=None, pad_edge=False)
        table.add_column("experiment", no_wrap=True)
        table.add_column("claim or control", no_wrap=True)
        table.add_column("what it says", overflow="fold")
        for found in entries:
            last = verified.get(found.name, "never")
            table.add_row(f"[bold]{found.name}[/]", "", f"[bold]{escape(found.title)}[/] (last verified here: {last})")
            for claim in found.claims:
                table.add_row("", claim, escape(found.statement(claim)))
            for control, claims in refuted_by(found.controls):
                table.add_row("", f"control {control}", f"must refute {claims}")
        console.print(table)
        console.print()
    print("\n".join(line.rstrip() for line in plain.getvalue().splitlines()), end="" if terminal else "\n")
    return 0


def last_verified(outputs: Path) -> dict[str, str]:
    """Experiment → when its newest verdict below `outputs` was reached, and which.

    Only runs of the experiment's own config count: none of a control, none with an override that changes what is run.
    """
    newest: dict[str, tuple[float, str]] = {}
    for path in (*outputs.glob("*/*/verdict.json"), *outputs.glob("verify/**/verdict.json")):
        try:
            if _is_control(path.with_name("config.yaml")) or foreign_override(path.with_name("overrides")):
                continue
            record = json.loads(path.read_text(encoding="utf-8"))
            name, holds, when = str(record["experiment"]), bool(record["holds"]), path.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError):
            continue  # half a record verifies nothing
        if when >= newest.get(name, (0.0, ""))[0]:
            newest[name] = when, "holds" if holds else "refuted"
    return {
        name: f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(when))}, {verdict}"
        for name, (when, verdict) in newest.items()
    }


def _is_control(config: Path) -> bool:
    try:
        text = config.read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"^control: (?!null\s*$)\S", text, re.MULTILINE) is not None
