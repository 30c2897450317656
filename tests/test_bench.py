"""The benchmarks' pieces compute the same thing; how fast they are is not a test's business."""

from __future__ import annotations

import importlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

BENCH = Path(__file__).parent.parent / "scripts" / "bench"


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setenv("WANDB_MODE", "offline")
    threads, level = torch.get_num_threads(), logging.getLogger("lightning.pytorch").level
    torch.set_num_threads(1)  # two threads on busy cores wait for each other
    with threadpool_limits(1, "blas"):
        yield
    torch.set_num_threads(threads)
    logging.getLogger("lightning.pytorch").setLevel(level)
    for name in (
        "_common",
        "diffusion",
        "gnn",
        "loop",
        "scale",
        "sinkhorn",
        "solvers",
        "startup",
        "sweep",
        "transformer",
        "vae",
    ):
        sys.modules.pop(name, None)


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def quick(name: str, folder: Path) -> dict[str, Any]:
    """The samples of a whole benchmark in its smallest size."""
    command = [sys.executable, str(BENCH / f"{name}.py"), "--quick", "--json", str(folder / "samples.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    samples: dict[str, Any] = json.loads((folder / "samples.json").read_text())["samples"]
    return samples


WORKS = (
    "linear regression, d=10, batch 64",
    "PCA autoencoder, digits, batch 64",
    "PCA autoencoder, digits, full batch",
)
PARTS = ("objective", "trainer", "metrics.csv", "default", "direct", "optimizer", "wrapped")


@pytest.mark.parametrize("work", WORKS)
def test_every_rung_ends_with_the_bare_loops_weights(work: str) -> None:
    loop = module("loop")
    cfg = loop.frozen([*loop.WORKS[work][0], "logger=none"], steps=70, block_size=50)
    expected = loop.bare(cfg).weights
    before = [parameter.detach() for parameter in loop.instantiated(cfg)[1].parameters()]
    assert not any(map(torch.equal, before, expected))
    for part in PARTS:
        assert all(map(torch.equal, expected, loop.runner(part)(cfg).weights)), part


@pytest.mark.parametrize("block_size", [1, 7, 200])
def test_the_block_size_changes_no_weight(block_size: int) -> None:
    loop = module("loop")
    overrides = [*loop.LINEAR, "data.designs.tall.replicates=3", "logger=none"]
    expected = loop.bare(loop.frozen(overrides, 30, 50)).weights
    assert all(map(torch.equal, expected, loop.lab(loop.frozen(overrides, 30, block_size)).weights))


def test_the_examples_loss_is_the_labs(tmp_path: Path) -> None:
    """The same weights, the same images and no noise: one number, written in two ways."""
    vae, loop = module("vae"), module("loop")
    vae.digits_as_mnist(tmp_path, 256, 128)
    example = vae.Example(tmp_path, "mnist")
    data, model = loop.instantiated(vae.config(tmp_path, "mnist", 2))
    layers = example.layers
    with torch.no_grad():
        for name in ("weight", "bias"):
            joint = torch.cat([getattr(layers["fc21"], name), getattr(layers["fc22"], name)])
            ours = (model.net.encoder, model.net.posterior, model.net.decoder, model.net.output)
            theirs = (getattr(layers["fc1"], name), joint, getattr(layers["fc3"], name), getattr(layers["fc4"], name))
            for layer, value in zip(ours, theirs, strict=True):
                getattr(layer, name).copy_(value)
    images, _ = next(iter(example.test))
    held_out = data.as_pixels(data.held_out)
    assert torch.equal(images.flatten(1), held_out[: len(images)])
    torch.manual_seed(0)
    noise = torch.randn(len(images), 20)
    loss, _ = model.objective((held_out[: len(images)], 1.0, noise))
    torch.manual_seed(0)
    torch.testing.assert_close(loss, example.loss(images) / len(images))


def test_the_example_of_a_citation_network_is_the_labs_network(tmp_path: Path) -> None:
    """The same weights and nothing left out: the same logits, of words that are stored in two ways."""
    gnn, loop = module("gnn"), module("loop")
    gnn.made_network(tmp_path)
    data, model = loop.instantiated(gnn.config(tmp_path, 3, 1))
    assert (data.n, data.d, data.classes, len(data.train), len(data.test)) == (3327, 3703, 6, 120, 1000)
    example, [net] = gnn.Example(data), model.trained["gcn"]
    for ours, theirs in zip(net.convolutions, (example.first, example.second), strict=True):
        ours.lin.weight.data, ours.bias.data = theirs.lin.weight.data, theirs.bias.data
    from lab.models.node_classification import features
    from lab.nets.graphs import Graph

    logits = net(features(data.x, data.dtype), Graph(data.edges, data.n))
    torch.testing.assert_close(logits, example.logits(training=False))
    assert example.epochs(3) > 0
    assert 0 < example.accuracy() < 1
    assert len(gnn.lab_accuracies(gnn.config(tmp_path, 3, 2))) == 2


@pytest.mark.parametrize("script", ["vae", "diffusion", "gnn"])
def test_a_data_root_without_files_is_refused(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    (tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz").touch()
    monkeypatch.setattr(sys, "argv", [script, "--data-root", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        module(script).main()
    assert f"argument --data-root: {tmp_path} has no unpacked files in " in capsys.readouterr().err


def test_interleaved_runs_every_work_in_every_repeat() -> None:
    common, calls = module("_common"), list[str]()

    def work(name: str) -> Any:
        return lambda: calls.append(name) or float(len(calls))

    seconds = common.interleaved({name: work(name) for name in "abc"}, 3)
    assert calls == list("abcbcacab")
    assert seconds == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}
    assert common.ratios([2.0, 9.0], [1.0, 3.0]) == [2, 3]
    assert common.spread([3.0, 1.0, 2.0], 1) == "2.0 [1.0..3.0]"


@pytest.mark.parametrize("how", ["plain", "heavy ball", "nesterov"])
def test_least_squares_stops_just_below_the_target(tmp_path: Path, how: str) -> None:
    solvers = module("solvers")
    (tmp_path / "size.json").write_text("500")
    problem = solvers.lab_least_squares(tmp_path, how)
    train, (steps,), _ = problem.methods[""]
    assert problem.quality(train(steps)) <= solvers.EXCESS
    assert problem.quality(train(steps - 10)) > solvers.EXCESS
    peers = solvers.sklearn_least_squares(tmp_path)
    assert peers.quality(peers.methods["scikit-learn Ridge cholesky"][0](0)) < 1e-12


def test_excess_is_the_relative_difference_of_risks() -> None:
    random = np.random.default_rng(0)
    x, y, w = random.standard_normal((50, 4)), random.standard_normal(50), random.standard_normal(4)
    solution = np.linalg.lstsq(x, y)[0]
    risk = [((x @ v - y) ** 2).mean() for v in (w, solution)]
    assert module("solvers").least_squares(x, y, solution)(w) == pytest.approx(risk[0] / risk[1] - 1, rel=1e-12)


def test_the_angle_is_the_one_a_rotation_makes() -> None:
    solvers, random = module("solvers"), np.random.default_rng(0)
    x = random.standard_normal((500, 20)) * 2.0 ** -np.arange(20)
    top = np.linalg.svd(x, full_matrices=False)[2].T
    tilted = top[:, : solvers.K].copy()
    tilted[:, 0] = np.cos(0.3) * top[:, 0] + np.sin(0.3) * top[:, solvers.K]
    assert solvers.principal_angle(x)(tilted) == pytest.approx(0.3, abs=1e-9)


@pytest.mark.integration
def test_the_stages_of_a_start_come_in_order(tmp_path: Path) -> None:
    startup = module("startup")
    times = list(startup.first_step(["logger=none"], tmp_path).values())
    assert len(times) == len(startup.STAGES)
    assert times == sorted(times)
    assert times[0] > 0


@pytest.mark.integration
def test_every_launcher_judges_every_point() -> None:
    sweep = module("sweep")
    for n_jobs in (1, 2):
        for command, at_once in sweep.launchers(n_jobs).values():
            wall, cpu = sweep.sweep(command, [*sweep.TINY, "trainer.max_steps=2", *at_once], 2)
            assert min(wall, cpu) > 0


@pytest.mark.integration
def test_diffusion_times_three_loops_and_four_samplers(tmp_path: Path) -> None:
    """The whole of --quick: each worker trains, samples and gives its bound; only what is not there is left out."""
    samples = quick("diffusion", tmp_path)
    networks = samples["networks"]
    assert networks["weights"]["lab"] == networks["weights"]["plain"]
    assert all(len(seconds) == 1 and min(seconds) > 0 for seconds in networks["train"].values())
    assert all(0 < bits < 100 for bits in networks["bits"].values())
    assert set(samples["samplers"]) == {"Ancestral", "Euler", "DDIM", "Heun"}


def test_the_plain_loop_trains_what_the_lab_trains(tmp_path: Path) -> None:
    """The same weights, images, noise and levels: one loss."""
    bench, vae, loop = module("diffusion"), module("vae"), module("loop")
    vae.digits_as_mnist(tmp_path, 256, 128)
    plain = bench.Plain(tmp_path, "mnist", None, bench.RATES["plain"])
    _, model = loop.instantiated(bench.config(tmp_path, "mnist", 1))
    x, noise, levels = plain.data.as_pixels(plain.data.x[:8]), torch.randn(8, 784), torch.linspace(-8, 7, 8)
    from lab.models.diffusion import squared_errors

    theirs = squared_errors(plain.model.net, 2 * x - 1, noise, levels).mean() / 784
    torch.testing.assert_close(model.objective((x, 1.0, noise, levels))[0], theirs)
    before = [p.detach().clone() for p in plain.model.net.parameters()]
    assert plain.train(3) > 0  # what starts at 0 holds back what lies before it for a step or two
    assert not any(map(torch.equal, before, plain.model.net.parameters()))


def test_every_solver_of_transport_is_held_to_one_error(tmp_path: Path) -> None:
    """The peers that come with the lab, in this process: each reaches the target, and all of them one plan."""
    sinkhorn = module("sinkhorn")
    sinkhorn.write_problem(tmp_path, 40, 0.05)
    with np.load(tmp_path / "problem.npz") as file:
        problem = {key: file[key] for key in file.files} | {"epsilon": float(file["epsilon"])}
    plans = []
    for worker in ("lab", "POT, numpy", "POT, torch"):
        for solve, settings in sinkhorn.WORKERS[worker](problem).values():
            plan = np.asarray(solve(settings[0] if worker == "lab" else 1e-11))
            assert sinkhorn.error(plan, problem["a"], problem["b"]) <= sinkhorn.TARGET
            plans.append(plan)
    assert len(plans) == 5
    for plan in plans[1:]:
        np.testing.assert_allclose(plan, plans[0], atol=1e-9)


@pytest.mark.integration
def test_sinkhorn_times_all_that_are_there(tmp_path: Path) -> None:
    """The whole of --quick; who is not installed is named."""
    samples = quick("sinkhorn", tmp_path)
    [found] = samples.values()
    assert {"lab", "lab, log domain", "POT, numpy", "POT, torch", "POT, torch, log domain"} <= set(found["seconds"])
    assert all(one["reached"] <= 1e-9 for name, one in found["found"].items() if name in found["seconds"])


@pytest.mark.integration
def test_the_transformers_loops_are_timed_and_judged(tmp_path: Path) -> None:
    """The whole of --quick: each worker trains and tells its loss, all of the same text."""
    samples = quick("transformer", tmp_path)
    assert all(len(seconds) == 1 and min(seconds) > 0 for seconds in samples["seconds"].values())
    assert samples["weights"]["lab"] == samples["weights"]["plain"]
    assert abs(samples["weights"]["published"] / samples["weights"]["lab"] - 1) < 0.02
    assert all(0 < loss < 6 for loss in samples["losses"].values())


def test_the_published_network_trains_on_the_labs_text(tmp_path: Path) -> None:
    """The network written out is a causal one whose table of symbols is its logits', and its loop moves all weights."""
    bench = module("transformer")
    text = tmp_path / "text.txt"
    bench.own_source(text)
    made = bench.Loop(text, bench.published_network(""), tmp_path)
    x, y = made.batch()
    assert x.shape == y.shape == (12, 64)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert made.net.lm_head.weight is made.net.wte.weight
    before = [p.detach().clone() for p in made.net.parameters()]
    first = made.net.loss(x, y).item()
    assert abs(first - 4.85) < 0.3  # ln 128: nothing is known yet
    assert made.train(3) > 0
    assert not any(map(torch.equal, before, made.net.parameters()))
    assert made.net.loss(x, y).item() < first


def test_both_ways_of_the_labs_network_have_one_loss(tmp_path: Path) -> None:
    bench, loop = module("transformer"), module("loop")
    text = tmp_path / "text.txt"
    bench.own_source(text)
    plain = bench.Loop(text, None, tmp_path)
    data, model = loop.instantiated(bench.config(text, 1))
    tokens = data.held_out(5)
    loss, _ = model.objective(((tokens,), 1.0))
    torch.testing.assert_close(plain.net.loss(tokens[:, :-1], tokens[:, 1:]), loss)
    _, other = loop.instantiated(bench.config(text, 1, "model.net.fused=false"))
    torch.testing.assert_close(other.objective(((tokens,), 1.0))[0], loss)


@pytest.mark.integration
def test_copies_of_a_run_are_runs_of_a_sweep(tmp_path: Path) -> None:
    """The whole of --quick: every part has seen all the copies, or ends with an error, and each point is there."""
    samples = quick("scale", tmp_path)
    assert 1_000 < samples.pop("memory") < 1_000_000
    assert len(samples) == 2 * 5 + 1
    assert all(len(seconds) == 1 and min(seconds) > 0 for seconds in samples.values())


def test_a_copied_run_has_its_own_k_and_seed(tmp_path: Path) -> None:
    from lab.compare.load import load

    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("name: pca_autoencoder\nk: 8\nseed: 0\nmodel:\n  net:\n    k: 8\n    d: 64\n")
    (run / "figure.png").touch()
    module("scale").copies(run, tmp_path / "sweep", 12)
    found = load([str(tmp_path / "sweep")])
    assert [(run.config["k"], run.config["model.net.k"], run.config["seed"]) for run in found] == [
        (1 + i % 10, 1 + i % 10, i // 10) for i in range(12)
    ]
    assert {run.config["model.net.d"] for run in found} == {64}
    assert (tmp_path / "sweep" / "k=1,seed=0" / "figure.png").samefile(run / "figure.png")
