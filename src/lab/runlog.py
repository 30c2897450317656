"""Where a run's lines go: to the terminal, and to run.log. Imports nothing heavy."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from lab.errors import Refusal

log = logging.getLogger("lab")


class _AboveTheBar(logging.Handler):
    """Lines on standard error that do not tear the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _RunLog(logging.FileHandler):
    """A full disk is said by whom it stops, in one line, not in a traceback for every line that finds no room."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def logging_to(path: Path, rank: int) -> Iterator[None]:
    """The lab's lines to the terminal and run.log; Lightning's and warnings to run.log alone."""
    file = _RunLog(path if rank == 0 else os.devnull)
    file.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    loggers = [
        logging.getLogger(name) for name in ("lab", "lightning", "lightning.pytorch", "lightning.fabric", "py.warnings")
    ]
    before = [(logger, logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers[:], logger.propagate = [file], False
    log.setLevel(logging.INFO)
    if rank == 0:
        log.addHandler(_AboveTheBar())
    logging.captureWarnings(True)
    try:
        yield
    except Refusal as refusal:
        log.handlers[:] = [file]
        log.error("refused: %s", refusal)
        raise
    except Exception:
        log.handlers[:] = [file]
        log.exception("the run crashed")
        raise
    finally:
        logging.captureWarnings(False)
        for logger, handlers, propagate, level in before:
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)
        file.close()
