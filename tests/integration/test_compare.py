"""Real runs compared and made again: run directories, wandb's offline files, a server, a report."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.compare.load import load
from lab.errors import HOLDS, REFUSED, REFUTED, Refusal

SHORT = ("experiment=pca_autoencoder", "trainer.max_steps=300", "trainer.accelerator=cpu")
KEY = "0123456789abcdef" * 2 + "01234567"

Lab = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def lab(home: Path) -> Lab:
    """Runs `python -m lab WORDS` as a user who has never seen wandb."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "XDG_"))}

    def run(*words: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lab", *map(str, words)],
            cwd=cwd,
            env=clean | {"HOME": str(home), "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": ""} | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def made(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, k=8 with wandb's offline files and k=4 without; not to be written to."""
    folder = tmp_path_factory.mktemp("made")
    for k, logger in ((8, "wandb"), (4, "none")):
        done = lab(*SHORT, f"k={k}", "model.net.seed=1", f"logger={logger}", f"run_dir=k{k}", cwd=folder)
        assert done.returncode == REFUTED, done.stderr
    return folder


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# ---------------------------------------------------------------------------------------------------- wandb's own files


def test_wandbs_file_says_what_the_run_directory_says(made: Path) -> None:
    (run,), (file,) = load([str(made / "k8")]), load([str(made / "k8" / "wandb")])
    assert isinstance(file.source, Path)
    assert file.source.suffix == ".wandb"
    assert (file.state, file.id, file.experiment) == ("done", run.config["id"], "pca_autoencoder")
    assert file.curves.keys() == run.curves.keys()
    for name, curve in run.curves.items():
        assert file.curves[name] == curve
    ours = {claim.name: (claim.predicted, claim.measured, claim.tolerance, claim.holds) for claim in run.claims}
    assert {
        claim.name: (claim.predicted, claim.measured, claim.tolerance, claim.holds) for claim in file.claims
    } == ours
    for key in ("k", "seed", "model.net.k", "model.optimizer.lr", "trainer.precision", "model.optimizer._partial_"):
        assert file.config[key] == run.config[key]


def test_a_run_directory_and_wandbs_file_are_compared(made: Path, lab: Lab, tmp_path: Path) -> None:
    (file,) = (made / "k8" / "wandb").glob("offline-run-*/*.wandb")
    done = lab("compare", made / "k4", file, "--by", "k", "--html", "p.html", cwd=tmp_path)
    assert done.returncode == HOLDS, done.stderr
    assert re.search(r"^ *k +loss/net +claims held", done.stdout, re.MULTILINE)
    (run,) = load([str(file)])
    assert re.search(rf"^ *8 +{run.curves['loss/net'][1][-1]:.6g} +0/5", done.stdout, re.MULTILINE)
    assert re.search(r"k=4 +✓ 616\.\d+ = 616\.\d+", done.stdout)
    error = next(claim for claim in run.claims if claim.name == "reconstruction_error")
    assert re.search(rf"k=8 +✗ {error.measured:.4g} vs 391\.8", done.stdout)
    assert (tmp_path / "outputs" / "compare.svg").exists()
    assert "2 runs of pca_autoencoder" in (tmp_path / "p.html").read_text()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda content: b"", "is torn or not a file of wandb's: it holds no run"),
        (lambda content: content[:3], "is torn or not a file of wandb's: reached the end of an incomplete"),
        (lambda content: b"something else", "is torn or not a file of wandb's: transactionlog: bad header"),
    ],
)
def test_a_file_that_is_not_wandbs_is_refused(
    made: Path, tmp_path: Path, spoil: Callable[[bytes], bytes], said: str
) -> None:
    (file,) = (made / "k8" / "wandb").glob("offline-run-*/*.wandb")
    (tmp_path / "x.wandb").write_bytes(spoil(file.read_bytes()))
    with pytest.raises(Refusal, match=re.escape(said)):
        load([str(tmp_path / "x.wandb")])


def test_of_a_torn_file_what_is_whole_counts(made: Path, tmp_path: Path) -> None:
    (file,) = (made / "k8" / "wandb").glob("offline-run-*/*.wandb")
    whole, content = load([str(file)])[0], bytearray(file.read_bytes())
    rows = [found.start() for found in re.finditer(rb"loss/net", content)]
    middle = rows[len(rows) // 2]
    (tmp_path / "cut.wandb").write_bytes(content[:middle])
    content[middle] ^= 0xFF
    (tmp_path / "spoilt.wandb").write_bytes(content)
    for name, said in (("cut", "reached the end of an incomplete .wandb file"), ("spoilt", "skipped corrupt data")):
        (run,) = load([str(tmp_path / f"{name}.wandb")])
        assert run.state == "failed"
        assert said in run.reason
        steps, values = run.curves["loss/net"]
        assert (steps, values) == tuple(column[: len(steps)] for column in whole.curves["loss/net"])
        assert 0 < len(steps) < len(whole.curves["loss/net"][0])


# ------------------------------------------------------------------------------------------------------- a wandb server


class Server(http.server.ThreadingHTTPServer):
    """As much of a W&B server as listing runs and saving a report need."""

    daemon_threads = True

    def __init__(self, **answers: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def env(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}", "WANDB_API_KEY": KEY}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        operation = re.search(r"(?:query|mutation)\s+(\w+)", body.get("query", ""))
        name, variables = operation[1] if operation else "", body.get("variables") or {}
        self.server.asked.append((name, variables))
        viewer = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        data = {"viewer": viewer}
        if name in self.server.answers:
            data = self.server.answers[name](variables)
        text = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(**answers: Any) -> Server:
        servers.append(Server(**answers))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def project_of(made: Path) -> dict[str, Any]:
    """The run of the run directory k8 as a server would tell of it, and one that is not the lab's and diverged."""
    (run,) = load([str(made / "k8")])
    summary: dict[str, Any] = {"_runtime": 3.5, "holds": False}
    for claim in run.claims:
        numbers = {key: getattr(claim, key) for key in ("predicted", "measured", "tolerance", "holds")}
        summary |= {f"claim/{claim.name}/{key}": value for key, value in numbers.items()}
    steps, values = run.curves["loss/net"]
    rows = [{"_step": step, "trainer/global_step": step, "loss/net": v} for step, v in zip(steps, values, strict=True)]
    nodes = {
        run.id: ("ours", "finished", run.config, summary, rows),
        "other1": ("theirs", "crashed", {"lr": 0.5}, {}, [{"_step": 0, "loss": 1.0}, {"_step": 1, "loss": "NaN"}]),
    }

    def node(id_: str) -> dict[str, Any]:
        name, state, config, summary, rows = nodes[id_]
        return {
            "id": id_,
            "name": id_,
            "displayName": name,
            "state": state,
            "config": json.dumps({key: {"value": value} for key, value in config.items()}),
            "summaryMetrics": json.dumps(summary),
            "systemMetrics": "{}",
            "historyLineCount": len(rows),
            "tags": [],
            "createdAt": "2026-01-01T00:00:00",
            "user": {"name": "me", "username": "me"},
        }

    def history(variables: dict[str, Any]) -> dict[str, Any]:
        lines = [json.dumps(row) for row in nodes[str(variables["name"])][4]]
        return {"project": {"run": {"history": lines}}}

    def listing(_: dict[str, Any]) -> dict[str, Any]:
        edges = [{"node": node(id_), "cursor": id_} for id_ in nodes]
        page = {"edges": edges, "pageInfo": {"endCursor": "x", "hasNextPage": False}}
        return {"project": {"internalId": "1", "runCount": len(nodes), "readOnly": True, "runs": page}}

    return {
        "Runs": listing,
        "RunFullHistory": history,
        "Run": lambda variables: {"project": {"run": node(str(variables["name"]))}},
    }


def test_a_project_on_a_server(made: Path, lab: Lab, tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(**project_of(made))
    address = "wandb://me/lab?config.seed=0&state=finished"
    done = lab("compare", address, made / "k4", cwd=tmp_path, **server.env)
    assert done.returncode == HOLDS, done.stderr
    asked = next(variables for name, variables in server.asked if name == "Runs")
    assert (asked["entity"], asked["project"]) == ("me", "lab")
    assert json.loads(asked["filters"]) == {"config.seed": 0, "state": "finished"}
    (run,) = load([str(made / "k8")])
    assert re.search(rf"^ *ours .* {run.curves['loss/net'][1][-1]:.6g} +0/5 +3\.5", done.stdout, re.MULTILINE)
    assert re.search(r"^ *theirs .* failed: crashed", done.stdout, re.MULTILINE)
    assert re.search(rf"^ *ours +✗ {run.claims[0].measured:.4g} vs 391\.8", done.stdout, re.MULTILINE)
    assert re.search(r"^ *k4 +✓ 616", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("failure", "said", "seconds"),
    [
        ("no key", r"no key for http://\S+ is configured: wandb login sets one, or WANDB_API_KEY", 20),
        (
            "offline",
            r"WANDB_MODE is offline, so no server is asked: set WANDB_MODE=online, and WANDB_API_KEY where",
            20,
        ),
        ("refused", r"cannot be reached \(ConnectionRefusedError", 20),
        ("silent", r"does not answer or refuses the key", 40),
        ("no project", r"cannot be read: ValueError: Could not find project lab", 20),
    ],
)
def test_a_server_that_does_not_help_is_one_line(
    lab: Lab, tmp_path: Path, serve: Callable[..., Server], failure: str, said: str, seconds: float
) -> None:
    server = serve()
    env = server.env
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if failure == "refused":
            listener.close()
        if failure in ("refused", "silent"):
            env |= {"WANDB_BASE_URL": url}
        if failure == "offline":
            env |= {"WANDB_MODE": "offline"}
        if failure == "no key":
            del env["WANDB_API_KEY"]
        begin = time.monotonic()
        done = lab("compare", "wandb://me/lab", cwd=tmp_path, **env)
        took = time.monotonic() - begin
    assert done.returncode == REFUSED
    assert re.fullmatch(rf"lab: wandb://me/lab.*{said}.*\n", done.stderr), done.stderr
    assert took < seconds


def test_a_report_is_sent(made: Path, lab: Lab, tmp_path: Path, serve: Callable[..., Server]) -> None:
    def saved(variables: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
        view = {"id": "VmlldzoxMjM0", "type": variables["type"], "name": variables["name"], "project": project}
        view |= {"displayName": variables["displayName"], "description": "", "spec": variables["spec"]}
        times = {"createdAt": "2026-01-01T00:00:00", "updatedAt": "2026-01-01T00:00:00"}
        return {"upsertView": {"view": view | times | {"user": {"name": "me", "username": "me"}}, "inserted": True}}

    project = {"__typename": "Project", "id": "p", "name": "lab", "entityName": "me", "isBenchmark": False}
    project |= {"createdAt": "2026-01-01T00:00:00", "user": None}
    page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    answers = project_of(made) | {
        "ProjectInternalId": lambda _: {"project": {"id": "p", "internalId": "1"}},
        "GetProjects": lambda _: {"models": {"edges": [{"node": project}], "pageInfo": page}},
        "upsertView": saved,
    }
    server = serve(**answers)
    done = lab("compare", made / "k4", made / "k8", "--by", "k", "--report", "me/lab", cwd=tmp_path, **server.env)
    assert done.returncode == HOLDS, (done.stderr, [name for name, _ in server.asked])
    sent = next(variables for name, variables in server.asked if name == "upsertView")
    assert (sent["entityName"], sent["projectName"], sent["type"]) == ("me", "lab", "runs")
    spec = json.loads(sent["spec"])
    grid = next(block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid")
    panels = grid["panelBankSectionConfig"]["panels"]
    curves, *scatter = panels
    assert curves["config"]["metrics"] == ["loss/net"]
    assert curves["config"]["xAxis"] == "trainer/global_step"
    assert "k" in json.dumps(curves["config"]["groupBy"])
    assert [panel["config"]["xAxis"] for panel in scatter] == [
        f"summary:claim/{claim.name}/predicted" for claim in load([str(made / "k4")])[0].claims
    ]
    assert f"report  {server.env['WANDB_BASE_URL']}/me/lab/reports/" in done.stdout
    ids = [load([str(made / name)])[0].id for name in ("k4", "k8")]
    assert all(id_ in json.dumps(grid["runSets"]) for id_ in ids)
    table = json.dumps(spec["blocks"])
    assert "reconstruction" in table
    assert "391" in table


# ------------------------------------------------------------------------------------------------------- made once more


def test_a_run_made_again_is_the_same_bit_by_bit(made: Path, lab: Lab, tmp_path: Path) -> None:
    before = state_of(made / "k8")
    done = lab("reproduce", made / "k8", cwd=tmp_path)
    assert done.returncode == HOLDS, done.stderr
    assert state_of(made / "k8") == before
    (new,) = (tmp_path / "outputs" / "pca_autoencoder").iterdir()
    assert new.name != load([str(made / "k8")])[0].id
    for what in ("torch", "lightning", "python", "commit", "device", "hardware", "world size"):
        assert re.search(rf"^  [✓?] {what} ", done.stdout, re.MULTILINE), what
    assert re.search(r"^  ✓ weights +3 tensors of step 300, bit by bit", done.stdout, re.MULTILINE)
    assert re.search(r"^  ✓ curves +the same bytes", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1].startswith("reproduced bitwise: ")


def test_a_run_of_two_ranks_is_made_again_with_two_and_goes_on_where_that_was_stopped(lab: Lab, tmp_path: Path) -> None:
    saving = "callbacks.checkpoints.every_n_steps=50"
    done = lab(*SHORT, saving, "trainer.devices=2", "logger=none", "run_dir=two", cwd=tmp_path)
    assert done.returncode == REFUTED, done.stderr
    command = ["reproduce", "two", "--run_dir=again"]
    process = subprocess.Popen([sys.executable, "-m", "lab", *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "again/checkpoints/step-000000050.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.endswith(f"lab: not made again yet; go on with: lab {' '.join(command)}\n")
    done = lab(*command, cwd=tmp_path)
    assert done.returncode == HOLDS, done.stderr
    assert "resuming again from step-" in done.stderr
    assert re.search(r"^  ✓ world size +2", done.stdout, re.MULTILINE)
    assert "reproduced bitwise" in done.stdout


def test_a_record_that_says_something_else_is_not_reproduced(made: Path, lab: Lab, tmp_path: Path) -> None:
    record = json.loads((made / "k4" / "verdict.json").read_text())
    record["claims"][0]["measured"] *= 1 + 1e-6
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "config.yaml").write_bytes((made / "k4" / "config.yaml").read_bytes())
    (tmp_path / "kept" / "verdict.json").write_text(json.dumps(record))
    done = lab("reproduce", "kept", "--run_dir=near", cwd=tmp_path)
    assert done.returncode == HOLDS, done.stderr
    assert "reproduced within tolerance" in done.stdout
    record["claims"][0]["measured"] *= 2
    record["provenance"]["versions"]["torch"] = "1.0"
    (tmp_path / "kept" / "verdict.json").write_text(json.dumps(record))
    done = lab("reproduce", "kept", "--run_dir=far", cwd=tmp_path)
    assert done.returncode == REFUTED
    assert re.search(rf"^  ✗ claim {record['claims'][0]['name']} ", done.stdout, re.MULTILINE)
    assert re.search(r"^  ✗ torch +recorded 1\.0, here 2", done.stdout, re.MULTILINE)
    assert "not reproduced: " in done.stdout
