"""A verb's arguments, read so that a mistake is one line like every other refusal."""

from __future__ import annotations

import argparse
from typing import NoReturn

from lab.errors import Refusal, nearest


class Arguments(argparse.ArgumentParser):
    """An argument parser for `lab <verb>`: its errors are refusals, its description is shown as it is written."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(
            prog=f"lab {verb}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.verb = verb

    def error(self, message: str) -> NoReturn:
        """Refuse, with the nearest flag where one was misspelt."""
        flags = [name for action in self._actions for name in action.option_strings]
        unknown = [word for word in message.split() if word.startswith("-") and word.rstrip(":") not in flags]
        close = next((found for word in unknown if (found := nearest(word, flags))), "")
        raise Refusal(f"{self.verb}: {message}{close}; see lab {self.verb} --help")
