"""A run directory: what one run leaves behind, who may write it, and from where it goes on. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lab.errors import Refusal
from lab.machine import device_kind

MEETING = "LAB_RANKS_MEET_AT"
"""The environment variable that names the file through which the ranks of one start find each other."""
FIGURE = "figure"
"""The name, without suffix, of the picture of theory against measurement in a run directory."""
HEARTBEAT = 2.0
"""Seconds between two signs of life of a lock's owner."""
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}
_KIND = "trainer.accelerator"
_held: set[int] = set()
"""The file descriptors of the locks that this process holds."""
_NOT_THE_RUN = ("run_dir", "id", "objective")
"""Keys that may be others when a run goes on: where it lies, and by which number sweeps compare it."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # the system does not say which file is too much
            error.filename = str(path)
        raise


@contextlib.contextmanager
def refuse_full_disk(path: Path, key: str = "run_dir") -> Iterator[None]:
    """Say a full disk or an unwritable folder, which `key` names, in one line; what was written before it stays."""
    try:
        yield
    except OSError as error:
        where = f"{key}={path}"
        file = error.filename if isinstance(error.filename, str) else ""
        if file and not Path(file).absolute().is_relative_to(path.absolute()):
            where = f"{file}, while running {where}"
        if error.errno in _FULL_DISK:
            raise Refusal(
                f"{where}: no space left ({error.strerror}); what is saved in the run directory stays whole: "
                "free space and run the same command again"
            ) from error
        if error.errno in _UNWRITABLE:
            raise Refusal(f"{where} cannot be written: {error.strerror} ({error.filename})") from error
        raise


class RunDir:
    """The folder of one run.

    `config.yaml` is frozen at the first start and says what the run is; a later start must agree with it.
    `verdict.json` is written last: where it exists the run is finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.overrides = path / "config.yaml", path / "overrides"
        self.verdict, self.log, self.metrics = path / "verdict.json", path / "run.log", path / "metrics.csv"
        self.checkpoints = path / "checkpoints"

    @classmethod
    def choose(cls, cfg: DictConfig, outputs: Path) -> RunDir:
        """The directory that `run_dir` names, or a new one below `outputs`; sets `cfg.id`."""
        if "WANDB_SWEEP_ID" in os.environ:  # wandb's agent waits for the run that it named
            cfg.id = cfg.id or os.environ.get("WANDB_RUN_ID")
        cfg.id = cfg.id or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        if not re.fullmatch(r"\w[\w.-]{0,127}", cfg.id):
            raise Refusal(
                f"id={cfg.id} is not allowed: up to 128 letters, digits, '_', '-', '.', not beginning with '.' or '-'"
            )
        return cls(Path(cfg.run_dir) if cfg.run_dir is not None else outputs / cfg.name / cfg.id)

    def freeze(self, cfg: DictConfig, overrides: list[str]) -> bool:
        """Write the resolved config, or compare with the one that is there. True if the run existed already.

        `trainer.accelerator=auto` is compared as what it means on this machine: SLURM's launcher says it outright, so a
        run may begin there and go on here, or the reverse. Once it was said it stays.
        """
        if not self.exists:
            frozen = OmegaConf.to_container(cfg, resolve=True)
            assert isinstance(frozen, dict)
            write_atomically(self.overrides, "".join(f"{override}\n" for override in overrides))
            write_atomically(self.config, OmegaConf.to_yaml(OmegaConf.create(frozen | {"run_dir": None})))
            return False
        there, here = (flat(OmegaConf.to_container(c, resolve=True)) for c in (self.read_config(), cfg))
        left_open, said = there.get(_KIND, "auto") == "auto", here.get(_KIND, "auto")
        if agreed := device_kind(there.get(_KIND, "auto")) == device_kind(said):
            there[_KIND] = here[_KIND] = said
        absent = object()
        differing = sorted(
            (
                key
                for key in (there | here)
                if key not in _NOT_THE_RUN and there.get(key, absent) != here.get(key, absent)
            ),
            key=lambda key: (key.count("."), key),  # seed before data.seed, which follows it
        )
        if differing:
            key = differing[0]
            more = f" (and {len(differing) - 1} more keys)" if len(differing) > 1 else ""
            raise Refusal(
                f"run_dir={self.path} holds another run: {key} is {there.get(key, 'absent')} there and "
                f"{here.get(key, 'absent')} here{more}; use the overrides of the first start (in "
                f"{self.overrides}) or another run_dir"
            )
        if agreed and left_open and said != "auto":
            config = self.read_config()
            OmegaConf.update(config, _KIND, said, force_add=True)
            write_atomically(self.config, OmegaConf.to_yaml(config))
        return True

    def rank_log(self, rank: int) -> Path:
        """What a rank other than 0, which alone speaks to the terminal, prints."""
        return self.path / f"rank{rank}.log"

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return os.path.lexists(self.config)  # unlike Path.exists it takes a name that is too long for one that is free

    @property
    def continued(self) -> str:
        """The command that goes on with the run, as a shell takes it."""
        return f"lab run_dir={shlex.quote(str(self.path))}"

    def read_config(self) -> DictConfig:
        """The frozen config; a Refusal when it is not whole."""
        try:
            cfg = OmegaConf.load(self.config)
        except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
            raise self._damaged(self.config, " ".join(str(error).split())) from None
        if not isinstance(cfg, DictConfig) or not cfg:
            raise self._damaged(self.config, "it is empty" if not cfg else "it holds no keys")
        if missing := {"name", "run_dir", "id"} - cfg.keys():
            raise self._damaged(self.config, f"it has no {min(missing)}")
        return cfg

    @property
    def finished(self) -> bool:
        return os.path.lexists(self.verdict)

    def read_verdict(self) -> dict[str, Any]:
        """The verdict that was reached, as JSON; a Refusal when it is not whole."""
        from lab.claim import Verdict

        try:
            record: dict[str, Any] = json.loads(self.verdict.read_text(encoding="utf-8"))
            Verdict.from_json(record)
            return record
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._damaged(self.verdict, f"{type(error).__name__}: {error}") from None

    @property
    def has_whole_verdict(self) -> bool:
        """Whether the verdict can be read: it may be gone, or be no verdict any more."""
        try:
            self.read_verdict()
        except Refusal:
            return False
        return True

    def _damaged(self, file: Path, why: str) -> Refusal:
        remedy = {
            self.config: "choose another run_dir, or remove this one",
            self.verdict: "remove the file, and the same command judges the run again from its last checkpoint",
        }
        return Refusal(f"run_dir={self.path}: its {file.name} is not whole ({why}); {remedy[file]}")

    def discard(self, made: Sequence[Path]) -> None:
        """Take away what a first start that was refused has left, with the folders that it made, innermost first."""
        if self.path in made:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            for file in (
                self.config,
                self.overrides,
                self.log,
                self.metrics,
                self.path / ".lock",
                *self.path.glob("rank*.log"),
            ):
                file.unlink(missing_ok=True)
        for folder in made:
            with contextlib.suppress(OSError):  # another run has been started beside
                folder.rmdir()

    def newest_checkpoint(self) -> tuple[Path | None, list[Path]]:
        """(the newest whole checkpoint or None, newer ones that are torn or corrupt).

        A whole one ends with the digest that `sealed` gave it.
        """
        broken: list[Path] = []
        for path in sorted(self.checkpoints.glob("step-*.ckpt"), reverse=True):
            if _is_whole(path):
                return path, broken
            broken.append(path)
        return None, broken

    def is_held(self) -> bool:
        """Whether a process on this machine writes here now."""
        try:
            with (self.path / ".lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @contextlib.contextmanager
    def lock(self, key: str = "run_dir") -> Iterator[int]:
        """Hold the directory as its only writer; yields the lock's file descriptor for children to inherit.

        `key` of the config is the one that chooses the directory.
        The kernel's file lock dies with its last holder, so a dead owner blocks nobody; children that inherit it keep
        it until they have ended too. On file systems that keep such locks per host, an owner on another host is known
        by its heartbeat.
        """
        file = self.path / ".lock"
        fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        _held.add(fd)
        try:
            self._acquire(fd, key)
            for abandoned in (*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")):
                abandoned.unlink(missing_ok=True)  # what an owner that was killed was writing
            owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
            os.ftruncate(fd, 0)
            os.pwrite(fd, owner, 0)
            stop = threading.Event()
            beat = threading.Thread(target=_heartbeat, args=(file, stop), daemon=True)
            beat.start()
            try:
                yield fd
            finally:
                stop.set()
                beat.join()
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, 0)  # an empty file: its owner left in order
        finally:
            _held.discard(fd)
            os.close(fd)

    def _acquire(self, fd: int, key: str) -> None:
        deadline = time.monotonic() + 5
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                owner = _owner(fd)
                gone = not owner or (owner.get("host") == socket.gethostname() and not _alive(owner.get("pid", 0)))
                if not gone or time.monotonic() > deadline:  # the children of an owner that is gone end within moments
                    raise self._refusal(owner, key) from None
                time.sleep(0.05)
        owner = _owner(fd)
        if owner and owner.get("host") != socket.gethostname():
            before = os.fstat(fd).st_mtime_ns
            time.sleep(2.5 * HEARTBEAT)
            if os.fstat(fd).st_mtime_ns != before:
                raise self._refusal(owner, key)

    def _refusal(self, owner: dict[str, Any], key: str) -> Refusal:
        return Refusal(
            f"{key}={self.path} is being written by process {owner.get('pid', 'unknown')} on "
            f"{owner.get('host', 'this host')}; wait for it, stop it, or choose another {key}"
        )


def release_locks(but: int) -> None:
    """In a fork: hold no lock of its parent's but one, so that the others end when it lets go of them."""
    for fd in _held - {but}:
        os.close(fd)
    _held.intersection_update({but})


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    if isinstance(node, dict) and node:
        return {
            k: v
            for key, value in node.items()
            for k, v in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: node}


def sealed(archive: bytes) -> bytes:
    """A zip archive, such as `torch.save` writes, whose comment is the SHA-256 of all that stands before it.

    The archive's own CRC-32 sums leave out its headers and its directory; the comment is at the end of the file, so a
    file cut short fails too. Whatever reads zip archives still reads this one.
    """
    size = hashlib.sha256().digest_size
    body = archive[:-2] + size.to_bytes(2, "little")  # an archive without a comment ends with the comment's length, 0
    return body + hashlib.sha256(body).digest()


def _is_whole(path: Path) -> bool:
    size = hashlib.sha256().digest_size
    try:
        content = memoryview(path.read_bytes())
    except OSError:
        return False
    return len(content) > size and hashlib.sha256(content[:-size]).digest() == content[-size:]


def _owner(fd: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(fd, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0


def _heartbeat(file: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(file)
