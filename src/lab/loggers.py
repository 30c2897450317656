"""Where metrics go: a local file always, wandb when it can."""

from __future__ import annotations

import csv
import io
import logging
import netrc
import os
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers.logger import Logger

from lab.rundir import write_atomically
from lab.types import Positive

log = logging.getLogger("lab")


class MetricsFile(Logger):
    """`metrics.csv`: one row per logged step. Rows past the step a run resumes from are dropped, so no step stands
    twice."""

    def __init__(self, path: Path, resumed_at: int = 0) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = []
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
        writer = csv.writer(self._file)
        if not self._columns:
            self._columns = list(metrics)
            writer.writerow(["step", *self._columns])
        writer.writerow([step, *(repr(metrics[name]) for name in self._columns)])

    def save(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def finalize(self, status: str) -> None:
        self.save()

    def _keep_before(self, step: int) -> None:
        with self.path.open(newline="") as file:
            rows = list(csv.reader(file))
        header = rows[0] if rows else []
        whole = [row for row in rows[1:] if len(row) == len(header) and int(row[0]) < step]
        self._columns = header[1:] if whole else []
        text = io.StringIO(newline="")
        csv.writer(text).writerows([header, *whole] if whole else [])
        write_atomically(self.path, text.getvalue())


class Wandb(Logger):
    """wandb's own client, kept off the training loop and never in its way.

    Every call to wandb runs on one background thread, in order: training waits neither for its start-up nor for a
    server that does not answer, and survives the death of its service. Online when a key is configured and the server
    is reached, offline otherwise; `WANDB_MODE` decides when it is set. Curves are plotted over `trainer/global_step`.

    Args:
        id: of the run; stable, so that a resumed run continues.
        save_dir: where wandb keeps its files.
        project, entity, group, name, notes, tags: as in `wandb.init`.
        patience: seconds to wait at the end for what is not yet uploaded; it stays on disk for `wandb sync`.
    """

    def __init__(
        self,
        id: str | None = None,  # noqa: A002 - wandb's own name
        save_dir: str = ".",
        project: str = "lab",
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
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
        self._dead = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="wandb")
        self._submit(self._start)

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str | None:
        run_id: str | None = self._about["id"]
        return run_id

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._submit(lambda: self._run.config.update(dict(params), allow_val_change=True))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._submit(lambda: self._run.log({**metrics, "trainer/global_step": step}))

    def log_verdict(self, summary: Mapping[str, Any], figure: Path, step: int) -> None:
        """`claim/<name>/…` into the summary and the figure as an image."""

        def write() -> None:
            import wandb

            self._run.log({"figure": wandb.Image(str(figure)), "trainer/global_step": step})
            self._run.summary.update(dict(summary))

        self._submit(write)

    def finish(self, exit_code: int) -> None:
        """End the wandb run; waits a little longer than `patience` for it at most."""
        try:
            self._submit(lambda: self._run.finish(exit_code=exit_code)).result(timeout=self.patience + 5)
        except NotYet:
            self._dead = True
            log.warning(
                "wandb did not finish in %.0f s; sync it later with: wandb sync %s/*run-*", self.patience, self.folder
            )
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _submit(self, call: Callable[[], Any]) -> Future[None]:
        def guarded() -> None:
            if self._dead:
                return
            try:
                call()
            except Exception as error:  # whatever goes wrong in wandb, training goes on
                self._dead = True
                log.warning("wandb stopped (%s); training goes on, metrics.csv has everything", _one_line(error))

        return self._thread.submit(guarded)

    def _start(self) -> None:
        import wandb

        mode: Any
        mode, why = _mode(wandb)
        settings = wandb.Settings(init_timeout=30.0, finish_timeout=self.patience, console="off", silent=True)
        try:
            self._run = wandb.init(**self._about, mode=mode, resume="allow", settings=settings)
        except wandb.Error as error:
            if mode != "online":
                raise
            mode, why = "offline", f"the server did not take the run ({_one_line(error)})"
            wandb.teardown()
            self._run = wandb.init(**self._about, mode=mode, settings=settings)
        self._run.define_metric("trainer/global_step")
        self._run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        if mode == "online":
            log.info("wandb: online, %s", self._run.url)
        elif mode == "offline":
            log.info("wandb: offline, %s; sync later with: wandb sync %s", why, Path(self._run.dir).parent)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def _mode(wandb: Any) -> tuple[Any, str]:
    """(mode, why): online needs a key and a server that takes connections."""
    if chosen := os.environ.get("WANDB_MODE"):
        return chosen, f"WANDB_MODE={chosen}"
    url = str(wandb.setup().settings.base_url)
    host = urlsplit(url)
    if not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or _in_netrc(host.netloc)):
        return "offline", "no key is configured (wandb login sets one)"
    try:
        socket.create_connection((host.hostname or "", host.port or (443 if host.scheme == "https" else 80)), 3).close()
    except OSError as error:
        return "offline", f"{url} cannot be reached ({error})"
    return "online", ""


def _in_netrc(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
