"""Comparing runs that were made elsewhere: what is read, what is refused, what the tables and the page say."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import paths
from lab.cli import compare
from lab.cli.compare import main
from lab.compare import wandb as from_wandb
from lab.compare.load import Loaded, load
from lab.compare.page import POINTS, page, thinned
from lab.compare.table import Comparison, cell, text
from lab.errors import Refusal
from lab.wandb_server import STEP

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes a run directory as another machine's lab would have left it."""
    monkeypatch.chdir(tmp_path)

    def run(
        name: str,
        seed: int = 0,
        k: int = 4,
        *,
        measured: float | None = 1.0,
        experiment: str = "pca",
        claims: int = 0,
        **config: Any,
    ) -> Path:
        path = Path(name)
        path.mkdir(parents=True)
        frozen = {
            "name": experiment,
            "seed": seed,
            "k": k,
            "model": {"net": {"k": k, "seed": seed}},
            "id": path.name,
        } | config
        (path / "config.yaml").write_text(yaml.safe_dump(frozen))
        claim = {"name": "error", "relation": "equal", "predicted": 1.0, "measured": measured, "standard_error": 0.0}
        claim |= {"tolerance": 0.5, "difference": 0.0, "holds": measured == 1.0, "of another version": [1, 2]}
        more = [claim | {"name": f"{experiment}_claim_with_a_long_name_{i}"} for i in range(claims)]
        record = {"experiment": experiment, "chapter": 3, "holds": True, "claims": more or [claim]}
        record["provenance"] = {"seed": seed, "seconds": 2.0 + seed}
        (path / "verdict.json").write_text(json.dumps(record))
        (path / "metrics.csv").write_text(f"step,loss/net,loss/other\n0,10.0,1.0\n50,{k + seed},{seed}\n")
        return path

    return run


def sweep_of(*points: Path) -> None:
    record = {"experiment": "pca", "overrides": [], "objective": None}
    entries = [{"name": path.name, "values": {"k": path.name[2:]}, "digest": ""} for path in points]
    (points[0].parent / "sweep.json").write_text(json.dumps(record | {"points": entries}))


def test_runs_sweeps_folders_and_patterns_are_found(make: Make) -> None:
    a, b, c = make("out/pca/a"), make("out/sweeps/pca/s/k=4"), make("out/sweeps/pca/s/k=8", k=8)
    sweep_of(b, c, Path("out/sweeps/pca/s/k=9"))
    assert [run.name for run in load([str(a)])] == ["a"]
    assert [run.name for run in load([str(a / "verdict.json")])] == ["a"]
    assert [(run.name, run.state) for run in load([str(b.parent)])] == [
        ("k=4", "done"),
        ("k=8", "done"),
        ("k=9", "waiting"),
    ]
    assert {run.name for run in load(["out"])} == {"a", "k=4", "k=8", "k=9"}
    assert Comparison(load(["out"])).title() == "4 runs of pca, 3 of 3 judged hold"
    assert len(Comparison(load(["out"])).parts) == 1  # a point that has not begun is of its sweep's experiment
    assert {run.name for run in load(["out/*/a", "out/sweeps/*/*/k=[48]"])} == {"a", "k=4", "k=8"}
    assert len(load([str(a), str(a), "out/pca"])) == 1


def test_same_names_are_told_apart(make: Make) -> None:
    make("x/s/a"), make("y/s/a"), make("z/b")
    assert {run.name for run in load(["x", "y", "z"])} == {"x/s/a", "y/s/a", "b"}


def test_what_lab_record_kept_is_a_run(make: Make) -> None:
    path = make("kept")
    (path / "config.yaml").unlink()
    (run,) = load(["kept"])
    assert (run.experiment, run.config["seed"], run.claims[0].measured) == ("pca", 0, 1.0)


def test_an_unfinished_run_says_why(make: Make) -> None:
    path = make("a")
    (path / "verdict.json").unlink()
    (path / "console.log").write_text("lab: trainer.devices=9 is too many\n")
    (run,) = load(["a"])
    assert (run.state, run.reason) == ("failed", "trainer.devices=9 is too many")
    assert run.curves["loss/net"] == ([0.0, 50.0], [10.0, 4.0])


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("verdict.json", '{"experiment": "pca", "cla', "verdict.json is torn: it is not JSON"),
        ("verdict.json", "[" * 100_000, "verdict.json is torn"),
        ("verdict.json", '{"claims": 3}', "is not a verdict: it has no experiment"),
        ("verdict.json", '{"experiment": "pca", "claims": [{}], "provenance": {}}', "is not a verdict"),
        ("config.yaml", "a: [", "config.yaml is torn or not the config of a run"),
        ("config.yaml", "!!python/object/apply:os.system [exit]", "config.yaml is torn or not the config"),
        ("config.yaml", "a: &a [1, 2]\nb: [*a, *a]", "config.yaml is torn or not the config"),
        ("config.yaml", "- 1\n", "config.yaml is torn or not the config"),
        ("metrics.csv", "step,loss\n0,abc\n", "metrics.csv is torn or no table of numbers"),
        ("metrics.csv", b"\xff\xfe\x00", "metrics.csv is torn or no table of numbers"),
    ],
)
def test_a_torn_file_is_one_line(
    make: Make, capsys: pytest.CaptureFixture[str], file: str, content: str | bytes, said: str
) -> None:
    (make("all/a") / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    make("all/b")
    with pytest.raises(Refusal, match=re.escape(said)):
        load(["all/a"])
    assert [run.name for run in load(["all"])] == ["b"]
    line = capsys.readouterr().err
    assert line.startswith("lab: left out: all/a/")
    assert said in line
    assert line.count("\n") == 1


def test_a_torn_last_row_of_the_metrics_is_left_out(make: Make) -> None:
    with (make("a") / "metrics.csv").open("a") as file:
        file.write("100,3")
    assert load(["a"])[0].curves["loss/net"] == ([0.0, 50.0], [10.0, 4.0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs/b"], r"runs/b does not exist, did you mean 'runs/a'\?"),
        (["empty"], "empty is no run and holds none: a run directory has config.yaml"),
        (["runs/*/nothing*"], r"runs/\*/nothing\* matches no run"),
        (["runs/a", "--by", "model.net.kk"], "--by model.net.kk is in no run's config, did you mean 'model.net.k'"),
        (["runs/a", "--metric", "loss/nett"], "--metric loss/nett is in no run, did you mean 'loss/net'"),
        (["runs/a", "--metric", "claim/eror"], "did you mean 'claim/error'"),
        (["runs/a", "--html", "nowhere/p.html"], "nowhere/p.html cannot be written: there is no such folder"),
        (["runs/a", "--hmtl", "p.html"], "did you mean '--html'"),
        (["wandb://me"], "wandb://me is no address: write wandb://entity/project"),
        (["wandb://me/lab?state"], "filters are key=value joined by &"),
        (['wandb://me/lab?{"state":'], "the filters are not JSON"),
    ],
)
def test_wrong_words_are_refused(make: Make, words: list[str], said: str) -> None:
    make("runs/a")
    Path("empty").mkdir()
    with pytest.raises(Refusal, match=said):
        main(words)


def test_a_sweep_cannot_point_out_of_its_folder(make: Make) -> None:
    make("s/k=4")
    sweep_of(Path("s/k=4"))
    Path("s/sweep.json").write_text(Path("s/sweep.json").read_text().replace('"k=4"', '"../../etc"'))
    with pytest.raises(Refusal, match="is no name of a folder"):
        load(["s"])


def test_what_differs_is_a_column_and_what_follows_from_it_is_not(make: Make) -> None:
    make("a", 0, 4, logger={"x": 1}), make("b", 1, 4, logger={"x": 2}), make("c", 1, 8, extra=None)
    comparison = Comparison(load(["a", "b", "c"]))
    assert comparison.differing == ["k", "seed", "extra"]
    assert [row.values for row in comparison.rows] == [
        {"k": "4", "seed": "0", "extra": "–"},
        {"k": "4", "seed": "1", "extra": "–"},
        {"k": "8", "seed": "1", "extra": "null"},
    ]


def test_grouped_by_a_key_it_is_the_mean_and_its_standard_error(make: Make) -> None:
    for seed in range(3):
        make(f"a{seed}", seed, 4), make(f"b{seed}", seed, 8)
    comparison = Comparison(load(["a*", "b*"]), by=["model.net.k"])
    assert [(group.values, group.mean) for group in comparison.groups] == [
        ({"model.net.k": "4"}, 5),
        ({"model.net.k": "8"}, 9),
    ]
    assert comparison.groups[0].standard_error == pytest.approx(1 / math.sqrt(3))
    assert [comparison.name(group) for group in comparison.groups] == ["k=4", "k=8"]


@pytest.mark.parametrize(
    ("metric", "objective", "compared", "value"),
    [
        (None, None, "loss/net", 4.0),
        (None, "loss/other", "loss/other", 0.0),
        ("claim/error", None, "claim/error", 1.0),
        ("claim/error/tolerance", "loss/other", "claim/error/tolerance", 0.5),
    ],
)
def test_by_what_runs_are_compared(
    make: Make, metric: str | None, objective: str | None, compared: str, value: float
) -> None:
    make("a", objective=objective)
    (row,) = Comparison(load(["a"]), metric=metric).rows
    assert (row.compared, row.objective) == (compared, value)


@pytest.mark.parametrize(
    ("names", "metric"),
    [
        (["loss/tall", "loss/small", "kl/net"], "loss/small"),
        (["loss/fixed", "loss/net"], "loss/net"),
        (["loss/net", "loss"], "loss"),
        (["gradient_norm", "accuracy"], "accuracy"),
        ([], "claim/error/measured"),
    ],
)
def test_the_default_metric_is_that_of_the_names_whatever_the_source(make: Make, names: list[str], metric: str) -> None:
    """metrics.csv has the order of the model, wandb's files that of the alphabet, a server any."""
    path = make("a", objective=None)
    (path / "metrics.csv").write_text(
        "".join(f"{','.join([*line])}\n" for line in (["step", *names], "0" * (len(names) + 1)))
    )
    summary = {f"claim/{name}/{key}": v for name in ("error", "zeta") for key, v in (("holds", True), ("measured", 1))}
    found = load(["a"])
    for order in (names, sorted(names), names[::-1]):
        row = {"_step": 0, STEP: 0} | dict.fromkeys(order, 1.0)
        told = {"config": {"name": "pca", "objective": None}, "summary": dict(reversed(summary.items()))}
        found.append(from_wandb.loaded("b", "x", **told, history=[row], state="done", reason="", id_="i"))
    assert [Comparison([run]).metric for run in found] == [metric] * 4


def test_the_command_prints_and_writes(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("a"), make("b", 1, measured=3.0), make("c", 2, measured=None)
    assert main(["a", "b", "c", "--csv", "t.csv", "--html", "p.html"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"b +1 +5 +0/1 +3\.0", out)
    assert re.search(r"a +✓ 1\.0+ = 1\.0+", out)
    assert re.search(r"b +✗ 3\.0+ = 1\.0+", out)
    assert re.search(r"c +✗ not finite = 1\.0+", out)
    rows = list(csv.DictReader(Path("t.csv").read_text().splitlines()))
    assert [(row["run"], row["seed"], row["objective"], row["holds"]) for row in rows] == [
        ("a", "0", "4.0", "true"),
        ("b", "1", "5.0", "false"),
        ("c", "2", "6.0", "false"),
    ]
    assert Path("outputs/compare.png").stat().st_size > 5000
    assert "<svg" in Path("outputs/compare.svg").read_text()


def test_a_run_without_the_metric_is_not_one_that_diverged(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("a"), make("b", 1), make("c", 2)
    for name, content in (("b", "step,loss/tall\n0,1.0\n"), ("c", "step,loss/net\n0,nan\n")):
        (Path(name) / "metrics.csv").write_text(content)
    main(["a", "b", "c", "--metric", "loss/net", "--html", "p.html"])
    out = capsys.readouterr().out
    assert re.search(r"^ *b +1 +– +1/1", out, re.MULTILINE)
    assert re.search(r"^ *c +2 +not finite +1/1", out, re.MULTILINE)
    assert "<td>–</td>" in re.sub(r"<td[^>]*>", "<td>", Path("p.html").read_text())


def test_a_table_is_laid_out_for_the_width_there_is(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line a run where all claims fit beside each other, else a line a claim, else one for each of each run."""
    make("a", claims=9), make("b", 1, claims=9)
    for width, line in (
        ("400", r"^ *a( +✓ 1\.0+ = 1\.0+){9} *$"),
        (None, r"^ *pca_claim_with_a_long_name_8( +✓ 1\.0+ = 1\.0+){2} *$"),
        ("60", r"^ *pca_claim_with_a_long_name_8 +a +✓ 1\.0+ = 1\.0+ *\n +b +✓ 1\.0+ = 1\.0+ *$"),
    ):
        monkeypatch.setenv("COLUMNS", width) if width else monkeypatch.delenv("COLUMNS", raising=False)
        main(["a", "b"])
        assert re.search(line, capsys.readouterr().out, re.MULTILINE), width


def test_each_experiment_has_tables_of_its_own(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Other experiments' claims and keys do not widen them, and each is compared by its own metric."""
    names = ("linear", "pca", "vae", "diffusion", "sinkhorn", "gnn", "transformer")
    for name in names:
        for seed in range(2):
            run = make(f"{name}{seed}", seed, experiment=name, claims=9, objective=None, **{f"only_{name}": seed})
            (run / "metrics.csv").write_text(f"step,loss/{name}\n0,1.0\n9,0.5\n")
    main([*(f"{name}{seed}" for name in names for seed in range(2)), "--csv", "t.csv", "--html", "p.html"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert out.count(" claims held ") == 7
    for name in names:
        part = out.partition(f"2 runs of {name}, 2 of 2 judged hold\n")[2].partition(" runs of ")[0]
        assert re.search(rf"^ *run +seed +loss/{name} +claims held", part, re.MULTILINE)
        assert {found[1] for found in re.finditer(r"(\w+)_claim_with", part)} == {name}
    assert "14 runs of 7 experiments, 14 of 14 judged hold" in out
    rows = list(csv.DictReader(Path("t.csv").read_text().splitlines()))
    assert [row["objective"] for row in rows] == ["0.5"] * 14
    html = Path("p.html").read_text()
    assert [html.count(f'<table id="claims{part}"') for part in ("", "-2", "-7", "-8")] == [1, 1, 1, 0]


def test_a_key_and_a_metric_of_one_experiment_leave_the_others_without(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    make("a", width=3), make("b", 1, width=4), make("c", experiment="vae", claims=1)
    main(["a", "b", "c", "--by", "width", "--metric", "claim/error"])
    first, _, second = capsys.readouterr().out.partition("1 run of vae")
    assert re.search(r"^ *width +claim/error +claims held", first, re.MULTILINE)
    assert re.search(r"^ *4 +1 +1/1", first, re.MULTILINE)
    assert re.search(r"^ *– +– +1/1", second, re.MULTILINE)


def test_nothing_in_a_record_steers_the_terminal(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    path = make("a", text="\x1b[31mred [bold]x[/bold]")
    make("b", text="plain")
    record = json.loads((path / "verdict.json").read_text())
    record["claims"][0]["name"] = "\x1b]0;title\x07 [red]claim[/]"
    (path / "verdict.json").write_text(json.dumps(record))
    main(["a", "b"])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "red [bold]x[/bold]" in out
    assert "[red]claim[/]" in out


def test_the_page_is_whole_and_escapes_what_it_shows(make: Make) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    path = make("a", text=evil)
    make("b", text="plain")
    (path / "metrics.csv").write_text(f'step,loss/net,"{evil}"\n0,1.0,2.0\n')
    record = json.loads((path / "verdict.json").read_text())
    record["claims"][0]["name"] = evil
    (path / "verdict.json").write_text(json.dumps(record))
    made = page(Comparison(load(["a", "b"])))
    assert "<script>alert" not in made
    assert "<img src=x" not in made
    assert not re.search(r"<(script|link|img|iframe)[^>]* (src|href)=", made)
    assert 4e6 < len(made.encode()) < 6e6
    assert "default-src 'none'" in made


def test_a_long_curve_is_thinned_and_keeps_its_extremes() -> None:
    values = [1.0] * 100_000
    values[41_234], values[77_777], values[99_000] = 50.0, -3.0, math.inf
    steps, shown = thinned(([float(i) for i in range(100_000)], values))
    assert len(steps) <= POINTS
    assert (steps[0], steps[-1]) == (0.0, 99_999.0)
    assert dict(zip(steps, shown, strict=True))[41_234.0] == 50.0
    assert dict(zip(steps, shown, strict=True))[77_777.0] == -3.0
    assert None in shown
    assert thinned(([0.0, 1.0], [math.nan, 2.0])) == ([0.0, 1.0], [None, 2.0])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(8, "8"), (8.0, "8"), (0.01, "0.01"), (1e-30, "1e-30"), (True, "true"), (None, "null"), ([1], "[1]")],
)
def test_a_value_reads_the_same_from_json_and_yaml(value: Any, shown: str) -> None:
    assert text(value) == shown


def test_filters() -> None:
    assert from_wandb.parse("wandb://me/lab") == ("me", "lab", {})
    assert from_wandb.parse("wandb://me/lab?state=finished&config.seed=0&config.lr=1e-2&config.on=true")[2] == {
        "state": "finished",
        "config.seed": 0,
        "config.lr": 0.01,
        "config.on": True,
    }
    assert from_wandb.parse('wandb://me/lab?{"config.seed": {"$lt": 3}}')[2] == {"config.seed": {"$lt": 3}}


def test_a_run_of_wandb_need_not_stem_from_the_lab() -> None:
    run = from_wandb.loaded(
        "swift-fox",
        "address",
        {"lr": 0.1, "net": {"depth": 3}, "_wandb": {"x": 1}},
        {"loss": 2, "claim/a/holds": True, "claim/a/measured": "NaN", "claim/half": 1, "best": {"max": 3}},
        [
            {"_step": 0, "loss": 3, "note": "hi", "figure._type": "image-file", "figure.size": 5},
            {"_step": 7, "loss": "Infinity", "ok": True, "nested": {"a": 1}},
            {"_step": "what", "other": 3},
        ],
        state="done",
        reason="",
        id_="i",
    )
    assert run.config == {"lr": 0.1, "net.depth": 3}
    assert run.curves == {"loss": ([0.0, 7.0], [3.0, math.inf])}
    (claim,) = run.claims
    assert (claim.name, claim.holds, claim.relation) == ("a", True, "")
    assert math.isnan(claim.measured)
    assert str(cell([claim])) == "✓ not finite vs not finite"


def test_what_was_asked_for_is_written_though_the_default_figure_cannot_be(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make("a", 0, 4), make("b", 1, 4)
    (tmp_path / "file").touch()
    monkeypatch.setattr(paths, "OUTPUTS", tmp_path / "file" / "outputs")
    assert main(["a", "b", "--csv", "t.csv", "--html", "p.html"]) == 0
    assert Path("t.csv").read_text().startswith("run,")
    assert "<svg" in Path("p.html").read_text()
    assert re.fullmatch(r"lab: \S+/outputs/compare.svg cannot be written: Not a directory\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--html", "/proc/p.html"], "--html /proc/p.html cannot be written: no file can be made in /proc"),
        (["--csv", "/dev/null"], "--csv /dev/null cannot be written: it is no file"),
        (["--html", "."], "--html . cannot be written: it is a folder"),
        (["--report", "x"], "--report x is no project: write entity/project"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_runs_are_read(
    words: list[str], said: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("a")
    monkeypatch.setattr(compare, "load", lambda _: pytest.fail("read"))
    with pytest.raises(Refusal) as refused:
        main(["a", *words])
    assert str(refused.value).startswith(said)


def test_of_a_resumed_run_the_newest_of_wandbs_folders_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> Loaded:
        return Loaded("id", path, "done", id="id" if "other" not in str(path) else "other")

    monkeypatch.setattr(from_wandb, "offline", read)
    for name in ("offline-run-1-id", "offline-run-2-id", "run-0-other"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
        (tmp_path / "wandb" / name / "run.wandb").touch()
    found = load([str(tmp_path / "wandb")])
    assert [Path(run.source).parent.name for run in found] == ["offline-run-2-id", "run-0-other"]


def test_a_torn_segment_gives_way_to_one_that_got_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"offline-run-1-id": [0.0, 50.0], "run-2-id": [0.0, 80.0], "offline-run-3-id": [0.0, 80.0], "run-4-id": []}

    def read(path: Path) -> Loaded:
        steps = rows[path.resolve().parent.name]
        return Loaded("id", path, "failed", id="id", curves={"loss": (steps, steps)} if steps else {})

    monkeypatch.setattr(from_wandb, "offline", read)
    for name in rows:
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.wandb").touch()
    monkeypatch.chdir(tmp_path / "run-2-id")
    for words in (["run.wandb", "../run-4-id", "../offline-run-1-id/run.wandb", "../offline-run-3-id"], [".."]):
        (run,) = load(words)
        assert Path(run.source).resolve().parent.name == "offline-run-3-id"
    (run,) = load(["run.wandb", str(tmp_path / "offline-run-1-id"), "../run-4-id/run.wandb"])
    assert run.source == Path("run.wandb")
