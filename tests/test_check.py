"""What can be refused without torch is, in a line that names key, value, what is allowed and the nearest name."""

from __future__ import annotations

import os
import sys
from collections import namedtuple
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from annotated_types import Ge, Le

from lab import check, machine
from lab.compose import compose
from lab.compose.files import experiments
from lab.errors import Refusal
from lab.signature import Opaque
from lab.signature.values import describe

PCA, LINEAR = "experiment=pca_autoencoder", "experiment=linear_regression"


@pytest.fixture(autouse=True)
def two_cores_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "visible_gpus", lambda: 0)
    monkeypatch.setattr(machine, "usable_cores", lambda: [0, 1])


def edit(conf: Path, **changes: Any) -> None:
    """Change top-level entries of the experiment pca_autoencoder; None removes one."""
    path = conf / "experiment" / "pca_autoencoder.yaml"
    content = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        content[key] = value
        if value is None:
            del content[key]
    path.write_text("# @package _global_\n" + yaml.safe_dump(content))


def refusal(*overrides: str) -> str:
    with pytest.raises(Refusal) as refused:
        check.check(compose(overrides))
    line = str(refused.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", experiments())
def test_every_experiment_is_accepted(name: str) -> None:
    check.check_config(compose([f"experiment={name}"]))


@pytest.mark.parametrize(
    "override",
    [
        "model.optimizer.eps=1e-6",
        "model.optimizer.lr=1",  # an integer is a number
        "model.optimizer.betas=[0.5,0.9]",  # a list is a tuple
        "k=3",
        "model.net.k=9",  # takes away the one use of ${k} in the model; k stays a key of the experiment
        "trainer.devices=2",
        "trainer.devices=auto",
        "trainer.accelerator=cpu",
        "trainer.detect_anomaly=true",
        "logger=none",
        "logger.wandb.project=other",
        "seed=4294967295",
        "run_dir=a/new/place",
        "~claims.ordered_variances ~controls.no_order",
    ],
)
def test_what_is_right_is_accepted(override: str, tmp_path: Path) -> None:
    check.check(compose([PCA, *override.split()]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        # unknown keys
        ("kk=3", ["unknown key kk=3", "did you mean 'k'?"]),
        ("K=3", ["unknown key K=3", "did you mean 'k'?"]),
        ("banana=3", ["unknown key banana=3; allowed: callbacks, chapter, claims,", "k, logger", "trainer"]),
        ("sed=3", ["unknown key sed=3", "did you mean 'seed'?"]),
        ("modle.net.k=3", ["unknown key modle=", "did you mean 'model'?"]),
        ("model.nett.k=3", ["unknown key model.nett=", "did you mean 'model.net'?"]),
        (
            "model.net.activaton=relu",
            ["model.net.activaton=relu", "did you mean 'model.net.activation'?", "takes d, k"],
        ),
        ("trainer.max_step=3", ["trainer.max_step=3", "did you mean 'trainer.max_steps'?"]),
        ("model.optimizer.lrr=3", ["model.optimizer.lrr=3", "did you mean 'model.optimizer.lr'?"]),
        ("claims.projector.kk=3", ["claims.projector.kk=3", "did you mean 'claims.projector.k'?"]),
        ("logger.wandb.projct=x", ["logger.wandb.projct=x", "did you mean 'logger.wandb.project'?"]),
        ("callbacks.progres.every=3", ["callbacks.progres", "did you mean 'callbacks.progress'?"]),
        # under the wrong parent
        ("model.k=1", ["unknown key model.k=1, did you mean 'k' or 'model.net.k'?; Reconstruction takes optimizer"]),
        ("model.lr=1", ["unknown key model.lr=1, did you mean 'model.optimizer.lr'?"]),
        ("model.weight_decay=1", ["did you mean 'model.optimizer.weight_decay'?"]),  # in a signature, in no file
        ("model.optimizr.lr=1", ["did you mean 'model.optimizer'?"]),
        ("max_steps=3", ["unknown key max_steps=3, did you mean 'trainer.max_steps'?; allowed: callbacks"]),
        ("max_epochs=3", ["unknown key max_epochs=3; allowed: callbacks"]),  # the lab's own to set
        ("optimizer.lr=3", ["unknown key optimizer={", "did you mean 'model.optimizer'?"]),
        ("lr=1 data.lr=2", ["unknown key lr=1, did you mean 'model.optimizer.lr'?"]),  # not the other wrong one
        ("sweep_dir=x", ["unknown key sweep_dir=x, did you mean 'hydra.sweep.dir'?"]),
        ("n_jobs=2", ["unknown key n_jobs=2, did you mean 'hydra.launcher.n_jobs'?"]),
        ("n_trials=2", ["unknown key n_trials=2, did you mean 'hydra.sweeper.n_trials'?"]),
        ("model.optimizer._partial=true", ["model.optimizer._partial=true"]),
        ("model.optimizer._prtial_=true", ["model.optimizer._prtial_=true", "did you mean '_partial_'?"]),
        # targets
        ("model.optimizer._target_=torch.optim.SGDD", ["torch.optim.SGDD", "did you mean 'torch.optim.SGD'?"]),
        ("model._target_=lab.models.nowhere.X", ["model._target_=lab.models.nowhere.X", "has no nowhere"]),
        ("model._target_=3", ["model._target_=3"]),
        ("~model._target_", ["model=", "_target_"]),
        ("model.optimizer._target_=os.system", ["os.system is not allowed: it must make a torch.optim", "Optimizer"]),
        ("model.optimizer._target_=torch.optim.LBFGS", ["torch.optim.LBFGS", "its step needs closure"]),
        (
            "model.scheduler={_target_:torch.optim.lr_scheduler.ReduceLROnPlateau} ~model.scheduler.T_max",
            ["ReduceLROnPlateau", "its step needs metrics"],
        ),
        (
            "model.optimizer._target_=torch.optim.SparseAdam",
            ["torch.optim.SparseAdam is not allowed", "sparse gradients"],
        ),
        (
            "model.optimizer={_target_:torch.optim.Optimizer,_partial_:true}",
            ["torch.optim.Optimizer is not allowed: only a class built on Optimizer takes a step"],
        ),
        (
            "model.optimizer.fused=true model.optimizer.foreach=true",
            ["model.optimizer.fused=true is not allowed with model.optimizer.foreach=true"],
        ),
        (
            "data._target_=lab.data.digits.CentredImages",
            ["CentredImages is not allowed: CentredImages leaves images to the classes built on it"],
        ),
        (
            "claims.projector._target_=lab.claim.Claim",
            ["lab.claim.Claim is not allowed: Claim leaves predict, measure to"],
        ),
        ("model.optimizer._partial_=false", ["model.optimizer._partial_ must be true", "Adam"]),
        ("model.net._partial_=true", ["model.net._partial_ must be false", "LinearAutoencoder"]),
        (
            "model.net._target_=lab.nets.autoencoder.OrderedAutoencoder",
            ["model.net._target_=lab.nets.autoencoder.OrderedAutoencoder", "a lab.nets.autoencoder.LinearAutoencoder"],
        ),
        (
            "model._target_=torch.nn.Identity",
            ["model._target_=torch.nn.Identity", "a lab.models.stepped.SteppedModule"],
        ),
        ("data._target_=lab.claim.Run", ["data._target_=lab.claim.Run", "a lab.data.blocks.InMemoryData"]),
        ("claims.projector._target_=os.system", ["claims.projector._target_=os.system", "a lab.claim.Claim"]),
        ("callbacks.progress._target_=lab.claim.Run", ["callbacks.progress._target_=lab.claim.Run", "Callback"]),
        ("logger.wandb._target_=lab.claim.Run", ["logger.wandb._target_=lab.claim.Run", "a lab.loggers.Wandb"]),
        ("data.seed={_target_:os.getpid}", ["data.seed._target_=os.getpid", "data.seed is an integer"]),
        ("~model.ordered.d", ["model.ordered.d is missing", "an integer ≥ 1"]),
        ("~logger", ["logger is missing", "logger=none"]),
        ("model.optimizer=adam", ["model.optimizer=adam", "_target_"]),
        ("data=null data.seed=1", ["data=null"]),
        # types and ranges
        ("seed=-1", ["seed=-1", "≥ 0"]),
        ("seed=4294967296", ["seed=4294967296", "≤ 4294967295"]),
        ("seed=1.5", ["seed=1.5", "an integer"]),
        ("seed=true", ["seed=true", "an integer"]),
        ("seed=null", ["seed=null", "an integer"]),
        ("seed='1'", ["seed=1", "an integer"]),
        ("threads=0", ["threads=0", "≥ 1"]),
        ("chapter=7", ["chapter=7", "one of 1, 2, 3, 4, 5, 6"]),
        ("run_dir=3", ["run_dir=3", "a text"]),
        ("data_root=null", ["data_root=null", "a text"]),
        ("data_root=", ['data_root=""', "not empty"]),
        ("logger.wandb.project=", ['logger.wandb.project=""', "not empty"]),
        ("control=no_ordr", ["control=no_ordr is not a control", "relu_bottleneck", "did you mean 'no_order'?"]),
        ("~callbacks.checkpoints", ["callbacks.checkpoints is missing: nothing would be saved", "every_seconds"]),
        ("claims.projector=null", ["claims.projector=null is not allowed: ~claims.projector takes it out"]),
        ("model.scheduler.T_max=0", ["model.scheduler.T_max=0", "≥ 1"]),
        ("trainer.profiler=foo", ["trainer.profiler=foo", "one of simple, advanced, pytorch or null"]),
        ("threads=3", ["threads=3", "1..2, the cores"]),
        (f"run_dir={'a' * 300}", ["run_dir=aaa", "name too long"]),
        ("seed=${trainer}", ["(seed is ${trainer}) is not allowed: an integer"]),
        ("title=${data}", ["(title is ${data}) is not allowed: a text"]),
        ("objective=${data}", ["(objective is ${data}) is not allowed: a text"]),
        ("chapter=[${data}]", ["chapter=[", "one of 1, 2, 3, 4, 5, 6"]),
        ("logger.wandb.tags=[${data}]", ["logger.wandb.tags[0]._target_=lab.data.digits.Digits is not allowed"]),
        ("callbacks.progres=1", ["callbacks.progres=1 has no _target_, did you mean 'callbacks.progress'?"]),
        ("data.batch_size=1797 trainer.devices=2", ["2 processes", "the nearest allowed: 1796"]),
        ("k=0", ["k=0 (model.net.k is ${k})", "≥ 1"]),
        ("k=64", ["k=64 (model.net.k is ${k}) must be less than d=64"]),
        ("model.net.k=65", ["model.net.k=65 must be less than d=64"]),
        ("model.ordered.k=65", ["model.ordered.k=65 must be at most d=64"]),
        ("model.net=null", ["model.net=null", "a node with a _target_"]),
        ("model.net.k=abc", ["model.net.k=abc", "an integer ≥ 1"]),
        ("model.net.activation=rellu", ["model.net.activation=rellu", "one of identity, relu", "did you mean 'relu'?"]),
        ("model.optimizer.lr=fast", ["model.optimizer.lr=fast", "a number"]),
        ("model.optimizer.lr=nan", ["model.optimizer.lr=NaN", "a finite number"]),
        ("model.optimizer.betas=[nan,0.9]", ["model.optimizer.betas=[", "a finite number"]),
        ("model.optimizer.lr=-1", ["model.optimizer.lr=-1", "Invalid learning rate"]),
        ("model.optimizer.betas=[0.9,2]", ["model.optimizer.betas=[0.9, 2]", "beta"]),
        ("model.optimizer.betas=[0.9]", ["model.optimizer.betas=[0.9]", "a list of 2"]),
        ("trainer.precision=17", ["trainer.precision=17", "64-true"]),
        ("trainer.max_steps=0", ["trainer.max_steps=0", "≥ 1"]),
        ("trainer.max_epochs=3", ["trainer.max_epochs=3", "set by the lab"]),
        ("logger.wandb.id=x", ["logger.wandb.id=x", "set by the lab", "id="]),
        ("~claims", ["claims is missing"]),
        # devices
        ("trainer.devices=3", ["trainer.devices=3", "1..2", "cores"]),
        ("trainer.devices=0", ["trainer.devices=0", "≥ 1"]),
        ("trainer.devices=two", ["trainer.devices=two"]),
        ("trainer.devices=[0]", ["trainer.devices=[0]", "1..2"]),
        ("trainer.accelerator=gpu", ["trainer.accelerator=gpu", "cpu, auto"]),
        ("trainer.num_nodes=0", ["trainer.num_nodes=0", "≥ 1"]),
        ("trainer.num_nodes=2", ["trainer.num_nodes=2", "hydra/launcher=slurm"]),
        ("trainer.precision=16-mixed", ["trainer.precision=16-mixed", "bf16-mixed"]),
        (
            "trainer.accumulate_grad_batches=2",
            ["trainer.accumulate_grad_batches=2", "set by the lab; use model.accumulate"],
        ),
        ("trainer.gradient_clip_val=1", ["trainer.gradient_clip_val=1", "use model.clip"]),
        ("model.ema=1", ["model.ema=1", "> 0 and < 1"]),
        ("model.ema=0.9 trainer.precision=bf16-true", ["model.ema=0.9", "bf16-mixed"]),
        ("model.ema=0.9 trainer.strategy=fsdp", ["model.ema=0.9", "auto, ddp"]),
        ("trainer.strategy=dpd", ["trainer.strategy=dpd", "auto, ddp, fsdp"]),
        (
            "trainer.strategy=fsdp trainer.precision=64-true",
            ["64-true is not allowed with trainer.strategy=fsdp"],
        ),
        ("trainer.accelerator=cpuu", ["trainer.accelerator=cpuu", "did you mean 'cpu'?"]),
    ],
)
def test_what_is_wrong_is_refused(override: str, words: list[str]) -> None:
    line = refusal(PCA, *override.split())
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.designs.tall.samples=[]", ["data.designs.tall.samples=[]", "a list that is not empty, each an integer"]),
        ("data.designs.tall.replicates=3", ["data.designs.tall.replicates=3 is less than the 5 sizes"]),
        ("data.designs.tal.d=3", ["data.designs.tal={", "did you mean 'data.designs.tall'?"]),
        ("model.nets.tal.features=3", ["model.nets.tal={", "did you mean 'model.nets.tall'?"]),
        ("data.designs.tall.noise=1e308", ["data.designs.tall.noise=1e+308", "≤ 1000000000000"]),
        ("data.designs.tall.top=1e-300", ["data.designs.tall.top=1e-300", "≥ 1e-12"]),
        (
            "trainer.max_steps=1000000000000",
            ["data.designs.tall.replicates=320 (model.record is", "trainer.max_steps=1000000000000 is more than 10^9"],
        ),
        ("model.nets.extra=null", ["model.nets.extra=null", "a lab.nets.linear.ReplicatedLinear"]),
        ("model.nets.extra=3", ["model.nets.extra=3", "a lab.nets.linear.ReplicatedLinear"]),
        ("model.nets=null", ["model.nets=null", "a mapping"]),
        ("model.nets.tall._target_=lab.nets.autoencoder.OrderedAutoencoder", ["model.nets.tall._target_="]),
        ("trainer.strategy=fsdp", ["trainer.strategy=fsdp is not allowed: LeastSquares needs its weights whole"]),
        ("model.steps=5", ["unknown key model.steps=5", "takes nets, optimizer, record"]),
    ],
)
def test_what_is_wrong_with_nodes_by_name_is_refused(override: str, words: list[str]) -> None:
    line = refusal(LINEAR, override)
    for word in words:
        assert word in line


def test_a_net_of_images_has_channels() -> None:
    line = refusal("experiment=diffusion_digits", "model.net.channels=[]")
    assert line == "model.net.channels=[] is not allowed: a list that is not empty, each an integer ≥ 1"


def test_a_frechet_distance_has_images_for_its_error() -> None:
    line = refusal("experiment=diffusion_digits", "claims.frechet.n=19")
    assert line == "claims.frechet.n=19 is not allowed: an integer ≥ 20"


def test_an_empty_data_root_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_DATA", "")
    assert 'data_root="" (it is ${oc.env:LAB_DATA,data}) is not allowed' in refusal(PCA)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.inner.tolerance=1e-30", ["model.inner.tolerance=1e-30", "≥ 1e-15"]),
        ("model.inner.relaxation=2.5", ["model.inner.relaxation=2.5", "> 0 and < 2 or null"]),
        ("model.inner.max_iterations=0", ["model.inner.max_iterations=0", "≥ 1"]),
        ("model.solver.annealing=1.5", ["model.solver.annealing=1.5", "> 0 and < 1 or null"]),
        ("model.solver.tolerance=1e-30", ["model.solver.tolerance=1e-30", "≥ 1e-15"]),
        ("model.inner.method=fast", ["model.inner.method=fast", "one of scaling, log"]),
        ("model.solver._target_=lab.algorithms.sinkhorn.sinkhorn", ["a lab.algorithms.sinkhorn.Sinkhorn"]),
    ],
)
def test_parameters_of_sinkhorns_algorithm(override: str, words: list[str]) -> None:
    line = refusal("experiment=sinkhorn_ot", override)
    for word in words:
        assert word in line


def test_batch_over_processes() -> None:
    check.check(compose([LINEAR, "trainer.devices=2", "data.designs.wide.batch_size=10"]))
    line = refusal(LINEAR, "trainer.devices=2", "data.designs.wide.batch_size=9")
    assert line.startswith("data.designs.wide.batch_size=9 does not divide over 2 processes")
    assert "8 or 10" in line
    assert "allowed: 2" in refusal(LINEAR, "trainer.devices=2", "data.designs.wide.batch_size=1")


def test_keys_inside_an_experiment_file(conf: Path) -> None:
    edit(conf, model={"net": {"d": 64, "activaton": "relu"}})
    assert "model.net.activaton=relu, did you mean 'model.net.activation'?" in refusal(PCA)
    edit(conf, model={"net": {"d": 64}}, trainer={"max_steps": 3, "devicess": 1})
    assert "trainer.devicess=1, did you mean 'trainer.devices'?" in refusal(PCA)
    edit(conf, title=None, titel="A title")
    assert refusal(PCA).startswith("unknown key titel=A title, did you mean 'title'?")
    edit(conf, title="A title", titel=None, trainer={"max_steps": 3}, kk=3)
    assert refusal(PCA).startswith("unknown key kk=3, did you mean 'k'?")


@pytest.mark.parametrize(
    ("control", "words"),
    [
        ({"overrides": ["k=1"], "because": "x"}, ["controls.c.refutes is missing"]),
        ({"overrides": ["k=1"], "refutes": [], "because": "x"}, ["controls.c.refutes=[]", "not empty"]),
        ({"overrides": ["k=1"], "refutes": ["projectr"], "because": "x"}, ["projectr", "did you mean 'projector'?"]),
        ({"overrides": "k=1", "refutes": ["projector"], "because": "x"}, ["controls.c.overrides=k=1", "a list"]),
        ({"overrides": ["k=1"], "refutes": ["projector"], "because": ""}, ["controls.c.because=", "not empty"]),
        (
            {"overrides": ["k=1"], "refuts": ["projector"], "because": ""},
            ["controls.c.refuts", "did you mean 'refutes'?"],
        ),
        ("k=1", ["controls.c=k=1"]),
        (
            {"overrides": ["model.net.activaton=relu"], "refutes": ["projector"], "because": "x"},
            ["controls.c.overrides=", "unknown key model.net.activaton=relu", "did you mean 'model.net.activation'?"],
        ),
        (
            {"overrides": ["model.net.k=64"], "refutes": ["projector"], "because": "x"},
            ["controls.c.overrides=", "model.net.k=64 must be less than d=64"],
        ),
        (
            {"overrides": ["data=digitss"], "refutes": ["projector"], "because": "x"},
            ["controls.c.overrides=", "data=digitss does not exist", "did you mean 'digits'?"],
        ),
    ],
)
def test_controls(conf: Path, control: Any, words: list[str]) -> None:
    edit(conf, controls={"c": control})
    line = refusal(PCA)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        (
            {"figure": {"_target_": "lab.pictures.vae.Samples"}},
            ["pictures.figure is not allowed", "that of the claims"],
        ),
        ({"../x": {"_target_": "lab.pictures.vae.Samples"}}, ["pictures.../x is not allowed", "the name of a file"]),
        ({"plan": {"_target_": "lab.claim.Claim"}}, ["pictures.plan._target_=lab.claim.Claim", "lab.pictures.Picture"]),
        ({"plan": {"_target_": "lab.pictures.vae.Samples", "k": 3}}, ["unknown key pictures.plan.k=3"]),
        ({"plan": "lab.pictures.Picture"}, ["pictures.plan=lab.pictures.Picture has no _target_"]),
    ],
)
def test_pictures(conf: Path, pictures: Any, words: list[str]) -> None:
    edit(conf, pictures={"plan": {"_target_": "lab.pictures.vae.Samples"}})
    check.check_config(compose([PCA]))
    edit(conf, pictures=pictures)
    line = refusal(PCA)
    for word in words:
        assert word in line


def test_missing_data_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from lab.data import sources

    monkeypatch.setattr(sources, "_reachable", lambda *_: False)
    monkeypatch.setenv("LAB_DATA", "nowhere")
    line = refusal("experiment=pca_autoencoder_mnist")
    assert "data_root=nowhere" in line
    assert "train-images-idx3-ubyte" in line


def test_output_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refusal(PCA, "run_dir=file/run")
    assert line.startswith("run_dir=file/run is not allowed")
    assert "file is not a folder" in line
    (tmp_path / "outputs").touch()
    assert "outputs is not a folder" in refusal(PCA)


def test_output_not_writable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As root every folder is writable, so the system's refusal is played."""

    def full(**_: Any) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", full)
    assert (
        refusal(PCA, "run_dir=new/run")
        == f"run_dir=new/run cannot be written: no file can be made in {tmp_path} ({os.strerror(30)})"
    )


def test_disk_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(1, 1, 3 * 2**20))
    line = refusal(PCA)
    assert "3 MB free, a run needs 50 MB" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("visible", "count"),
    [(None, 4), ("", 0), ("-1", 0), ("0", 1), ("0,2", 2), ("0,7,1", 1), ("GPU-a,GPU-b", 2), ("MIG-a", 1), ("x", 0)],
)
def test_visible_gpus(monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int) -> None:
    monkeypatch.undo()  # the function itself
    monkeypatch.setattr(machine, "_torch_has_cuda", lambda: True)
    monkeypatch.setattr(machine, "_nvml_count", lambda: 4)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.visible_gpus.__wrapped__() == count


def test_devices_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "visible_gpus", lambda: 4)
    for chosen, size in (("auto", 4), ("3", 3), ("[1,3]", 2)):
        cfg = compose([PCA, f"trainer.devices={chosen}"])
        check.check(cfg)
        assert machine.accelerator(cfg) == "cuda"
        assert machine.world_size(cfg) == size
    assert "1..4, the GPUs" in refusal(PCA, "trainer.devices=5")
    assert "0..3" in refusal(PCA, "trainer.devices=[0,4]")
    assert "different" in refusal(PCA, "trainer.devices=[0,0]")
    assert "1..2, the cores" in refusal(PCA, "trainer.devices=3", "trainer.accelerator=cpu")


def test_world_size_on_a_cpu() -> None:
    assert machine.world_size(compose([PCA, "trainer.devices=auto"])) == 1
    assert machine.world_size(compose([PCA, "trainer.devices=2"])) == 2
    assert machine.accelerator(compose([PCA])) == "cpu"


@pytest.mark.skipif(sys.platform == "darwin", reason="there it means the Apple GPU")
def test_gpu_means_cuda() -> None:
    assert machine.accelerator(compose([PCA, "trainer.accelerator=gpu"])) == "cuda"


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Annotated[int, Ge(1)], "an integer ≥ 1"),
        (Annotated[float, Ge(0), Le(1)] | None, "a number ≥ 0 and ≤ 1 or null"),
        (Literal["a", "b"] | Literal["b"] | None, "one of a, b or null"),
        (list[int], "a list, each an integer"),
        (tuple[float, int], "a list of 2 (a number, an integer)"),
        (dict[str, float], "a mapping to a number"),
        (Opaque, "a node with a _target_"),
    ],
)
def test_types_in_words(annotation: Any, words: str) -> None:
    assert describe(annotation) == words
