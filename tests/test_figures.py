from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lab import figures
from lab.claim import Claim, Evidence, Quantity, Relation, Run, at_least, at_most, equal, judge
from lab.figures.panel import POINTS

pytestmark = pytest.mark.filterwarnings("error")


def evidence(
    relation: Relation,
    predicted: Quantity,
    measured: Quantity,
    *,
    name: str = "some_claim",
    x_symbol: str = "",
    log: Literal["", "x", "y", "xy"] = "",
    finite: bool = True,
) -> Evidence:
    class Stated(Claim):
        """Measured is predicted."""

        reference, symbol = "", r"$\rho$"

        def predict(self, data: Any) -> Quantity:
            return predicted

        def measure(self, run: Run) -> Quantity:
            return measured

    Stated.relation, Stated.x_symbol, Stated.log = relation, x_symbol, log
    return judge(name, Stated(), Run(None, None, finite))


def curve(n: int = 30, **options: Any) -> Evidence:
    x = np.random.default_rng(0).permutation(np.geomspace(1.5, 200, n))
    p = (x - 1) / (x + 1)
    m = Quantity(p + 0.01 * np.sin(x), 0.01, x=x)
    return evidence(equal("b", atol=0.05), Quantity(p, x=x), m, x_symbol=r"$\kappa$", **options)


def scalar(measured: float = 512.31, **options: Any) -> Evidence:
    return evidence(equal("b", rtol=1e-3), Quantity(512.3), Quantity(measured, 0.002), **options)


def panel(e: Evidence) -> Axes:
    return drawn(e).axes[0]


def drawn(*e: Evidence) -> Figure:
    figure = figures.draw(e, title="An experiment")
    figure.draw_without_rendering()
    return figure


def line(ax: Axes, label: str) -> Line2D:
    (found,) = (h for h, name in zip(*ax.get_legend_handles_labels(), strict=True) if name == label)
    assert isinstance(found, Line2D)
    return found


def points(ax: Axes) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    (found,) = (c for c in ax.containers if isinstance(c, ErrorbarContainer))
    x, y = found.lines[0].get_data()
    return np.asarray(x), np.asarray(y)


def labels(ax: Axes) -> list[str]:
    return [str(label) for label in ax.get_legend_handles_labels()[1]]


def words(ax: Axes) -> str:
    return " ".join(text.get_text() for text in ax.texts).replace("\N{NO-BREAK SPACE}", " ").replace("\n", " ")


def test_a_curve_is_theory_over_x_as_a_line_and_measurement_as_points() -> None:
    e = curve()
    ax = panel(e)
    assert e.predicted.x is not None
    x, p, m = (np.asarray(v) for v in (e.predicted.x, e.predicted.value, e.measured.value))
    order = np.argsort(x)
    theory = line(ax, "theory")
    assert np.array_equal(theory.get_xdata(), x[order])
    assert np.array_equal(theory.get_ydata(), p[order])
    at, measured = points(ax)
    assert np.array_equal(at, x[order])
    assert np.array_equal(measured, m[order])
    assert labels(ax) == ["theory", "allowed difference", "the point that decides", "measured ± 1 standard error"]
    assert ax.get_xlabel() == r"$\kappa$"
    assert ax.get_ylabel() == r"$\rho$"


def test_error_bars_are_one_standard_error() -> None:
    ax = panel(curve())
    (bars,) = ax.containers
    assert isinstance(bars, ErrorbarContainer)
    (segments,) = (collection.get_segments() for collection in bars.lines[2])
    lengths = [segment[1, 1] - segment[0, 1] for segment in segments]
    assert lengths == pytest.approx([0.02] * 30)


def test_the_quoted_element_is_ringed() -> None:
    e = curve()
    ring = line(panel(e), "the point that decides")
    assert np.asarray(ring.get_ydata()).item() == e.judged.measured


def test_the_band_is_what_is_allowed() -> None:
    e = evidence(equal("b", atol=0.5), Quantity([1.0, 2.0], x=[0, 1]), Quantity([1.0, 2.0], x=[0, 1]))
    (band,) = panel(e).collections
    vertices = band.get_paths()[0].vertices
    heights = {float(y) for x, y in np.asarray(vertices) if x == 1}
    assert heights <= {1.5, 2.0, 2.08}  # from p − allowed up to the edge of the axis
    assert band.get_label() == "allowed difference"


@pytest.mark.parametrize(("relation", "side"), [(at_most("b"), "above"), (at_least("b"), "below")])
def test_a_bound_is_dashed_and_its_forbidden_side_hatched(relation: Relation, side: str) -> None:
    e = evidence(relation, Quantity([1.0, 2.0], x=[0, 1]), Quantity([1.0, 2.0], x=[0, 1]))
    ax = panel(e)
    assert line(ax, "theory, a bound").get_linestyle() == "--"
    (region,) = ax.collections
    assert region.get_hatch()
    low, high = ax.get_ylim()
    edge = np.asarray(region.get_paths()[0].vertices)[:, 1]
    assert (edge.max() == high) if side == "above" else (edge.min() == low)


@pytest.mark.parametrize("relation", [equal("b", atol=0.01), at_most("b", atol=0.01)])
@pytest.mark.parametrize("x", [None, [1.0, 2.0, 3.0]])
def test_theory_that_is_0_shows_the_most_allowed_on_a_log_axis(relation: Relation, x: list[float] | None) -> None:
    for m in ([1e-5, 1e-7, 0.0], [1e-5, 1e-7, 0.5]):
        ax = panel(evidence(relation, Quantity([0.0] * 3, x=x), Quantity(m, x=x), log="y"))
        assert ax.get_yscale() == "log"
        edge = line(ax, "theory is 0: the most allowed")
        assert set(np.asarray(edge.get_ydata())) == {0.01}
        assert tuple(np.asarray(edge.get_xdata())) == ax.get_xlim()
        assert ax.get_ylim()[0] < 1e-7
        assert ax.get_ylim()[1] > max(0.01, *m)
        assert "beyond the bound" in labels(ax)
        assert "theory" not in labels(ax)
        assert points(ax)[0].tolist() == [1.0, 2.0, 3.0]


def test_a_number_that_theory_says_is_0_stands_below_the_most_allowed() -> None:
    ax = panel(evidence(equal("b", atol=0.01), Quantity(0.0), Quantity(3e-5), log="y"))
    assert set(np.asarray(line(ax, "theory is 0: the most allowed").get_ydata())) == {0.01}
    assert "allowed 0.0100" in words(ax)
    assert points(ax)[1] == [3e-5]


@pytest.mark.parametrize("n", [320, POINTS])
def test_many_points_are_wider_than_the_line_above_them(n: int) -> None:
    ax = panel(curve(n=n))
    (found,) = (c for c in ax.containers if isinstance(c, ErrorbarContainer))
    theory = line(ax, "theory")
    assert points(ax)[0].size == n
    assert found.lines[0].get_markersize() > 3 * theory.get_linewidth()
    assert found.lines[0].get_zorder() < theory.get_zorder()


@pytest.mark.parametrize(
    ("log", "scales"), [("", ("linear", "linear")), ("x", ("log", "linear")), ("xy", ("log",) * 2)]
)
def test_axes_are_logarithmic_where_the_claim_says(log: Literal["", "x", "xy"], scales: tuple[str, str]) -> None:
    ax = panel(curve(log=log))
    assert (ax.get_xscale(), ax.get_yscale()) == scales


def test_many_points_are_thinned_alike_and_keep_the_quoted_one() -> None:
    e = curve(n=5000)
    ax, again = panel(e), panel(e)
    _, measured = points(ax)
    assert POINTS <= measured.size <= POINTS + 1
    assert e.judged.measured in measured
    assert np.array_equal(measured, points(again)[1])
    assert np.size(line(ax, "theory").get_xdata()) == 5000
    assert f"{POINTS} of 5000 points drawn" in words(ax)


def test_several_curves_are_a_line_each() -> None:
    x = np.tile(np.arange(4.0), (3, 1))
    p = np.arange(12.0).reshape(3, 4)
    ax = panel(evidence(equal("b", atol=1), Quantity(p, x=x), Quantity(p + 0.1, x=x)))
    lines = [h for h in ax.lines if h.get_label() == "theory"]
    assert [list(np.asarray(h.get_ydata())) for h in lines] == p.tolist()
    assert points(ax)[1].size == 12


def test_numbers_without_x_are_measured_against_predicted() -> None:
    p, m = np.array([3.0, 1.0, 2.0]), np.array([3.1, 0.9, 2.2])
    ax = panel(evidence(equal("b", atol=0.3), Quantity(p), Quantity(m)))
    at, measured = points(ax)
    assert np.array_equal(at, np.sort(p))
    assert np.array_equal(measured, m[np.argsort(p)])
    theory = line(ax, "theory")
    assert np.array_equal(theory.get_xdata(), theory.get_ydata())
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_xlabel() == r"predicted $\rho$"
    assert ax.get_ylabel() == r"measured $\rho$"


def test_of_several_vectors_the_deciding_one_is_drawn() -> None:
    p = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    m = p + np.array([[0.0], [0.5]])
    ax = panel(evidence(equal("b", rtol=0.2, norm=True), Quantity(p), Quantity(m)))
    at, measured = points(ax)
    assert np.array_equal(at, p[1])
    assert np.array_equal(measured, m[1])
    assert "of 2 vectors the one that decides" in words(ax)


def test_a_number_is_enlarged_until_the_difference_shows() -> None:
    ax = panel(scalar())
    low, high = ax.get_ylim()
    assert high - low < 5 * 0.5123
    assert np.all(np.asarray(line(ax, "theory").get_ydata()) == 512.3)
    assert points(ax)[1] == [512.31]
    assert "theory 512.3000" in words(ax)
    assert "512.3100 ± 0.0020" in words(ax)
    assert ax.get_ylabel() == r"$\rho$"
    ticks = [tick.get_text() for tick in ax.get_yticklabels()]
    assert len(set(ticks)) == len(ticks) >= 3


def test_an_axis_takes_out_what_all_its_ticks_share() -> None:
    p = math.log(2)
    ax = panel(evidence(equal("b", rtol=1e-10), Quantity(p), Quantity(p * (1 + 4e-11))))
    assert ax.get_ylabel() == "$\\rho$ − 0.6931471806\n($\\times 10^{-10}$)"
    assert "0.693147180588" in words(ax)


@pytest.mark.parametrize(("measured", "verdict"), [(512.31, "holds"), (514.0, "refuted")])
def test_the_verdict_is_in_the_titles(measured: float, verdict: str) -> None:
    figure = drawn(scalar(measured, name="reconstruction_error"), scalar())
    assert figure.axes[0].get_title(loc="left") == f"reconstruction error: {verdict}"
    whole = {"holds": "holds", "refuted": "refuted (1 of 2 claims)"}[verdict]
    assert figure.get_suptitle() == f"An experiment: {whole}"


def test_the_comparison_stands_under_the_title() -> None:
    assert "difference 0.0100" in words(panel(scalar()))
    bound = panel(evidence(at_most("b"), Quantity(1e-2), Quantity(3.2e-5), log="y"))
    assert r"3.200$\times10^{-5}$ ≤ 0.01000" in words(bound)


@pytest.mark.parametrize("log", ["", "xy"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e300])
@pytest.mark.parametrize("relation", [equal("b", rtol=1e-3), at_most("b"), at_least("b", k=1.0)])
def test_what_is_not_finite_is_said_and_not_drawn(relation: Relation, bad: float, log: Literal["", "xy"]) -> None:
    p, x = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0])
    e = [
        evidence(relation, Quantity(1.0), Quantity(bad, 1.0), log=log),
        evidence(relation, Quantity(p, x=x), Quantity([1.0, bad, 3.0], [0.1, math.nan, math.inf], x=x), log=log),
        evidence(relation, Quantity(p, x=x), Quantity(p, x=x), log=log, finite=False),
        evidence(relation, Quantity(p), Quantity([bad, bad, bad]), log=log),
        evidence(relation, Quantity([1.0, bad, 3.0]), Quantity(p), log=log),
    ]
    figure = drawn(*e)
    for i in (0, 2, 3):
        assert "measured: not finite" in words(figure.axes[i])
    assert "1 of 3 points not finite" in words(figure.axes[1])
    assert np.array_equal(points(figure.axes[1])[1], [1.0, np.nan, 3.0], equal_nan=True)


def test_a_vector_that_is_not_finite_is_said() -> None:
    e = evidence(equal("b", rtol=0.1, norm=True), Quantity([[1.0, 2.0]]), Quantity([[1.0, 2.0]]), finite=False)
    assert "measured: not finite" in words(panel(e))


@pytest.mark.parametrize("log", ["x", "xy"])
def test_numbers_of_0_or_less_do_not_break_a_log_axis(log: Literal["x", "xy"]) -> None:
    some, none = Quantity([0.0, -1.0, 1e-3], 0.5, x=[0, 1, 2]), Quantity([0.0, -1.0, -2.0], x=[-2, -1, 0])
    for relation in (equal("b"), at_least("b")):
        for m in (some, none):
            drawn(evidence(relation, Quantity([1e-2] * 3, x=m.x), m, log=log))
            drawn(evidence(relation, m, m, log=log), evidence(relation, Quantity(m.value), Quantity(m.value), log=log))
            drawn(evidence(relation, Quantity(0.0), Quantity(0.0), log=log))
    ax = panel(evidence(at_most("b"), Quantity([1e-2] * 3, x=[0, 1, 2]), some, log="y"))
    assert "2 of 3 points are 0 or less" in words(ax)
    assert ax.get_yscale() == "log"


def test_a_difference_of_nothing_is_drawn() -> None:
    for value in (0.0, 1.0, -3e-200, 1e100):
        drawn(evidence(equal("b"), Quantity(value), Quantity(value)))
        drawn(evidence(equal("b"), Quantity([value] * 2), Quantity([value] * 2)))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7])
def test_no_panel_is_missing_none_is_empty_and_none_overlaps(n: int) -> None:
    figure = drawn(*[scalar(name=f"a_rather_long_name_of_a_claim_{i}") for i in range(n)])
    assert len(figure.axes) == n
    boxes = [box for ax in figure.axes if (box := ax.get_tightbbox()) is not None]
    boxes += [figure.legends[0].get_window_extent()]
    assert len(boxes) == n + 1
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width + 1
        for other in boxes[i + 1 :]:
            assert not box.overlaps(other)


def test_the_line_about_the_run_lies_below_the_legend() -> None:
    figure = figures.draw([scalar()], title="t", finished="3000 steps · seed 0")
    figure.draw_without_rendering()
    (text,) = (t for t in figure.texts if t.get_text() == "3000 steps · seed 0")
    assert text.get_window_extent().y0 >= 0
    assert text.get_window_extent().y1 <= figure.legends[0].get_window_extent().y0 + 1


def test_the_legend_names_what_the_panels_show_once() -> None:
    figure = drawn(curve(), scalar(), evidence(at_most("b"), Quantity(1.0), Quantity(0.5)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "theory",
        "theory, a bound",
        "measured",
        "measured ± 1 standard error",
        "allowed difference",
        "beyond the bound",
        "the point that decides",
    ]


def test_files_are_the_same_bytes_each_time_and_nothing_else_is_left(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with mpl.rc_context({"font.size": 20 if folder == "b" else 10, "svg.hashsalt": folder}):
            figures.save(figures.draw([curve(), scalar()], title="t"), tmp_path / folder)
        assert sorted(p.name for p in (tmp_path / folder).iterdir()) == ["figure.png", "figure.svg"]
    for name in ("figure.svg", "figure.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    svg = (tmp_path / "a" / "figure.svg").read_text()
    assert "<dc:date>" not in svg
    assert svg.rstrip().endswith("</svg>")


def test_the_png_is_16_cm_at_200_dpi(tmp_path: Path) -> None:
    figures.save(figures.draw([curve(), scalar()], title="t"), tmp_path)
    header = (tmp_path / "figure.png").read_bytes()
    assert int.from_bytes(header[16:20]) == pytest.approx(16 / 2.54 * 200, abs=1)


@pytest.mark.parametrize(("columns", "size"), [(2, (16, 8.3)), (5, (16, 4.8)), (1, (8, 8))])
def test_titles_over_axes_of_fixed_aspect_are_whole(tmp_path: Path, columns: int, size: tuple[float, float]) -> None:
    with figures.style():
        figure = figures.blank(*size)
        for ax in figure.subplots(1, columns, squeeze=False).flat:
            ax.imshow(np.eye(24))
            ax.set_title("a title")
    figures.save(figure, tmp_path)
    for ax in figure.axes:
        title = ax.title if ax.get_title() else ax._left_title  # type: ignore[attr-defined]
        assert title.get_window_extent().y1 <= figure.bbox.y1


def test_saving_again_replaces_the_figure(tmp_path: Path) -> None:
    for measured in (512.31, 600.0):
        figures.save(figures.draw([scalar(measured)], title="t"), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_process_keeps_its_own_style_and_gets_no_window() -> None:
    before = mpl.rcParams.find_all(r"^(axes|figure|font|savefig|svg|text)\.")
    figure = drawn(curve())
    assert mpl.rcParams.find_all(r"^(axes|figure|font|savefig|svg|text)\.") == before
    assert isinstance(figure.canvas, FigureCanvasAgg)
    assert figure.canvas.manager is None


def test_threads_draw_side_by_side(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def work(i: int) -> None:
        try:
            (tmp_path / str(i)).mkdir()
            figures.save(figures.draw([scalar()], title="t"), tmp_path / str(i))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len({(tmp_path / str(i) / "figure.svg").read_bytes() for i in range(4)}) == 1
