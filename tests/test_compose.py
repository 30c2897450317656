"""Overrides become one composition, and every mistake in them or in conf/ becomes one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lab import compose as module
from lab.compose import changed, compose, plain
from lab.compose.files import experiments, lineage, source
from lab.compose.overrides import rewrite, verbatim
from lab.errors import Refusal

PCA = "experiment=pca_autoencoder"


def refusal(*overrides: str) -> str:
    with pytest.raises(Refusal) as refused:
        plain(compose(overrides))
    line = str(refused.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("override", "rewritten"),
    [
        ("seed=1", "++seed=1"),
        ("model.optimizer.nesterov=true", "++model.optimizer.nesterov=true"),
        ("title='a, b = c'", "++title='a, b = c'"),
        ("data.designs={a: {d: 3}}", "++data.designs={a: {d: 3}}"),
        ("+seed=1", "+seed=1"),
        ("++seed=1", "++seed=1"),
        ("~claims.projector", "~claims.projector"),
        ("logger=none", "logger=none"),
        ("trainer=default", "trainer=default"),
        ("data@data=digits", "data@data=digits"),
        ("hydra.verbose=true", "hydra.verbose=true"),
        ("hydra/job_logging=none", "hydra/job_logging=none"),
    ],
)
def test_plain_keys_need_no_plus(override: str, rewritten: str) -> None:
    assert rewrite([PCA, override]) == [PCA, rewritten]


def test_a_key_of_no_file_can_be_set() -> None:
    cfg = compose([PCA, "model.optimizer.eps=1e-6", "seed=3"])
    assert cfg.model.optimizer.eps == 1e-6
    assert cfg.seed == 3
    assert "hydra" not in cfg


def test_a_variant_builds_on_its_base() -> None:
    assert lineage("pca_autoencoder_mnist") == ("pca_autoencoder_mnist", "pca_autoencoder")
    assert source("pca_autoencoder_mnist")["claims"] == source("pca_autoencoder")["claims"]
    assert source("pca_autoencoder_mnist")["title"] != source("pca_autoencoder")["title"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            [PCA, "data=[digits,mnist]"],
            ["data=[digits,mnist] is not allowed: a run has one data; allowed: ", ", digits,"],
        ),
        ([PCA, "logger=[wandb,none]"], ["logger=[wandb,none] is not allowed: a run has one logger"]),
        (["experiment=[vae,pca_autoencoder]"], ["experiment=[vae,pca_autoencoder] is not allowed: a run has one"]),
        ([PCA, "séed=1"], ["séed=1 is not an override Hydra can read", "did you mean 'seed'?"]),
        ([PCA, "model.net.k=${kk}"], ["model.net.k refers to kk, which is not there, did you mean 'k'?"]),
        ([], ["no experiment", *experiments()]),
        (["seed=1"], ["no experiment", *experiments()]),
        (["experiment=pca_autoencodr"], ["experiment=pca_autoencodr", "allowed", "did you mean 'pca_autoencoder'?"]),
        ([PCA, "model=linear_autoencodr"], ["model=linear_autoencodr", "did you mean 'linear_autoencoder'?"]),
        ([PCA, "logger=wandbb"], ["logger=wandbb", "none", "did you mean 'wandb'?"]),
        ([PCA, "trainer=null"], ["trainer=null", "default"]),
        ([PCA, "modle/x=1"], ["modle/x=1", "no config group", "did you mean 'model'?"]),
        ([PCA, "hydra/launcher=nowhere"], ["hydra/launcher=nowhere", "local"]),
        ([PCA, "trainer.max_steps=[1"], ["trainer.max_steps=[1", "not an override"]),
        ([PCA, "foo"], ["foo", "key=value"]),
        ([PCA, "pca_autoencoder"], ["did you mean 'experiment=pca_autoencoder'?"]),
        ([PCA, "a b=1"], ["a b=1", "not an override"]),
        ([PCA, "seed=0,1"], ["seed=0,1 has several values: -m runs each of them"]),
        ([PCA, "model.optimizer.betas=0,1"], ["-m runs each of them, model.optimizer.betas=[0,1] is a list"]),
        ([PCA, "~nothing"], ["nothing"]),
        ([PCA, "+seed=1"], ["seed"]),
        ([PCA, "name=another"], ["name=another", "conf/experiment/pca_autoencoder.yaml"]),
        ([PCA, "k=???"], ["k=???", "missing"]),
        ([PCA, "k=${kk}"], ["kk", "did you mean 'k'?"]),
        ([PCA, "seed=${oc.env:NO_SUCH_VARIABLE}"], ["seed", "NO_SUCH_VARIABLE"]),
        ([PCA, "hydra.nothing=1"], ["hydra.nothing"]),
        ([PCA, "claims={}"], ["claims={} changes nothing", "~claims.<name>"]),
        ([PCA, "=3"], ["=3 is not an override", "without a space"]),
    ],
)
def test_one_line_for_every_mistake(overrides: list[str], words: list[str]) -> None:
    line = refusal(*overrides)
    for word in words:
        assert word in line


def test_yaml_error_names_file_and_line(conf: Path) -> None:
    (conf / "experiment" / "broken.yaml").write_text(
        "# @package _global_\nname: broken\ntitle: [unclosed\nchapter: 1\n"
    )
    assert refusal("experiment=broken").startswith("conf/experiment/broken.yaml line 4 is not YAML")
    with pytest.raises(Refusal, match=r"conf/experiment/broken.yaml line \d"):
        source("broken")


def test_yaml_error_in_a_group(conf: Path) -> None:
    (conf / "trainer" / "default.yaml").write_text("a: b: c\n")
    assert "conf/trainer/default.yaml line 1 is not YAML" in refusal(PCA)


def test_option_missing_in_an_experiment_file(conf: Path) -> None:
    path = conf / "experiment" / "pca_autoencoder.yaml"
    path.write_text(path.read_text().replace("/data: digits", "/data: digitss"))
    line = refusal(PCA)
    assert "data=digitss" in line
    assert "did you mean 'digits'?" in line


def test_name_is_the_file(conf: Path) -> None:
    shutil.copy(conf / "experiment" / "pca_autoencoder.yaml", conf / "experiment" / "other.yaml")
    assert (
        refusal("experiment=other")
        == "name=pca_autoencoder must equal the name of its file, conf/experiment/other.yaml"
    )


def test_missing_name(conf: Path) -> None:
    path = conf / "experiment" / "pca_autoencoder.yaml"
    path.write_text(path.read_text().replace("\nname: pca_autoencoder\n", "\n"))
    assert refusal(PCA).startswith("name=???")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("# @package _global_\n", "", "must begin with the line '# @package _global_'"),
        ("override /data:", "override /dta:", "defaults choose in dta, no group; allowed: callbacks, data"),
        ("override /data: digits", "override /data", "override /data is no entry of defaults"),
        ("  - override /data: digits\n", "", "data=??? is missing: the defaults of the experiment choose one"),
        ("chapter", "\udcff", "conf/experiment/pca_autoencoder.yaml cannot be read: 'utf-8' codec"),
        (None, "", "conf/experiment/pca_autoencoder.yaml is empty"),
    ],
)
def test_a_spoilt_experiment_file(conf: Path, old: str | None, new: str, said: str) -> None:
    path = conf / "experiment" / "pca_autoencoder.yaml"
    content = path.read_text()
    path.write_text(content.replace(old, new, 1) if old else new, errors="surrogateescape")
    assert said in refusal(PCA)


def test_a_group_file_that_is_not_utf8(conf: Path) -> None:
    (conf / "data" / "digits.yaml").write_bytes(b"seed: \xff\n")
    assert refusal(PCA).startswith("conf/data/digits.yaml is not UTF-8 text")


def test_more_overrides_need_no_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose([PCA])
    grouped = changed(cfg, ["data=mnist", "k=3"])
    monkeypatch.setattr(module, "compose", None)
    other = changed(cfg, ["model.net.k=9", "model.optimizer.eps=1e-6"])
    assert (other.model.net.k, other.model.optimizer.eps, cfg.model.net.k) == (9, 1e-6, 8)
    assert (grouped.data.source, grouped.k) == ("mnist", 3)


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), module.refusals():
        raise ZeroDivisionError


def test_a_variant_takes_out_what_it_sets_to_null(conf: Path) -> None:
    (conf / "experiment" / "fewer.yaml").write_text(
        "# @package _global_\ndefaults: [pca_autoencoder]\nname: fewer\nclaims: {projector: null}\n"
        "controls: {no_order: null, relu_bottleneck: {refutes: [principal_angles]}}\n"
    )
    composed, said = compose(["experiment=fewer"]), source("fewer")
    for found in (composed, said):
        assert "projector" not in found["claims"]
        assert "principal_angles" in found["claims"]
        assert set(found["controls"]) == {"relu_bottleneck", "one_more_code"}
    assert "projector" in source("pca_autoencoder")["claims"]


def test_an_experiment_that_builds_on_itself(conf: Path) -> None:
    for name, base in (("loop", "knot"), ("knot", "loop")):
        text = f"# @package _global_\ndefaults:\n  - {base}\nname: {name}\n"
        (conf / "experiment" / f"{name}.yaml").write_text(text)
    assert "conf/experiment/loop.yaml builds on itself: loop → knot → loop" in refusal("experiment=loop")


@pytest.mark.parametrize("key", ["run_dir", "++run_dir", "hydra.sweep.dir"])
@pytest.mark.parametrize(
    "name", ["/tmp/x/k=4,seed=0", "a b", "it's", "[x]", "a,b", "1e3", "true", "x(1)", "a{b", "é", "#x", "end\\", "a:b"]
)
def test_a_folder_is_named_as_it_is_written(key: str, name: str) -> None:
    assert module.parse(verbatim(f"{key}={name}")).value() == name


@pytest.mark.parametrize(
    "text",
    ["run_dir='a=b'", 'run_dir="a=b"', "run_dir=runs/a", "run_dir=null", "run_dir=", "run_dir=r/${seed}", "seed=1,2"],
)
def test_what_hydra_reads_as_it_is_written_is_not_quoted(text: str) -> None:
    assert verbatim(text) == text
