from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lab.claim import Judged, Kind, Verdict
from lab.table import Outcome, VerifyRow, number, print_verdict, render, resolution, verify_table, written


def judged(
    name: str = "reconstruction_error",
    *,
    relation: Kind = "equal",
    predicted: float = 512.3,
    measured: float = 512.31,
    error: float = 0.0,
    difference: float = 0.01,
    tolerance: float = 0.5123,
    holds: bool = True,
    note: str = "",
) -> Judged:
    return Judged(name, "s", "r", relation, "b", predicted, measured, error, difference, tolerance, holds, note)


ANGLE = judged(
    "principal_angle", relation="at_most", predicted=1e-2, measured=3.2e-5, difference=3.2e-5 - 1e-2, tolerance=0.0
)
RISK = judged("excess_risk", predicted=0.0204, measured=0.02071, error=0.00034, difference=0.00031, tolerance=0.00102)
REFUTED = judged("projector", predicted=0.0, measured=0.25, difference=0.25, tolerance=1e-3, holds=False)
NAN = judged("lost", measured=math.nan, error=math.nan, difference=math.nan, holds=False, note="not finite")


def verdict(*claims: Judged) -> Verdict:
    return Verdict("pca_autoencoder", 3, claims, {})


def shown(thing: object, *, width: int = 200, encoding: str = "utf-8") -> str:
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding=encoding)
    Console(file=file, width=width).print(thing)
    file.flush()
    return buffer.getvalue().decode(encoding)


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (512.3, 0.01, "512.300"),
        (512.31, 0.01, "512.310"),
        (0.0, 1e-9, "0"),
        (1.0, 0.0, "1.000"),
        (-2.5, 0.5, "-2.500"),
        (3.2e-5, 0.01, "3.200e-05"),
        (600.0, 100.0, "600.0"),
        (12345678.0, 1.0, "12345678.0"),
        (12345678.0, 1e5, "1.235e+07"),
        (0.1, 1e-300, "0.100000000000000"),
        (math.nan, 1.0, "not finite"),
        (-math.inf, 1.0, "not finite"),
        (1.0, math.inf, "1.000"),
        (1.0, math.nan, "1.000"),
    ],
)
def test_a_number_shows_the_step_asked_for(value: float, step: float, text: str) -> None:
    assert number(value, step) == text


def test_what_must_show_is_the_difference_but_no_noise_far_below_what_is_allowed() -> None:
    assert resolution(0.01, 0.5) == 0.01
    assert resolution(-0.01, 0.5) == 0.01
    assert resolution(1e-12, 0.5) == 0.005
    assert resolution(0.3, 0.5, error=0.02) == 0.02
    assert resolution(0.0, 0.0) == 0.0
    assert resolution(math.nan, math.inf, math.nan) == 0.0


@pytest.mark.parametrize(
    ("predicted", "difference", "tolerance"),
    [(512.3, 0.01, 0.5), (1.0, 1e-9, 1e-9), (1e6, 3.0, 1.0), (1e-8, 1e-12, 0.0)],
)
def test_a_difference_near_what_is_allowed_shows_between_the_numbers(
    predicted: float, difference: float, tolerance: float
) -> None:
    text = written(
        judged(predicted=predicted, measured=predicted + difference, difference=difference, tolerance=tolerance)
    )
    assert float(text.measured) - float(text.predicted) == pytest.approx(difference, rel=0.1)


def test_the_table_has_a_line_a_claim_and_a_conclusion() -> None:
    lines = shown(render(verdict(judged(), RISK, ANGLE))).splitlines()
    assert lines[0].split("  ")[0] == "claim"
    assert [w for w in ("predicted", "measured ± error", "difference", "allowed") if w not in lines[0]] == []
    assert lines[1].split() == ["reconstruction_error", "=", "512.300", "512.310", "0.0100", "0.512", "✓"]
    assert lines[2].split() == ["excess_risk", "=", "0.02040", "0.02071", "±", "0.00034", "0.000310", "0.00102", "✓"]
    assert lines[3].split() == ["principal_angle", "≤", "0.01000", "3.200e-05", "-0.00997", "0", "✓"]
    assert lines[-1] == "holds: 3 of 3 claims"


def test_a_refuted_verdict_names_its_claims() -> None:
    text = shown(render(verdict(judged(), REFUTED, NAN)))
    assert text.count("✗") == 2
    assert text.splitlines()[-1] == "refuted: 2 of 3 claims (projector, lost)"
    (lost,) = (line for line in text.splitlines() if line.startswith("lost"))
    assert "not finite" in lost
    assert "nan" not in text


def test_at_least_has_its_sign() -> None:
    assert "≥ 512.3" in shown(render(verdict(judged(relation="at_least"))))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_where_the_encoding_lacks_the_signs_words_stand_in(encoding: str) -> None:
    text = shown(render(verdict(RISK, ANGLE, REFUTED)), encoding=encoding)
    assert text.isascii()
    assert "0.02071 +/- 0.00034" in text
    assert "<= 0.01000" in text
    assert text.count(" ok") == 2
    assert text.count("FAIL") == 1


@pytest.mark.parametrize("width", [20, 40, 60])
def test_on_a_narrow_terminal_no_number_is_cut(width: int) -> None:
    text = shown(render(verdict(judged(), RISK, ANGLE, REFUTED, NAN)), width=width)
    wide = shown(render(verdict(judged(), RISK, ANGLE, REFUTED, NAN)))
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    for digits in ("512.310", "0.00034", "3.200e-05", "-0.00997", "0.00102"):
        assert digits in text
        assert digits in wide
    assert "refuted: 2 of 5" in text


def test_paths_below_the_working_directory_are_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "outputs" / "a b [x]"
    run.mkdir(parents=True)
    for name in ("verdict.json", "figure.png"):
        (run / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "20")
    print_verdict(verdict(judged("a_name_that_alone_is_wider_than_that_terminal")), run)
    out = capsys.readouterr().out
    assert "a_name_that_alone_is_wider_than_that_terminal   = 512.300" in out, "wide enough where it is no terminal"
    assert out.splitlines()[0] == "pca_autoencoder"
    assert [line.split(maxsplit=1)[1] for line in out.splitlines()[-3:]] == [
        "outputs/a b [x]/verdict.json",
        "outputs/a b [x]/figure.png",
        "outputs/a b [x]",
    ]
    monkeypatch.chdir(run)
    print_verdict(verdict(judged()), tmp_path)
    assert capsys.readouterr().out.splitlines()[-1].endswith(str(tmp_path)), "not below: absolute"


def test_a_file_that_is_not_there_is_not_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_verdict(verdict(judged()), tmp_path)
    assert "figure" not in capsys.readouterr().out


def test_a_path_the_encoding_lacks_is_escaped(tmp_path: Path) -> None:
    run = tmp_path / "läufe"
    run.mkdir()
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_verdict(verdict(judged()), run, Console(file=file, width=100))


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, lab.table; sys.exit(bool({'numpy', 'matplotlib', 'torch', 'lightning'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def row(
    seed: int, outcome: Outcome, ratio: float = 0.5, *, claim: str = "projector", control: str | None = None
) -> VerifyRow:
    return VerifyRow(
        experiment="pca_autoencoder",
        seed=seed,
        control=control,
        claim=claim,
        outcome=outcome,
        difference=2 * ratio,
        tolerance=2.0,
    )


def verified(*rows: VerifyRow, encoding: str = "utf-8", width: int = 120) -> tuple[bool, list[list[str]]]:
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding=encoding)
    good = verify_table(rows, Console(file=file, width=width))
    file.flush()
    lines = buffer.getvalue().decode(encoding).splitlines()
    return good, [line.split() for line in lines]


def test_seeds_of_a_claim_share_a_line_with_the_worst_of_them() -> None:
    good, lines = verified(
        *(row(seed, "holds", ratio) for seed, ratio in enumerate([0.25, 0.75, 0.5])),
        *(row(seed, "refuted as it must", ratio, control="relu") for seed, ratio in enumerate([90.0, 30.0, 60.0])),
        row(0, "holds", 0.1, claim="angles"),
    )
    assert good
    assert lines[1:4] == [
        ["pca_autoencoder", "projector", "3/3", "0.75", "✓", "holds"],
        ["angles", "1/1", "0.1", "✓", "holds"],
        ["·", "relu", "projector", "3/3", "30", "✓", "refuted", "as", "it", "must"],
    ]
    assert " ".join(lines[-1]) == "as theory says: 7 of 7"


@pytest.mark.parametrize(
    ("outcome", "control"),
    [
        ("refuted", None),
        ("crashed", None),
        ("holds but must be refuted", "relu"),
        ("crashed", "relu"),
        ("holds", "relu"),
        ("refuted as it must", None),
    ],
)
def test_what_is_not_as_theory_says_is_named_with_its_seeds(outcome: Outcome, control: str | None) -> None:
    fine: Outcome = "holds" if control is None else "refuted as it must"
    rows = [row(s, outcome if s > 1 else fine, control=control) for s in range(4)]
    good, lines = verified(*rows)
    assert not good
    line = " ".join(lines[1])
    assert "2/4" in line
    assert f"✗ {outcome} (seeds 2, 3)" in line
    assert " ".join(lines[-1]) == "not as theory says: 2 of 4"


def test_a_crashed_run_has_no_numbers() -> None:
    crashed = VerifyRow(experiment="e", seed=1, control=None, claim="", outcome="crashed")
    good, lines = verified(crashed)
    assert not good
    assert " ".join(lines[1]) == "e 0/1 ✗ crashed (seed 1)"


def test_a_control_that_diverged_is_refuted_without_a_ratio() -> None:
    good, lines = verified(row(0, "refuted as it must", math.nan, control="big_step"))
    assert good
    assert "not finite" in " ".join(lines[1])


def test_nothing_verified_is_not_as_theory_says() -> None:
    assert verified()[0] is False


def test_a_ratio_needs_no_tolerance() -> None:
    assert (
        VerifyRow(
            experiment="e", seed=0, control=None, claim="c", outcome="refuted", difference=1.0, tolerance=0.0
        ).ratio
        == math.inf
    )
    assert (
        VerifyRow(
            experiment="e", seed=0, control=None, claim="c", outcome="holds", difference=-1.0, tolerance=0.0
        ).ratio
        == 0.0
    )


def test_verified_in_ascii_and_narrow() -> None:
    good, lines = verified(
        row(0, "holds"), row(0, "refuted as it must", 3.0, control="relu"), encoding="ascii", width=40
    )
    assert good
    assert any("ok" in line for line in lines)
