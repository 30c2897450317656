"""Where metrics go: a local file always, wandb when it can."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import queue
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from lab.rundir import RunDir, write_atomically
from lab.types import NonEmptyStr, Positive
from lab.wandb_server import STEP, TIMEOUT, connect, one_line

log = logging.getLogger("lab")

FLUSH = 1.0
"""Seconds after which a row of metrics.csv is where other processes see it."""
BACKLOG = 100_000
"""Rows that may wait for wandb (some 50 MB); it takes about 5000 a second."""


class MetricsFile(Logger):
    """`metrics.csv`: one row per logged step. Rows past the step a run resumes from are dropped, so no step stands
    twice.

    Rows reach the file together, a second after the first of them: what watches the run (a pruner, `lab compare`) sees
    them however long the next block takes, and a thousand runs on one file system write a thousand times a second at
    most. Before a checkpoint they reach the disk.
    """

    def __init__(self, path: Path, resumed_at: int = 0) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = []
        self._lock = threading.Lock()
        self._due: threading.Timer | None = None
        if path.exists():
            self._keep_before(resumed_at)
        self._file = path.open("a", newline="")

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run directory holds the config."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self._lock:
            writer = csv.writer(self._file)
            if not self._columns:
                self._columns = list(metrics)
                writer.writerow(["step", *self._columns])
            writer.writerow([step, *(repr(metrics[name]) for name in self._columns)])
            if self._due is None:
                self._due = threading.Timer(FLUSH, self._flush)
                self._due.daemon = True
                self._due.start()

    def _flush(self) -> None:
        with self._lock, contextlib.suppress(OSError):  # a full disk is the training loop's to say, at the next save
            self._due = None
            self._file.flush()

    def save(self) -> None:
        with self._lock:
            self._file.flush()
            os.fsync(self._file.fileno())

    def finalize(self, status: str) -> None:
        self.save()

    def _keep_before(self, step: int) -> None:
        header, *rows = list(csv.reader(io.StringIO(self.path.read_text(), newline=""))) or [[]]
        whole = [row for row in rows if len(row) == len(header) and int(row[0]) < step]
        self._columns = header[1:] if whole else []
        text = io.StringIO(newline="")
        csv.writer(text).writerows([header, *whole] if whole else [])
        write_atomically(self.path, text.getvalue())


class Wandb(Logger):
    """wandb's own client, kept off the training loop and never in its way.

    Every call to wandb runs on one background thread, in order: training waits neither for its start-up nor for a
    server that does not answer, and survives the death of its service. Online when a key is configured and the server
    accepts it, offline otherwise; `WANDB_MODE` decides where it says offline or disabled. Nothing is ever asked.

    A row's step in wandb is the optimiser's. A resumed run first logs again what metrics.csv holds, so its curves are
    whole; the rows fall on the equal ones that are there.

    Args:
        id: of the run; stable, so that a resumed run continues.
        save_dir: where wandb keeps its files, in a folder `wandb`.
        project, entity, group, name, notes, tags: as in `wandb.init`.
        patience: seconds to wait for the server to take the run, and at the end for what is not yet uploaded; it stays
            on disk for `wandb sync`. The end of a run waits for wandb a quarter of a minute longer at most.
    """

    def __init__(
        self,
        id: str | None = None,  # noqa: A002 - wandb's own name
        save_dir: str = ".",
        project: NonEmptyStr = "lab",
        entity: NonEmptyStr | None = None,
        group: NonEmptyStr | None = None,
        name: NonEmptyStr | None = None,
        notes: str | None = None,
        tags: list[str] | None = None,
        patience: Positive = 30.0,
    ) -> None:
        super().__init__()
        self.folder, self.patience = Path(save_dir) / "wandb", patience
        self._about: dict[str, Any] = {
            "id": id,
            "dir": save_dir,
            "project": project,
            "entity": entity,
            "group": group,
            "name": name,
            "notes": notes,
            "tags": tags,
        }
        self._run: Any = None
        self._files: Path | None = None
        self._dead = False
        self._left_out = 0
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._done, self._progress = threading.Event(), 0
        metrics = RunDir(Path(save_dir)).metrics
        earlier = metrics.read_text() if metrics.exists() else ""
        self._calls.put(self._start)
        self._calls.put(lambda: self._repeat(earlier))
        # a daemon: a call that never comes back must not keep the process from ending
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)

    def start(self) -> None:
        """Begin the run in wandb; a start that is refused before this leaves no trace there."""
        self._thread.start()

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str | None:
        run_id: str | None = self._about["id"]
        return run_id

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._calls.put(lambda: self._run.config.update(dict(params), allow_val_change=True))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._dead:
            return
        if self._calls.qsize() >= BACKLOG:
            self._left_out += 1
            return
        self._calls.put(lambda: self._run.log({**metrics, STEP: step}, step=step))

    def log_verdict(self, summary: Mapping[str, Any], images: Mapping[str, Path], step: int) -> None:
        """`claim/<name>/…` into the summary, the figure and the pictures as images."""

        def write() -> None:
            import wandb

            self._run.log({name: wandb.Image(str(path)) for name, path in images.items()} | {STEP: step}, step=step)
            self._run.summary.update(dict(summary))

        self._calls.put(write)

    def finalize(self, status: str) -> None:
        """A run that crashed ends here; one that trained to its end has its verdict still to log."""
        if status == "failed":
            self.finish(exit_code=1)

    def finish(self, exit_code: int) -> None:
        """End the wandb run. Waits for what is queued, but for no single call much longer than `patience`."""
        if self._done.is_set() or self._thread.ident is None:
            return
        self._calls.put(lambda: self._finish(exit_code))
        self._calls.put(None)
        longest_call = self.patience + 15
        before = self._progress
        while not self._done.wait(longest_call):
            if self._progress == before:
                self._give_up(f"no answer in {longest_call:.0f} s")
                # takes wandb's own exit handler, which would wait without end, out of the way
                threading.Thread(target=_teardown, daemon=True).start()
                self._done.wait(1)
                break
            before = self._progress
        self._done.set()
        if self._left_out:
            log.warning("wandb could not keep up: %d rows are in metrics.csv alone", self._left_out)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                if not self._dead:
                    call()
            except Exception as error:  # whatever goes wrong in wandb, training goes on
                self._give_up(one_line(error))
            self._progress += 1
        _teardown()
        self._done.set()

    def _give_up(self, why: str) -> None:
        if self._dead:
            return
        self._dead = True
        rest = (
            f"; what wandb has goes up with: wandb sync --include-online {shlex.quote(str(self._files))}"
            if self._files
            else ""
        )
        log.warning("wandb stopped (%s); metrics.csv has everything%s", why, rest)

    def _start(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own telemetry, whose failures it prints
        logging.raiseExceptions = False  # on a full disk each line of wandb's debug log would be a traceback
        import wandb

        # The transaction log is written out every second: a SIGKILL loses the last second only.
        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=self.patience,
            finish_timeout=self.patience,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=1.0,
        )
        mode, why = _mode(wandb, settings)
        try:
            self._run = wandb.init(**self._about | {"mode": mode}, resume="allow", settings=settings)
        except wandb.Error as error:
            if mode != "online":
                raise
            wandb.teardown()
            mode, why = "offline", f"the server did not take the run ({one_line(error)})"
            with _terminal_not_inherited():
                wandb.setup(settings)
            self._run = wandb.init(**self._about | {"mode": mode}, settings=settings)
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP, step_sync=True)
        if mode == "disabled":
            log.info("wandb: disabled, %s", why)
            return
        self._files = files = Path(self._run.dir).parent
        if not files.resolve().is_relative_to(self.folder.resolve()):
            log.warning("wandb: %s cannot be written, its files are in %s", self.folder, files)
        if mode == "offline":
            log.info("wandb: offline, %s; sync later with: wandb sync %s", why, shlex.quote(str(files)))
        else:
            log.info("wandb: %s, %s", mode, self._run.url)

    def _repeat(self, earlier: str) -> None:
        """Log again what metrics.csv holds at a resume: what the killed start had not yet written is in wandb too."""
        for row in csv.DictReader(io.StringIO(earlier, newline="")):
            step = int(row.pop("step"))
            self._run.log({name: float(value) for name, value in row.items()} | {STEP: step}, step=step)
            self._progress += 1

    def _finish(self, exit_code: int) -> None:
        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError:
            self._give_up(f"not everything was uploaded in {self.patience:.0f} s")


def _mode(wandb: Any, settings: Any) -> tuple[str, str]:
    """(mode, why): online needs a key and a server that accepts it. Starts wandb's service."""
    with _terminal_not_inherited():
        found = wandb.setup(settings).settings
    mode = {"dryrun": "offline", "run": "online"}.get(found.mode, found.mode)
    if mode != "online":
        return mode, "as WANDB_MODE or wandb's settings file says"
    try:
        if not wandb.login(verify=False, prompt=False):
            return "offline", "no key is configured (wandb login sets one)"
        connect(str(found.base_url))
        wandb.Api(timeout=TIMEOUT)
    except OSError as error:
        return "offline", f"{found.base_url} cannot be reached ({error})"
    except wandb.Error as error:
        return "offline", f"{found.base_url} does not answer or refuses the key ({one_line(error)})"
    return "online", ""


def _teardown() -> None:
    """End wandb's service, if it was started; raises nothing, not even the SystemExit of a service that died."""
    with contextlib.suppress(Exception, SystemExit):
        import wandb

        wandb.teardown()


@contextlib.contextmanager
def _terminal_not_inherited() -> Iterator[None]:
    """Processes started meanwhile do not get this one's standard output and error.

    wandb's service would write its last words there, and keep a pipe open that the reader waits for when the run was
    killed.
    """
    inherited = [fd for fd in (1, 2) if _is_inheritable(fd)]
    for fd in inherited:
        os.set_inheritable(fd, False)
    try:
        yield
    finally:
        for fd in inherited:
            os.set_inheritable(fd, True)


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False
