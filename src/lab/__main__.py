"""`python -m lab` and the console script `lab`: a verb does that, anything else composes and runs an experiment."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from lab.errors import REFUSED, Refusal, nearest
from lab.processes import open_standard_streams

VERBS = ("list", "show", "verify", "record", "status", "cancel", "compare", "reproduce", "sample")


def main() -> None:
    """Run the command line and exit: 0 all claims hold, 1 crash, 2 refused, 3 a claim was refuted."""
    open_standard_streams()
    try:
        code = dispatch(sys.argv[1:])
        sys.stdout.flush()
    except Refusal as refusal:
        print(f"lab: {' '.join(str(refusal).split())}", file=sys.stderr)
        code = REFUSED
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def dispatch(argv: Sequence[str]) -> int:
    """Hand the arguments to the verb they begin with, or to a run; nothing heavy is imported before that is known."""
    first = argv[0] if argv else "--help"
    if first in VERBS:
        return _main_of(first, argv[1:])
    if first in ("-sc", "--shell-completion") and argv[1:2] and argv[1].startswith("query="):
        return _main_of("complete", argv)
    if not argv or {"-h", "--help"} & set(argv):
        return _main_of("help", argv)
    if first.lstrip("-") in VERBS:
        raise Refusal(f"{first} is not a flag, did you mean '{first.lstrip('-')}'?; see lab --help")
    if "=" not in first and first[0] not in "-+~":
        from lab.compose.files import experiments

        words = [*VERBS, *(f"experiment={name}" for name in experiments())]
        close = nearest(first, VERBS) or (
            nearest(f"experiment={first}", words) if nearest(first, experiments()) else ""
        )
        raise Refusal(f"{first} is not a command; allowed: {', '.join(VERBS)} or experiment=<name>{close}")
    return _main_of("run", argv)


def _main_of(module: str, argv: Sequence[str]) -> int:
    code: int = importlib.import_module(f"lab.cli.{module}").main(list(argv))
    return code


if __name__ == "__main__":
    main()
