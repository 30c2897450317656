"""wandb's real client in real runs: without a key or a server, and when server, service or run die."""

from __future__ import annotations

import contextlib
import csv
import http.server
import json
import math
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

KEY = "0123456789abcdef" * 2 + "01234567"
SHORT = ("experiment=pca_autoencoder", "trainer.max_steps=300", "run_dir=r")
TIMEOUT = 180
"""Seconds after which a run counts as stalled, on however busy a machine."""


@dataclass
class Offline:
    """What one `.wandb` file holds."""

    path: Path
    id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None

    def curve(self, name: str) -> list[tuple[int, float]]:
        return [(row["trainer/global_step"], row[name]) for row in self.history if name in row]


def records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: after seven bytes of header, a LevelDB log of `wandb_internal.Record`s.

    The log is in blocks of 32 KiB. A block holds fragments, each with a CRC-32, a length and a type (1 whole, 2 first,
    3 middle, 4 last part of a record), and is padded where fewer than the seven bytes of a fragment's header are left.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, record = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _crc, length, kind = struct.unpack_from("<IHB", data, position)
        position += 7
        if kind == 0 or position + length > len(data):
            return  # the torn end of a run that was killed
        record += data[position : position + length]
        position += length
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


def read(path: Path) -> Offline:
    def items(updates: Any) -> dict[str, Any]:
        return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in updates}

    out = Offline(path)
    for record in records(path):
        match record.WhichOneof("record_type"):
            case "run":
                out.id = record.run.run_id
                out.config |= items(record.run.config.update)
            case "config":
                out.config |= items(record.config.update)
            case "summary":
                out.summary |= items(record.summary.update)
            case "history":
                out.history.append(items(record.history.item))
            case "exit":
                out.exit_code = record.exit.exit_code
    return out


def segments(run: Path, kind: str = "offline-run") -> list[Offline]:
    """What wandb wrote for a run directory, one for each start, oldest first."""
    return [read(path) for path in sorted(run.glob(f"wandb/{kind}-*/run-*.wandb"))]


def metrics(run: Path) -> dict[str, list[tuple[int, float]]]:
    """metrics.csv as the curves it holds."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name != "step"]
    return {name: [(int(row["step"]), float(row[name])) for row in rows] for name in names}


def numbers(run: Path) -> list[Any]:
    """The claims of the verdict, without what the run did not decide (times, versions)."""
    claims: list[Any] = json.loads((run / "verdict.json").read_text())["claims"]
    return claims


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caches")


@pytest.fixture
def environment(tmp_path: Path, caches: Path) -> dict[str, str]:
    """A user who has never seen wandb: nobody's key or setting leaks in."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WANDB", "XDG_")) and name != "NETRC" and "proxy" not in name.lower()
    }
    (tmp_path / "home").mkdir()
    return env | {"HOME": str(tmp_path / "home"), "MPLCONFIGDIR": str(caches)}


Lab = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def lab(tmp_path: Path, environment: dict[str, str]) -> Lab:
    """Runs `python -m lab OVERRIDES` in tmp_path and waits for its end."""

    def run(*overrides: str, env: Mapping[str, str] | None = None, options: tuple[str, ...] = ()) -> Any:
        return subprocess.run(
            [sys.executable, *options, "-m", "lab", *overrides],
            cwd=tmp_path,
            env=environment | dict(env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )

    return run


@contextlib.contextmanager
def started(tmp_path: Path, environment: Mapping[str, str], *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m lab OVERRIDES` in tmp_path, killed at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "lab", *overrides],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    deadline = time.monotonic() + TIMEOUT
    while not (found := condition()):
        assert process is None or process.poll() is None, f"the run ended too early: {process.stderr.read()}"  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def said(run: Path, text: str) -> bool:
    return (run / "run.log").exists() and text in (run / "run.log").read_text()


def service_of(pid: int) -> int:
    """The process of wandb's service that `pid` started."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            text = status.read_text()
            if f"\nPPid:\t{pid}\n" in text and text.startswith("Name:\twandb-core"):
                return int(status.parent.name)
    raise AssertionError("wandb's service does not run")


def wandb_lines(stderr: str) -> list[str]:
    """The lines about wandb, after a look that nothing else is on the terminal than what the lab says."""
    lines = [line for line in re.split(r"[\r\n]+", stderr) if line.strip()]
    strangers = [
        line for line in lines if not re.match(r"wandb: \w+,|wandb stopped|\w+ · seed|step |.*steps/s|resuming", line)
    ]
    assert not strangers, stderr
    return [line for line in lines if line.startswith("wandb")]


class Server(http.server.ThreadingHTTPServer):
    """As much of a W&B server as a client needs to log a run, or one that answers everything with an error."""

    daemon_threads = True

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = status
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, Any]] = []
        self.connections: list[socket.socket] = []
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def die(self) -> None:
        """Stop listening and drop every connection."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed is no news."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows that the client has streamed."""
        chunks = [
            body["files"].get("wandb-history.jsonl", {}).get("content", [])
            for path, body in self.requests
            if path.endswith("/file_stream") and "files" in (body or {})
        ]
        return [json.loads(line) for chunk in chunks for line in chunk]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        self.server.requests.append((self.path, body))
        if self.server.status != 200:
            content: dict[str, Any] = {"errors": [{"message": "an error of the test's"}]}
        else:
            content = self.graphql(body) if self.path == "/graphql" else {"limits": {}}
        text = json.dumps(content).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = answer

    def graphql(self, body: dict[str, Any]) -> dict[str, Any]:
        query, variables = body["query"], body.get("variables") or {}
        if "viewer" in query:
            viewer = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
            return {"data": {"viewer": viewer}}
        if "upsertBucket" in query:
            project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}}
            name = variables["name"]
            bucket = {"id": "b", "name": name, "displayName": name, "config": "{}", "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/upload/{name}"} for name in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
        return {"data": {}}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.die()


@pytest.fixture(scope="module")
def without_wandb(tmp_path_factory: pytest.TempPathFactory, caches: Path) -> Path:
    """A run directory of the short run with logger=none, whose numbers all the others must have."""
    folder = tmp_path_factory.mktemp("none")
    command = [sys.executable, "-X", "importtime", "-m", "lab", *SHORT, "logger=none"]
    env = os.environ | {"MPLCONFIGDIR": str(caches)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 3, done.stderr
    (folder / "imported").write_text(done.stderr)
    return folder / "r"


def assert_as_without(run: Path, without_wandb: Path) -> None:
    assert numbers(run) == numbers(without_wandb)
    assert (run / "metrics.csv").read_text() == (without_wandb / "metrics.csv").read_text()


def assert_complete(segment: Offline, run: Path) -> None:
    """A segment holds all of the run: its curves, its verdict, its figure, its end."""
    for name, curve in metrics(run).items():
        assert segment.curve(name) == curve
    assert all(row["_step"] == row["trainer/global_step"] for row in segment.history)
    for claim in numbers(run):
        for key in ("predicted", "measured", "standard_error", "tolerance", "holds"):
            assert segment.summary[f"claim/{claim['name']}/{key}"] == claim[key]
    figure = next(row for row in segment.history if "figure._type" in row)
    assert figure["figure._type"] == "image-file"
    assert (segment.path.parent / "files" / figure["figure.path"]).read_bytes() == (run / "figure.png").read_bytes()
    assert segment.exit_code == 0


def test_none_imports_no_wandb_and_leaves_no_folder(without_wandb: Path) -> None:
    imported = (without_wandb.parent / "imported").read_text()
    assert re.search(r"\| +torch$", imported, re.MULTILINE)
    assert not re.search(r"\| +wandb(\.|$)", imported, re.MULTILINE)
    assert not (without_wandb / "wandb").exists()


def test_what_compiles_is_not_imported_where_nothing_is_compiled(without_wandb: Path) -> None:
    imported = (without_wandb.parent / "imported").read_text()
    assert re.search(r"\| +torch$", imported, re.MULTILINE)
    assert not re.search(r"\| +(torch\._dynamo|torch\._inductor|sympy)(\.|$)", imported, re.MULTILINE)


def test_no_key_is_offline_and_asks_nothing_even_on_a_terminal(
    tmp_path: Path, environment: dict[str, str], without_wandb: Path
) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lab", *SHORT]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as run:
        os.close(theirs)
        screen = b""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline and select.select([ours], [], [], deadline - time.monotonic())[0]:
            try:
                screen += os.read(ours, 65536)
            except OSError:  # the terminal's last user is gone
                break
        assert run.wait(timeout=TIMEOUT) == 3
    os.close(ours)
    lines = [line for line in screen.decode().splitlines() if "wandb: " in line]
    assert len(lines) == 1, screen.decode()
    (segment,) = segments(tmp_path / "r")
    assert "offline, no key is configured" in lines[0]
    assert f"wandb sync r/wandb/{segment.path.parent.name}" in lines[0]
    assert segment.config["model.net.k"] == 8  # filterable: every leaf of the config stands at the top
    assert segment.config["trainer.max_steps"] == 300
    assert not [name for name, value in segment.config.items() if isinstance(value, dict) and name != "_wandb"]
    assert_as_without(tmp_path / "r", without_wandb)
    assert_complete(segment, tmp_path / "r")


def silent() -> socket.socket:
    """A server that takes connections and never answers."""
    return socket.create_server(("127.0.0.1", 0))


@pytest.mark.parametrize("failure", ["refused", "silent", "500", "401", "invalid key"])
def test_unreachable_server_costs_nothing_but_the_upload(
    tmp_path: Path, lab: Lab, without_wandb: Path, failure: str
) -> None:
    key = "short" if failure == "invalid key" else KEY
    with contextlib.ExitStack() as stack:
        if failure in ("500", "401", "invalid key"):
            server = Server(status=int(failure) if failure.isdigit() else 200)
            stack.callback(server.die)
            url = server.url
        else:
            listener = stack.enter_context(silent())
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            if failure == "refused":
                listener.close()
        done = lab(*SHORT, env={"WANDB_API_KEY": key, "WANDB_BASE_URL": url})
    assert done.returncode == 3
    (line,) = wandb_lines(done.stderr)
    assert line.startswith(f"wandb: offline, {url} ")
    assert ("cannot be reached" in line) == (failure == "refused")
    (segment,) = segments(tmp_path / "r")
    assert line.endswith(f"wandb sync r/wandb/{segment.path.parent.name}")
    assert_as_without(tmp_path / "r", without_wandb)
    assert_complete(segment, tmp_path / "r")


def test_key_in_netrc_goes_online(tmp_path: Path, lab: Lab, without_wandb: Path, server: Server) -> None:
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text(f"machine 127.0.0.1:{server.server_port}\n  login user\n  password {KEY}\n")
    netrc.chmod(0o600)
    done = lab(*SHORT, env={"WANDB_BASE_URL": server.url})
    assert done.returncode == 3
    (line,) = wandb_lines(done.stderr)
    (segment,) = segments(tmp_path / "r", "run")
    assert line == f"wandb: online, {server.url}/me/lab/runs/{segment.id}"
    assert_as_without(tmp_path / "r", without_wandb)
    assert_complete(segment, tmp_path / "r")
    for name, curve in metrics(tmp_path / "r").items():
        assert [(row["trainer/global_step"], row[name]) for row in server.history if name in row] == curve


def test_server_that_refuses_the_run_leaves_it_offline(tmp_path: Path, lab: Lab, without_wandb: Path) -> None:
    class ReadOnly(Handler):
        """Accepts the key, but lets it write nothing."""

        def graphql(self, body: dict[str, Any]) -> dict[str, Any]:
            if "upsertBucket" in body["query"]:
                return {"errors": [{"message": "permission denied"}], "data": {"upsertBucket": None}}
            return super().graphql(body)

    server = Server()
    server.RequestHandlerClass = ReadOnly
    try:
        done = lab(*SHORT, "logger.wandb.patience=3", env={"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url})
    finally:
        server.die()
    assert done.returncode == 3
    (line,) = wandb_lines(done.stderr)
    assert "offline, the server did not take the run" in line
    (segment,) = segments(tmp_path / "r")
    assert_as_without(tmp_path / "r", without_wandb)
    assert_complete(segment, tmp_path / "r")


def test_server_that_dies_in_mid_run(
    tmp_path: Path, environment: dict[str, str], without_wandb: Path, server: Server
) -> None:
    env = environment | {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}
    with started(tmp_path, env, *SHORT, "trainer.max_steps=1000", "logger.wandb.patience=2") as run:
        wait_for(lambda: said(tmp_path / "r", "wandb: online"), run)
        server.die()
        _, stderr = run.communicate(timeout=TIMEOUT)
    assert run.returncode in (0, 3)
    assert (tmp_path / "r" / "verdict.json").exists()
    _online, stopped = wandb_lines(stderr)
    (segment,) = segments(tmp_path / "r", "run")
    assert "not everything was uploaded in 2 s" in stopped
    assert_complete(segment, tmp_path / "r")
    revived = Server()
    try:
        command = [sys.executable, "-m", "wandb", "sync", *stopped.partition("wandb sync ")[2].split()]
        env["WANDB_BASE_URL"] = revived.url
        subprocess.run(command, cwd=tmp_path, env=env, timeout=TIMEOUT, check=True, capture_output=True)
    finally:
        revived.die()
    for name, curve in metrics(tmp_path / "r").items():
        assert [(row["trainer/global_step"], row[name]) for row in revived.history if name in row] == curve


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_service_that_dies_or_hangs(
    tmp_path: Path, environment: dict[str, str], without_wandb: Path, how: signal.Signals
) -> None:
    with started(tmp_path, environment, *SHORT, "trainer.max_steps=1000", "logger.wandb.patience=1") as run:
        wait_for(lambda: said(tmp_path / "r", "wandb: offline"), run)
        service = service_of(run.pid)
        os.kill(service, how)
        _, stderr = run.communicate(timeout=TIMEOUT)
        with contextlib.suppress(ProcessLookupError):
            os.kill(service, signal.SIGKILL)
    assert run.returncode in (0, 3)
    assert (tmp_path / "r" / "verdict.json").exists()
    _, stopped = wandb_lines(stderr)
    assert "metrics.csv has everything" in stopped
    assert [step for step, _ in metrics(tmp_path / "r")["loss/net"]] == [*range(0, 1000, 50), 999]


def test_killed_and_resumed_is_one_run(tmp_path: Path, environment: dict[str, str], lab: Lab) -> None:
    long = (
        "experiment=pca_autoencoder",
        "trainer.max_steps=4000",
        "trainer.log_every_n_steps=20",
        "callbacks.checkpoints.every_n_steps=500",
    )
    run_dir = tmp_path / "r"

    def rows_on_disk() -> bool:
        return any(segment.history for segment in segments(run_dir))

    with started(tmp_path, environment, *long, "run_dir=r") as run:
        wait_for(lambda: said(run_dir, "wandb: offline"), run)
        begin = time.monotonic()
        wait_for(rows_on_disk, run)
        assert time.monotonic() - begin < 10  # wandb's own default writes after 15 s
        wait_for(lambda: list(run_dir.glob("checkpoints/*.ckpt")), run)
        os.kill(service_of(run.pid), signal.SIGKILL)
        run.kill()
    assert not (run_dir / "verdict.json").exists()
    resumed = lab(*long, "run_dir=r")
    assert resumed.returncode in (0, 3), resumed.stderr
    whole = lab(*long, "run_dir=whole", "logger=none")
    assert whole.returncode == resumed.returncode
    assert numbers(run_dir) == numbers(tmp_path / "whole")
    first, second = segments(run_dir)
    assert first.id == second.id
    assert first.exit_code is None
    assert second.exit_code == 0
    assert_complete(second, run_dir)
    for name, uninterrupted in metrics(tmp_path / "whole").items():
        assert first.curve(name) == uninterrupted[: len(first.history)]  # what both logged is identical
        assert second.curve(name) == uninterrupted


def test_one_run_under_two_ranks(tmp_path: Path, lab: Lab) -> None:
    done = lab(*SHORT, "trainer.devices=2", "trainer.accelerator=cpu")
    assert done.returncode == 3, done.stderr
    assert len(wandb_lines(done.stderr)) == 1
    (segment,) = segments(tmp_path / "r")
    assert_complete(segment, tmp_path / "r")


def test_diverged_run_has_null_in_the_summary(tmp_path: Path, lab: Lab) -> None:
    fewer = ("data.designs.tall.replicates=32", "data.designs.small.replicates=400")
    diverging = ("experiment=linear_regression", "model.optimizer.lr=1e3", "trainer.max_steps=300", "run_dir=r")
    done = lab(*diverging, *fewer)
    assert done.returncode == 3, done.stderr
    (segment,) = segments(tmp_path / "r")
    assert segment.exit_code == 0
    measured = {claim["name"]: claim["measured"] for claim in numbers(tmp_path / "r")}
    assert None in measured.values()
    for name, value in measured.items():
        assert segment.summary[f"claim/{name}/measured"] == value
        assert segment.summary[f"claim/{name}/holds"] is False
    curves = metrics(tmp_path / "r")
    assert not all(math.isfinite(loss) for curve in curves.values() for _, loss in curve)
    for name, curve in curves.items():
        assert repr(segment.curve(name)) == repr(curve)  # NaN is not equal to itself


@pytest.mark.parametrize(
    ("mode", "line", "folders"),
    [
        ("disabled", "wandb: disabled, as WANDB_MODE", 0),
        ("offline", "wandb: offline, as WANDB_MODE", 1),
        ("online", "wandb: offline, no key is configured", 1),
        ("sometimes", "wandb stopped (ValidationError", 0),
    ],
)
def test_mode(tmp_path: Path, lab: Lab, without_wandb: Path, mode: str, line: str, folders: int) -> None:
    done = lab(*SHORT, env={"WANDB_MODE": mode})
    assert done.returncode == 3, done.stderr
    (said,) = wandb_lines(done.stderr)
    assert said.startswith(line)
    assert len(segments(tmp_path / "r")) == folders
    assert_as_without(tmp_path / "r", without_wandb)


def test_folder_that_cannot_be_written(tmp_path: Path, lab: Lab, without_wandb: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "wandb").write_text("no folder")
    done = lab(*SHORT)
    assert done.returncode == 3, done.stderr
    (line,) = wandb_lines(done.stderr)
    assert line.startswith("wandb stopped (NotADirectoryError")
    assert_as_without(tmp_path / "r", without_wandb)
