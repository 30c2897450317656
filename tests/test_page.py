"""The page of a comparison in a real browser, from a file and without a network."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab.compare.load import Claim, Loaded
from lab.compare.page import write
from lab.compare.table import Comparison

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        shutil.which("chromium") is None and os.environ.get("LAB_BROWSER") != "1",
        reason="chromium is not on PATH (Debian: apt install chromium chromium-driver); LAB_BROWSER=1 makes this fail",
    ),
]


def runs(evil: str = "", experiment: str = "pca", claims: int = 1) -> list[Loaded]:
    found = []
    for k, seed in ((8, 0), (2, 0), (16, 0), (2, 1)):
        curve = [k * math.exp(-step / 20) + 0.01 for step in range(200)]
        other = [math.nan if step > 150 else float(step % 7) for step in range(200)]
        steps = [float(step) for step in range(200)]
        names = [f"error{evil}", *(f"claim_{i}" for i in range(1, claims))]
        judged = tuple(Claim(name, 1.0, 1.0 + k / 100, 0.0, 0.1, k < 16, "equal") for name in names)
        config = {"name": experiment, "k": k, "seed": seed, "note": evil if k == 16 else "plain"}
        curves = {"loss/net": (steps, curve), f"loss/other{evil}": (steps, other)}
        found.append(Loaded(f"k={k},seed={seed}{evil}", Path("x"), "done", config, {}, judged, curves, 1.5 * k))
    return found


class Page:
    """A page that has been opened."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def js(self, code: str) -> Any:
        return self.driver.execute_script(f"return {code}")

    def wait(self, condition: Callable[[], Any]) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 20, poll_frequency=0.05).until(lambda _: condition())

    def find(self, selector: str) -> Any:
        from selenium.webdriver.common.by import By

        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def column(self, table: str, index: int) -> list[str]:
        return self.js(f"[...document.querySelectorAll('#{table} tbody tr')].map(r => r.cells[{index}].textContent)")

    def sort(self, table: str, index: int) -> None:
        self.find(f"#{table} th:nth-child({index + 1}) button").click()

    def traces(self) -> list[Any]:
        return self.js("document.getElementById('curves').data.map(t => t.visible ?? true)")

    def axis(self, name: str) -> dict[str, Any]:
        axis = f"document.getElementById('curves')._fullLayout.{name}"
        return {"range": self.js(f"{axis}.range"), "type": self.js(f"{axis}.type")}

    def complaints(self) -> list[Any]:
        """What the browser's console says, with what it had to fetch beside the page itself."""
        return [*self.driver.get_log("browser"), *self.js("performance.getEntriesByType('resource').map(e => e.name)")]


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    from selenium import webdriver

    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium, "LAB_BROWSER=1, but chromium is not on PATH"
    assert chromedriver, "chromedriver is not on PATH (Debian: apt install chromium-driver)"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,1600"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def opened(driver: Any, tmp_path: Path) -> Callable[..., Page]:
    def open_(*arguments: Any, **options: Any) -> Page:
        write(Comparison(*arguments, **options), tmp_path / "page.html")
        driver.get((tmp_path / "page.html").as_uri())
        page = Page(driver)
        page.wait(lambda: page.js("document.querySelector('#curves .legend .traces') !== null"))
        return page

    return open_


def test_it_opens_without_a_complaint_and_without_a_network(opened: Callable[..., Page]) -> None:
    page = opened(runs())
    assert page.complaints() == []
    assert page.find("h1").text == "4 runs of pca, 3 of 4 judged hold"
    assert page.js("document.querySelectorAll('#curves .scatterlayer .trace').length") == 4
    assert page.js("document.body.scrollWidth <= window.innerWidth")
    buttons = page.js("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert "Zoom" in buttons
    assert not [title for title in buttons if "Share" in title or "Edit" in title]  # they would upload the runs


def test_a_click_on_a_header_sorts_by_numbers_and_back(opened: Callable[..., Page]) -> None:
    page = opened(runs())
    header = page.js("[...document.querySelectorAll('#runs th')].map(h => h.textContent)")
    k, held = header.index("k"), header.index("claims held")
    assert page.column("runs", k) == ["8", "2", "16", "2"]
    page.sort("runs", k)
    assert page.column("runs", k) == ["2", "2", "8", "16"]
    assert page.column("runs", 0)[-1] == "k=16,seed=0"
    page.sort("runs", k)
    assert page.column("runs", k) == ["16", "8", "2", "2"]
    assert page.js("document.querySelectorAll('#runs th[aria-sort]').length") == 1
    page.sort("runs", held)
    assert page.column("runs", held)[0] == "✗ 0/1"
    page.sort("runs", 0)
    assert page.column("runs", 0) == ["k=16,seed=0", "k=2,seed=0", "k=2,seed=1", "k=8,seed=0"]
    page.sort("claims", 1)
    assert page.column("claims", 1)[0].startswith("✓ 1.02")
    assert page.complaints() == []


def test_curves_zoom_and_go_back(opened: Callable[..., Page]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page = opened(runs())
    before = page.axis("xaxis")["range"]
    area = page.find("#curves .nsewdrag")
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", area)
    drag = ActionChains(page.driver).move_to_element_with_offset(area, -100, -60).click_and_hold()
    drag.move_by_offset(150, 100).release().perform()
    page.wait(lambda: page.axis("xaxis")["range"] != before)
    low, high = page.axis("xaxis")["range"]
    assert before[0] < low < high < before[1]
    ActionChains(page.driver).double_click(area).perform()
    page.wait(lambda: page.axis("xaxis")["range"] == pytest.approx(before))
    assert page.complaints() == []


def test_a_name_in_the_legend_hides_its_curve(opened: Callable[..., Page]) -> None:
    page = opened(runs())
    assert page.traces()[:4] == [True] * 4
    page.find("#curves .legend .traces:first-of-type .legendtoggle").click()
    page.wait(lambda: page.traces()[0] == "legendonly")
    assert page.traces()[1:4] == [True] * 3


def test_another_metric_and_another_scale_are_chosen(opened: Callable[..., Page]) -> None:
    page = opened(runs())
    assert page.axis("yaxis")["type"] == "log"
    page.find("#curves .updatemenu-header").click()
    page.wait(lambda: page.js("document.querySelectorAll('#curves .updatemenu-dropdown-button').length === 2"))
    page.find("#curves .updatemenu-dropdown-button:nth-of-type(2)").click()
    page.wait(lambda: page.traces() == [False] * 4 + [True] * 4)
    assert page.axis("yaxis")["type"] == "linear"
    assert page.js("document.querySelector('#curves .ytitle').textContent") == "loss/other"
    page.find("#curves .updatemenu-button").click()
    page.wait(lambda: page.axis("yaxis")["type"] == "log")
    assert page.complaints() == []


def test_groups_are_one_curve_with_their_runs_behind_it(opened: Callable[..., Page]) -> None:
    page = opened(runs(), by=["k"])
    names = page.js("[...document.querySelectorAll('#curves .legendtext')].map(t => t.textContent)")
    assert names == ["k=8", "k=2 (mean of 2)", "k=16"]
    assert page.column("claims", 0) == ["k=8", "k=2", "k=16"]
    assert page.column("claims", 1)[1].startswith("✓ 2/2 1.02")
    assert page.column("claims", 1)[2].startswith("✗ 1.16")


def test_what_a_record_says_is_shown_and_never_run(opened: Callable[..., Page]) -> None:
    evil = "<img src=x onerror=\"document.title='run'\"></script><script>document.title='run'</script>"
    page = opened(runs(evil))
    assert page.driver.title == "4 runs of pca, 3 of 4 judged hold"
    assert evil in page.column("runs", 0)[0]
    assert page.complaints() == []


def test_each_experiment_has_curves_and_tables_of_its_own(opened: Callable[..., Page]) -> None:
    """Its claims are lines where they are more than its runs, and the tables of one are sorted by themselves."""
    mine, others = runs(), [replace(run, name=f"vae {run.name}") for run in runs("", "vae", claims=6)[:2]]
    page = opened([*mine, *others])
    assert page.js("[...document.querySelectorAll('h2, nav a')].map(h => h.textContent)") == ["pca", "vae"] * 2
    page.wait(lambda: page.js("document.querySelectorAll('#curves-2 .scatterlayer .trace').length") == 2)
    assert page.js("document.querySelectorAll('#curves .scatterlayer .trace').length") == 4
    assert page.js("[...document.querySelectorAll('#claims-2 th')].map(h => h.textContent)") == [
        "claim", "vae k=8,seed=0", "vae k=2,seed=0",
    ]  # fmt: skip
    assert page.column("claims-2", 0) == ["error", *(f"claim_{i}" for i in range(1, 6))]
    page.sort("runs-2", 1)
    assert page.column("runs-2", 0) == ["vae k=2,seed=0", "vae k=8,seed=0"]
    assert page.column("runs", 0)[0] == "k=8,seed=0"
    assert page.js("document.body.scrollWidth <= window.innerWidth")
    assert page.complaints() == []
