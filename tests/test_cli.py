"""The command line as a user meets it: real processes for refusals and pages, a stand-in for what is launched."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lab import __main__ as command
from lab import paths
from lab.cli import catalogue
from lab.cli import complete as completion
from lab.cli import help as help_page
from lab.cli import list as listing
from lab.cli import record as recording
from lab.cli import verify as verifying
from lab.cli.show import relation
from lab.compose import compose
from lab.compose.files import experiments
from lab.errors import CRASHED, HOLDS, REFUSED, REFUTED, Refusal
from lab.rundir import RunDir

PCA = "experiment=pca_autoencoder"
HEAVY = ("torch", "lightning", "torchvision", "wandb", "scipy", "sklearn", "matplotlib")
Lab = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Runs `python -m lab …` in an empty folder and holds that nothing heavy was imported."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "lab", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONIOENCODING": "utf-8", "CUDA_VISIBLE_DEVICES": "", **environment},
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        lines = done.stderr.splitlines()
        imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
        assert not imported & set(HEAVY)
        done.stderr = "\n".join(line for line in lines if not line.startswith("import time:"))
        return done

    return run


@pytest.fixture
def checkout(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A checkout of the lab whose conf/ the test may spoil, and the environment in which it is the one that runs."""
    root = tmp_path / "checkout"
    (root / "src").mkdir(parents=True)
    (root / "src" / "lab").symlink_to(Path(command.__file__).parent)
    shutil.copytree(paths.CONF, root / "conf")
    return root, {"PYTHONPATH": str(root / "src")}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, list[str], bool]]:
    """Every launch as (config, overrides, fresh_process); a seed of 10 and more is the exit code."""
    calls: list[tuple[Any, list[str], bool]] = []

    def launch(cfg: Any, overrides: Sequence[str] = (), *, fresh_process: bool = False) -> int:
        calls.append((cfg, list(overrides), fresh_process))
        if cfg.seed == 12:
            raise Refusal("the run directory is taken")
        return {10: HOLDS, 11: CRASHED, 13: REFUTED, 143: 143}.get(cfg.seed, HOLDS)

    stand_in = types.ModuleType("lab.launch")
    stand_in.launch = launch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lab.launch", stand_in)
    monkeypatch.chdir(tmp_path)
    return calls


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == REFUSED, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("lab: ")
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), (PCA, "--help")])
def test_help(lab: Lab, words: tuple[str, ...]) -> None:
    done = lab(*words)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", help_page.HELP)


@pytest.mark.parametrize("verb", ["list", "show", "record"])
def test_help_of_a_verb(lab: Lab, verb: str) -> None:
    done = lab(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: lab {verb}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        # each kind of bad input that the lab promises to refuse
        (
            ("experiment=pca_autoencodr",),
            [*experiments(), "did you mean 'pca_autoencoder'?"],
        ),
        (("seed=1",), ["no experiment", *experiments()]),
        ((PCA, "model.net.kk=3"), ["unknown key model.net.kk=3", "did you mean 'model.net.k'?"]),
        ((PCA, "-m", "model.k=1,2"), ["unknown key model.k=1", "did you mean 'k' or 'model.net.k'?"]),
        ((PCA, "callbacks.progres.x=1"), ["callbacks.progres", "did you mean 'callbacks.progress'?"]),
        ((PCA, "model.net.k=many"), ["model.net.k=many", "an integer ≥ 1"]),
        ((PCA, "k=0"), ["k=0 (model.net.k is ${k})", "≥ 1"]),
        ((PCA, "k=65"), ["k=65 (model.net.k is ${k}) must be less than d=64"]),
        ((PCA, "model.optimizer._target_=os.system"), ["model.optimizer._target_=os.system"]),
        ((PCA, f"run_dir={'a' * 300}"), ["File name too long"]),
        ((PCA, f"id={'a' * 300}"), ["id=aaa", "up to 128"]),
        ((PCA, "trainer.devices=1000000"), ["trainer.devices=1000000", "1.."]),
        ((PCA, "trainer.accelerator=cuda"), ["trainer.accelerator=cuda", "cpu"]),
        ((PCA, "run_dir=/dev/null/run"), ["run_dir=/dev/null/run", "/dev/null is not a folder"]),
        ((PCA, "run_dir=/proc/no/run"), ["run_dir=/proc/no/run", "cannot be written"]),
        # words that are neither
        (("lst",), ["lst", "list, show, verify, record", "did you mean 'list'?"]),
        (("pca_autoencoder",), ["did you mean 'experiment=pca_autoencoder'?"]),
        ((PCA, "foo"), ["foo", "key=value"]),
        ((PCA, "--foo"), ["--foo", "not a flag"]),
        ((PCA, "--cgf", "job"), ["did you mean '--cfg'?"]),
        ((PCA, "--cfg", "jobb"), ["--cfg jobb", "did you mean 'job'?"]),
        ((PCA, "--cfg"), ["--cfg needs a value"]),
        ((PCA, "trainer.max_steps=[1"), ["trainer.max_steps=[1"]),
        # through Hydra's flags
        ((PCA, "--cfg", "job", "kk=3"), ["unknown key kk=3"]),
        (("experiment=pca", "--info", "defaults"), ["experiment=pca"]),
        ((PCA, "-m", "seed=1,2", "kk=3"), ["unknown key kk=3"]),
        ((PCA, "-m", "logger=none,wandbb"), ["logger=wandbb", "did you mean 'wandb'?"]),
        ((PCA, "-m", "k=interval(1,2)"), ["k=interval(1,2)"]),
        ((PCA, "--config-name", "nowhere"), ["nowhere"]),
        # continuing
        (("run_dir=nowhere",), ["run_dir=nowhere", "holds no run"]),
        # verbs
        (("show", "pca_autoencodr"), ["did you mean 'pca_autoencoder'?"]),
        (("show",), ["show:", "name"]),
        (("list", "everything"), ["list:", "everything"]),
        (("record", "nowhere"), ["nowhere", "not a run directory"]),
        (("record", "--chek"), ["did you mean '--check'?"]),
        (("record",), ["--index-only"]),
        (("verify", "--seeds", "10001"), ["--seeds 10001 is out of range; allowed: at most 10000"]),
        (("verify", "vae", "--set", "seed=3"), ["--set seed=3 is not allowed: --seeds N runs the seeds"]),
        (("verify", "vae", "--set", "run_dir=x"), ["--set run_dir=x is not allowed: each run has a folder"]),
        (("--version=3",), ["--version=3 is not allowed: --version takes no value"]),
        (("verify", "--seeds", "two"), ["invalid int value: 'two'; see lab verify --help"]),
        (("--list",), ["--list is not a flag, did you mean 'list'?"]),
        (("=3",), ["=3 is not an override"]),
        # a sweep, before its first job
        ((PCA, "-m", "seed=0,a"), ["seed=a is not allowed"]),
        ((PCA, "-m", "seed=0,1", "k=3,64"), ["k=64 (model.net.k is ${k}) must be less than d=64"]),
    ],
)
def test_refusals(lab: Lab, tmp_path: Path, words: tuple[str, ...], said: list[str]) -> None:
    refused(lab(*words), *said)
    assert list(tmp_path.iterdir()) == []


def test_batch_and_processes(lab: Lab) -> None:
    words = (
        "experiment=linear_regression",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "data.designs.wide.batch_size=9",
    )
    refused(lab(*words), "data.designs.wide.batch_size=9", "2 processes", "8 or 10")


def test_missing_data_without_a_network() -> None:
    code = (
        "import socket, sys\n"
        "def offline(*a, **k): raise OSError('offline')\n"
        "socket.create_connection = offline\n"
        "from lab.__main__ import main\n"
        "sys.argv = ['lab', 'experiment=pca_autoencoder_mnist', 'data_root=nowhere']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    refused(done, "data_root=nowhere", "train-images-idx3-ubyte")


def test_spoilt_files(lab: Lab, checkout: tuple[Path, dict[str, str]]) -> None:
    root, environment = checkout
    path = root / "conf" / "experiment" / "pca_autoencoder.yaml"
    good = path.read_text()
    path.write_text(good.replace("trainer:\n", "trainer:\n  max_step: 3\n"))
    refused(lab(PCA, **environment), "trainer.max_step=3", "did you mean 'trainer.max_steps'?")
    path.write_text(good.replace("refutes: [", "refutes: [projectr, ", 1))
    refused(lab(PCA, **environment), "controls.", "projectr", "did you mean 'projector'?")
    path.write_text(good + "\nbroken: [\n")
    refused(lab(PCA, **environment), "conf/experiment/pca_autoencoder.yaml line")
    refused(lab("list", **environment), "conf/experiment/pca_autoencoder.yaml line")
    path.write_text("- a\n- list\n")
    refused(lab("list", **environment), "conf/experiment/pca_autoencoder.yaml")


def test_list(lab: Lab) -> None:
    done = lab("list")
    assert done.returncode == 0
    for name in experiments():
        assert name in done.stdout
    assert "Chapter 3 · Linear Algebra" in done.stdout
    assert "The optimal reconstruction error is the sum of the discarded eigenvalues" in done.stdout
    assert "must refute" in done.stdout
    assert "…" not in done.stdout.replace("λ₁ ≥ …", "")
    assert done.stdout.count("last verified here: never") == len(experiments())


def test_show(lab: Lab) -> None:
    done = lab("show", "pca_autoencoder")
    assert done.returncode == 0
    for word in ("Eckart", "rtol=", "relu_bottleneck", "_target_: lab.models", "k: ${k}"):
        assert word in done.stdout


def test_hydra_flags(lab: Lab, tmp_path: Path) -> None:
    done = lab(PCA, "--cfg", "job", "k=3", "--package", "k")
    assert (done.returncode, done.stderr, done.stdout.strip().splitlines()[-1]) == (0, "", "3")
    assert "k: 3" in lab(PCA, "--cfg", "job", "--resolve", "k=3", "--package", "model.net").stdout
    assert "pca_autoencoder" in lab(PCA, "--info", "defaults").stdout
    assert "Hydra" in lab("--version").stdout
    completion = lab("-sc", "query=bash", COMP_LINE="lab experiment=pca")
    assert "experiment=pca_autoencoder" in completion.stdout.split()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("lab ", [*command.VERBS, "experiment=", "run_dir="]),
        ("lab sh", ["show"]),
        ("python -m lab ve", ["verify"]),
        (".venv/bin/lab exp", ["experiment="]),
        ("lab show ", experiments()),
        ("lab show pca", [name for name in experiments() if name.startswith("pca")]),
        ("lab show pca_autoencoder ", []),
        ("lab verify pca_autoencoder lin", ["linear_regression"]),
        ("lab verify --s", ["--seeds", "--set"]),
        ("lab record outp", []),
        ("lab experiment=lin", ["experiment=linear_regression"]),
        ("lab experiment=", [f"experiment={name}" for name in experiments()]),
        ("lab experiment=nowhere se", []),
        (
            "lab experiment=pca_autoencoder model.net.",
            ["model.net._target_=", "model.net.d=", "model.net.k=", "model.net.seed=", "model.net.activation="],
        ),
        ("lab experiment=pca_autoencoder model.net.act", ["model.net.activation="]),
        ("lab foo bar", []),
    ],
)
def test_completion(lab: Lab, line: str, offered: list[str]) -> None:
    done = lab("-sc", "query=bash", COMP_LINE=line)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == offered


def test_completion_knows_every_flag(lab: Lab) -> None:
    assert set(completion.FLAGS) == set(command.VERBS)
    for verb, flags in completion.FLAGS.items():
        page = lab(verb, "--help").stdout
        assert set(re.findall(r"--[\w-]+", page.partition("options:")[2])) == set(flags)


def test_output_to_a_closed_pipe() -> None:
    code = f"'{sys.executable}' -m lab list | head -1 >/dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def run(*words: str) -> int:
    return command.dispatch(words)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream_is_no_matter(closed: str) -> None:
    done = subprocess.run(["sh", "-c", f"exec {sys.executable} -m lab list {closed}"], check=False)
    assert done.returncode == 0


def test_a_run_is_composed_checked_and_launched(launched: list[Any]) -> None:
    assert run(PCA, "seed=13", "model.optimizer.eps=1e-6") == REFUTED
    [(cfg, overrides, fresh)] = launched
    assert cfg.model.optimizer.eps == 1e-6
    assert overrides == [PCA, "seed=13", "model.optimizer.eps=1e-6"]
    assert not fresh


def test_continuing_a_frozen_run(launched: list[Any], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    frozen = OmegaConf.to_container(compose([PCA, "seed=7"]), resolve=True)
    OmegaConf.save(OmegaConf.create(frozen), folder / "config.yaml")
    assert run("run_dir=runs/a") == HOLDS
    assert (launched[0][0].seed, launched[0][0].run_dir) == (7, "runs/a")
    (tmp_path / "runs/a").rename(tmp_path / "runs/k=4,seed=7")
    words = shlex.split(RunDir(Path("runs/k=4,seed=7")).continued)
    assert run(*words[1:]) == HOLDS
    assert (launched[1][0].seed, launched[1][0].run_dir) == (7, "runs/k=4,seed=7")
    (tmp_path / "runs/k=4,seed=7").rename(tmp_path / "runs/a")
    with pytest.raises(Refusal, match=r"seed=3: .* takes no overrides"):
        run("run_dir=runs/a", "seed=3")
    (folder / "config.yaml").write_text("[1, 2]\n")
    with pytest.raises(Refusal, match="it holds no keys"):
        run("run_dir=runs/a")
    del frozen["model"]["net"]  # type: ignore[index, call-overload, union-attr]
    OmegaConf.save(OmegaConf.create(frozen), folder / "config.yaml")
    with pytest.raises(Refusal, match=r"model.net is missing"):
        run("run_dir=runs/a")


# ------------------------------------------------------------------------------------------------- verdicts and records

CLAIM = {
    "name": "projector",
    "statement": "",
    "reference": "",
    "relation": "equal",
    "because": "",
    "predicted": 2.0,
    "measured": 2.001,
    "standard_error": 0.0,
    "difference": 0.001,
    "tolerance": 0.02,
    "holds": True,
}


def finished(
    folder: Path,
    *,
    control: str | None = None,
    overrides: str = "",
    pictures: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A run directory as a finished run leaves it."""
    provenance = {
        "seed": 0,
        "commit": "a" * 40,
        "dirty": False,
        "device": "cpu",
        "world_size": 1,
        "finished": "2026-11-23T20:00:00+00:00",
        "seconds": 2.5,
    }
    verdict = {"experiment": "pca_autoencoder", "chapter": 3, "holds": True, "claims": [CLAIM]}
    provenance |= changes.pop("provenance", {})
    folder.mkdir(parents=True)
    about = {"name": "pca_autoencoder", "control": control, "run_dir": None, "id": "x", "pictures": pictures or {}}
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(about)))
    (folder / "overrides").write_text(f"{PCA}\nseed=0\n{overrides}")
    (folder / "verdict.json").write_text(json.dumps(verdict | changes | {"provenance": provenance}))
    for file in (f"{picture}{suffix}" for picture in ("figure", *about["pictures"]) for suffix in recording.SUFFIXES):
        (folder / file).write_text(file)
    return folder


def test_last_verified(tmp_path: Path) -> None:
    assert listing.last_verified(tmp_path) == {}
    times = iter(range(1_000_000_000, 2_000_000_000, 86_400))

    def at(folder: Path) -> None:
        os.utime(folder / "verdict.json", (when := next(times), when))

    at(finished(tmp_path / "pca_autoencoder" / "a"))
    assert listing.last_verified(tmp_path)["pca_autoencoder"].endswith("holds")
    at(finished(tmp_path / "pca_autoencoder" / "b", holds=False))
    assert listing.last_verified(tmp_path)["pca_autoencoder"].endswith("refuted")
    at(finished(tmp_path / "verify" / "pca_autoencoder" / "seed-0"))
    control = tmp_path / "verify" / "pca_autoencoder" / "control-x" / "seed-0"
    at(finished(control, holds=False, overrides="control=x\n"))
    at(finished(tmp_path / "pca_autoencoder" / "short", holds=False, overrides="trainer.max_steps=20\n"))
    at(finished(tmp_path / "pca_autoencoder" / "c", holds=False, control="relu_bottleneck"))
    broken = finished(tmp_path / "pca_autoencoder" / "d")
    (broken / "verdict.json").write_text("{")
    assert listing.last_verified(tmp_path)["pca_autoencoder"].endswith("holds")


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty experiments/ folder."""
    monkeypatch.setattr(paths, "EXPERIMENTS", tmp_path / "experiments")
    return tmp_path / "experiments"


def test_record(pages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("record", str(finished(tmp_path / "run"))) == HOLDS
    kept = json.loads((pages / "pca_autoencoder" / "verdict.json").read_text())
    text = (pages / "README.md").read_text()
    assert "## Chapter 3 · Linear Algebra" in text
    assert "| = 2.0000 | 2.0010 |" in text
    assert f"Recorded {kept['provenance']['finished'][:10]}, commit aaaaaaaaaaaa, seed 0, 1 × cpu" in text
    assert "| principal_angles |" in text
    assert text.count("Not recorded yet.") == len(experiments()) - 1
    assert run("record", "--check") == HOLDS
    (pages / "README.md").write_text(text + "by hand\n")
    assert run("record", "--check") == CRASHED
    assert run("record", "--index-only") == HOLDS
    assert (pages / "README.md").read_text() == text
    assert "README.md" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"holds": False, "claims": [CLAIM | {"holds": False}]}, "refuted"),
        ({"experiment": "pca_autoencodr"}, "did you mean 'pca_autoencoder'"),
        ({"control": "relu_bottleneck"}, "control relu_bottleneck"),
        ({"overrides": "k=3\n"}, "run with k=3"),
        ({"provenance": {"dirty": True}}, "--dirty"),
        ({"provenance": {"commit": None, "dirty": None}}, "--dirty"),
    ],
)
def test_what_is_not_recorded(pages: Path, tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    folder = finished(tmp_path / "run", **changes)
    with pytest.raises(Refusal, match=why):
        run("record", str(folder))
    assert not pages.exists()


def test_unfinished_runs_are_not_recorded(pages: Path, tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    (folder / "figure.svg").unlink()
    with pytest.raises(Refusal, match=r"has no figure.svg"):
        run("record", str(folder))
    (folder / "verdict.json").write_text("{}")
    with pytest.raises(Refusal, match="not whole"):
        run("record", str(folder))
    (folder / "verdict.json").unlink()
    with pytest.raises(Refusal, match="not finished"):
        run("record", str(folder))
    assert not pages.exists()


def test_pictures_are_recorded_with_the_figure(pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = {"latent_plane": {"_target_": "lab.pictures.pca_autoencoder.LatentPlane"}}
    source = catalogue.source
    monkeypatch.setattr(catalogue, "source", lambda name: source(name) | {"pictures": pictures})
    folder = finished(tmp_path / "run", pictures=pictures)
    assert run("record", str(folder)) == HOLDS
    kept = {path.name for path in (pages / "pca_autoencoder").iterdir()}
    assert kept == {"verdict.json", "figure.svg", "figure.png", "latent_plane.svg", "latent_plane.png"}
    assert "[latent plane](pca_autoencoder/latent_plane.svg)" in (pages / "README.md").read_text()
    (folder / "latent_plane.png").unlink()
    with pytest.raises(Refusal, match=r"has no latent_plane.png"):
        run("record", str(folder))


def test_dirty_runs_are_recorded_when_asked(pages: Path, tmp_path: Path) -> None:
    assert run("record", "--dirty", str(finished(tmp_path / "run", provenance={"dirty": True}))) == HOLDS
    assert "aaaaaaaaaaaa with changes" in (pages / "README.md").read_text()


def test_the_index_is_what_is_recorded() -> None:
    assert run("record", "--check") == HOLDS, "write it with: lab record --index-only"


def test_relation_in_words() -> None:
    assert relation("equal('why', rtol=0.001)") == "equal, rtol=0.001; why"
    assert relation("at_most('why')") == "at most; why"
    assert relation("something.else_") == "something.else_"
    assert relation("") == "as its class says"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sweep=step_size", "sweep=step_size changes nothing in a single run: it is for a sweep, which -m starts"),
        ("hydra.sweep.dir=x", "hydra.sweep.dir=x changes nothing in a single run"),
        ("hydra/sweeper=optuna", "hydra/sweeper=optuna changes nothing in a single run"),
        ("hydra.run.dir=x", "hydra.run.dir=x changes nothing: run_dir=<path> chooses where a run is written"),
        ("experiment=pca_autoencoder", "experiment=linear_regression chose an experiment already"),
        ("~foo", "~foo: there is no such key to take out; at the top there are callbacks, chapter, claims"),
        ("trainer.max_steps=1000000000000000000000", "an integer ≥ 1 and ≤ 1000000000000"),
        ("objective=claim/excess_risc/measured", "did you mean 'claim/excess_risk/measured'?"),
        ("data.designs.tall.replicates=100000000000", "would hold more than 10^10 numbers"),
    ],
)
def test_what_would_be_ignored_or_cannot_be_is_refused(lab: Lab, override: str, said: str, tmp_path: Path) -> None:
    done = lab("experiment=linear_regression", override)
    assert done.returncode == REFUSED
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_verify_without_names_takes_what_every_machine_can() -> None:
    chosen = set(verifying._for_every_machine(list(experiments())))
    assert {"linear_regression", "pca_autoencoder", "vae", "transformer", "diffusion", "gnn", "sinkhorn_ot"} <= chosen
    assert "diffusion_digits" in chosen
    assert not {"vae_mnist", "transformer_text", "gnn_cora", "gnn_large", "sinkhorn_ot_large"} & chosen
