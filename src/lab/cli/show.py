"""`lab show <name>`: an experiment's theory page, its claims, its controls and the composed config."""

from __future__ import annotations

import ast
import sys
from typing import Any

from lab.cli.arguments import Arguments
from lab.cli.catalogue import Entry, entry, heading
from lab.signature import attribute, docstring


def main(argv: list[str]) -> int:
    """Print all there is to read about one experiment."""
    arguments = Arguments("show", "The theory page of an experiment, its claims, its controls and the composed config.")
    arguments.add_argument("name", help="an experiment, as `lab list` names it")
    found = entry(arguments.parse_args(argv).name)

    from omegaconf import OmegaConf

    from lab.compose import compose

    cfg = compose([f"experiment={found.name}"])
    page = found.page.read_text(encoding="utf-8") if found.page else f"# {found.title}\n\nNo theory page yet.\n"
    config = OmegaConf.to_yaml(cfg)
    sections = [
        page.rstrip(),
        f"## Claims of {found.name} (chapter {heading(found.chapter)})",
        *(_claim(found, name) for name in found.claims),
        "## Controls",
        *(_control(name, control) for name, control in found.controls.items()),
        f"## Config of `lab experiment={found.name}`",
        f"```yaml\n{config.rstrip()}\n```",
    ]
    text = "\n\n".join(sections)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))
    else:
        print(text)
    return 0


def _claim(found: Entry, name: str) -> str:
    """One claim: its statement, where it is from, what is allowed and why, and its derivation."""
    target = found.claims[name]
    body = docstring(target).partition("\n")[2].strip()
    lines = [f"### {name}", f"**{found.statement(name)}**", f"- relation: {relation(attribute(target, 'relation'))}"]
    if reference := attribute(target, "reference"):
        lines.append(f"- reference: {reference}")
    text = lines[0] + "\n\n" + lines[1] + "\n\n" + "\n".join(lines[2:])
    return f"{text}\n\n{body}" if body else text


def relation(source: str) -> str:
    """`equal("why", rtol=1e-3)` in words: `equal, rtol=0.001, because why`; source that says more stays as it is."""
    if not source:
        return "as its class says"
    node = ast.parse(source, mode="eval").body
    match node:
        case ast.Call(func=ast.Name(id=kind), args=[ast.Constant(value=str() as because)], keywords=options):
            numbers = [f"{option.arg}={ast.unparse(option.value)}" for option in options]
            return ", ".join([kind.replace("_", " "), *numbers]) + f"; {because}"
    return source


def _control(name: str, control: dict[str, Any]) -> str:
    overrides = " ".join(control.get("overrides", []))
    refutes = ", ".join(control.get("refutes", []))
    return f"### {name}\n\n`{overrides}` must refute {refutes}: {control.get('because', '')}"
