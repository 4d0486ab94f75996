"""Tests of the page in Debian's chromium, opened from disk and operated by mouse and keyboard."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from ddpm_cli.report.page import page_of
from ddpm_cli.report.runs import find_runs
from ddpm_cli.sweeps.jobs_csv import SweepJob, append_job
from tests.report.folders import a_run

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
FLAGS += " --disable-sync --no-first-run --disable-dev-shm-usage"
NO_VALUE = "\N{EN DASH}"
TIMEOUT = 30  # seconds, much longer than a page needs
DESKTOP, PHONE = (1280, 900), (390, 844)

pytestmark = pytest.mark.skipif(not (CHROMIUM.exists() and DRIVER.exists()), reason="chromium is not installed")


class Page:
    """Operate a page in a browser and read its content."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, page: Path, size: tuple[int, int] = DESKTOP, dark: bool = False) -> "Page":
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": size == PHONE})
        self.set_light(not dark)
        self.js("window.isPrevious = true")
        self.driver.get(page.as_uri())
        # The driver sometimes returns while the previous page is still there.
        loaded = "return !window.isPrevious && document.readyState === 'complete'"
        WebDriverWait(self.driver, TIMEOUT).until(lambda _: self.js(loaded))
        return self

    def set_light(self, light: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "light" if light else "dark"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def js(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map((x) => x.textContent)", selector)

    def names(self) -> list[str]:
        """Return the names of the runs in table order."""
        return self.js(
            "return [...document.querySelectorAll('tbody th')].map((x) => "
            "[...x.childNodes].find((child) => child.nodeType === Node.TEXT_NODE).data)"
        )

    def head(self, title: str) -> WebElement:
        return self.driver.find_element(By.XPATH, f"//thead//button[text()='{title}']")

    def sorted_by(self, title: str) -> str | None:
        return self.js("return arguments[0].closest('th').getAttribute('aria-sort')", self.head(title))

    def column(self, title: str) -> list[str]:
        at = self.texts("thead th").index(title)
        return [text for i, text in enumerate(self.texts("tbody tr > *")) if i % len(self.texts("thead th")) == at]

    def type(self, selector: str, *keys: str) -> None:
        self.find(selector).send_keys(*keys)

    def filter(self, words: str) -> None:
        self.find("#filter").clear()
        self.type("#filter", words)

    def shown_steps(self) -> list[str]:
        """Return the step of the grid in each card of samples, or its text if it has no grid."""
        return self.js(
            "return [...document.querySelectorAll('#grids figure')].map((x) => "
            "x.querySelector('img')?.dataset.step ?? x.querySelector('p').textContent)"
        )


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver: Chrome) -> Iterator[Page]:
    """Yield a page. After the test, check that it logged no errors and loaded no external resources."""
    yield Page(driver)
    assert driver.get_log("browser") == []
    assert driver.execute_script("return performance.getEntriesByType('resource').map((x) => x.name)") == []
    addresses = driver.execute_script(
        "return [...document.querySelectorAll('[src], [href]')].map((x) => x.getAttribute('src') ?? "
        "x.getAttribute('href') ?? '')"
    )
    assert all(address.startswith(("#", "data:")) for address in addresses)


def report(folder: Path, out: Path) -> Path:
    out.write_text(page_of(find_runs([str(folder)]), "Runs in a test", get_plotlyjs()))
    return out


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of a sweep over two schedules and two losses.

    The last run has no evaluation, is unfinished and has other milestones than the others.
    """
    tmp = tmp_path_factory.mktemp("sweep")
    jobs = [("linear", "l1", 9.5, 0.1), ("linear", "l2", 10.25, 0.4), ("cosine", "l1", 8.5, 0.3)]
    for i, (schedule, loss, fid, recall) in enumerate(jobs):
        scores = {"fid": fid, "recall": recall}
        milestones = [10, 20, 40]
        folder = tmp / "runs" / str(i)
        a_run(folder, f"schedule={schedule}", f"loss={loss}", scores=scores, milestones=milestones, film=True)
    a_run(tmp / "runs/10", "schedule=cosine", "loss=l2", losses=[1.0, 0.75], milestones=[15, 30])
    return report(tmp / "runs", tmp / "report.html")


def test_table(browser: Page, sweep: Path) -> None:
    browser.open(sweep)
    heads = ["run", "schedule", "loss", "fid", "recall", "final loss", "steps", "time", "images/s"]
    assert browser.texts("thead th") == heads
    assert browser.names() == ["0", "1", "2", "10"]
    assert browser.column("fid") == ["9.500", "10.25", "8.500", NO_VALUE]
    assert browser.column("final loss") == ["0.1250", "0.1250", "0.1250", "0.7500"]
    assert browser.column("steps") == ["40", "40", "40", "20 of 40"]
    assert browser.texts(".state") == ["unfinished"]
    assert browser.texts("td.best") == ["0.4000", "8.500"]  # in row order: highest recall, lowest fid
    assert browser.texts("nav a") == ["Runs", "Loss", "Sweep", "Samples", "Denoising", "Reproduce"]


def test_sorting_by_mouse_and_keyboard(browser: Page, sweep: Path) -> None:
    browser.open(sweep)
    browser.head("fid").click()
    assert browser.names() == ["2", "0", "1", "10"]  # numerical order, missing values last
    assert browser.sorted_by("fid") == "ascending"
    browser.head("fid").send_keys(Keys.ENTER)
    assert browser.names() == ["1", "0", "2", "10"]
    assert browser.sorted_by("fid") == "descending"
    browser.head("run").send_keys(Keys.SPACE)
    assert browser.names() == ["0", "1", "2", "10"]
    assert browser.sorted_by("fid") is None
    browser.head("schedule").click()
    assert browser.names() == ["2", "10", "0", "1"]
    assert browser.texts("#grids b") == ["2", "10", "0", "1"]  # the other sections have the order of the table
    assert browser.texts("#commands b") == ["2", "10", "0", "1"]


def test_missing_values_are_last_in_both_directions(browser: Page, tmp_path: Path) -> None:
    for i, fid in enumerate([None, 2.0, 10.0]):
        a_run(tmp_path / str(i), scores={"fid": fid} if fid else {})
    browser.open(report(tmp_path, tmp_path / "report.html"))
    browser.head("fid").click()
    assert browser.names() == ["1", "2", "0"]
    browser.head("fid").click()
    assert browser.names() == ["2", "1", "0"]


def test_filtering(browser: Page, sweep: Path) -> None:
    browser.open(sweep)
    for words, names, count in [
        ("cosine", ["2", "10"], "2 of 4 runs"),
        ("COSINE loss=l1", ["2"], "1 of 4 runs"),  # all words must match
        ("quadratic", [], "0 of 4 runs"),
        ("  ", ["0", "1", "2", "10"], "4 runs"),
    ]:
        browser.filter(words)
        assert browser.names() == names
        assert browser.find("#count").text == count
        assert browser.texts("#grids b") == names
        assert browser.texts("#commands b") == names
        assert len(browser.texts("#legend li")) == len(names)
        assert browser.js("return curves.data.length") == len(names)


def test_milestone_slider(browser: Page, sweep: Path) -> None:
    """Each card shows the latest grid up to the step. Run 10 has milestones 15 and 30, the others 10, 20 and 40."""
    browser.open(sweep)
    assert browser.shown_steps() == ["40", "40", "40", "30"]
    found = []
    for _ in range(4):
        browser.type("#milestone", Keys.ARROW_LEFT)
        found.append((browser.find("#milestone-step").text, browser.shown_steps()))
    assert found == [
        ("step 30", ["20", "20", "20", "30"]),
        ("step 20", ["20", "20", "20", "15"]),
        ("step 15", ["10", "10", "10", "15"]),
        ("step 10", ["10", "10", "10", "none yet"]),
    ]
    assert browser.find("#milestone").get_attribute("aria-valuetext") == "step 10"
    brightness = browser.js(
        "const canvas = new OffscreenCanvas(1, 1).getContext('2d');"
        "canvas.drawImage(document.querySelector('#grids img'), 0, 0); return canvas.getImageData(0, 0, 1, 1).data[0]"
    )
    assert abs(brightness - 10) < 4  # the pixel value of the grid of step 10
    browser.type("#milestone", Keys.END)
    assert browser.shown_steps() == ["40", "40", "40", "30"]
    widths = browser.js("return Promise.all([...document.images].map((x) => x.decode().then(() => x.naturalWidth)))")
    assert widths == [16] * 7  # four grids and three films


def test_loss_plot_zoom(browser: Page, sweep: Path) -> None:
    browser.open(sweep)
    assert browser.js("return curves.data.map((trace) => trace.y)") == [[1, 0.5, 0.25, 0.125]] * 3 + [[1, 0.75]]
    assert browser.js("return curves.layout.yaxis.type") == "log"
    full_range = browser.js("return curves.layout.xaxis.range")
    area = browser.find("#curves .nsewdrag")
    browser.js("arguments[0].scrollIntoView({block: 'center'})", area)
    ActionChains(browser.driver).move_to_element(area).click_and_hold().move_by_offset(200, 60).release().perform()
    low, high = browser.js("return curves.layout.xaxis.range")
    assert full_range[0] < low < high < full_range[1]
    browser.filter("cosine")
    assert browser.js("return curves.layout.xaxis.range") == [low, high]  # filtering keeps the zoom
    browser.type("#curves", "0")
    assert browser.js("return curves.layout.xaxis.range")[0] <= full_range[0]
    before = browser.js("return curves.layout.xaxis.range")
    browser.type("#curves", "+")
    low, high = browser.js("return curves.layout.xaxis.range")
    assert math.isclose(high - low, 0.7 * (before[1] - before[0]))
    browser.type("#curves", Keys.ARROW_RIGHT)
    assert browser.js("return curves.layout.xaxis.range")[0] > low
    browser.find("#log").click()
    assert browser.js("return curves.layout.yaxis.type") == "linear"


def test_smoothing(browser: Page, sweep: Path) -> None:
    """Check the bias correction of the mean: weight 0.5 gives (0.25 + 0.25) / 0.75 after the losses 1 and 0.5."""
    browser.open(sweep)
    browser.type("#smooth", *[Keys.ARROW_RIGHT] * 10)
    assert browser.find("#smooth").get_attribute("value") == "0.5"
    first, second, *_ = browser.js("return curves.data[0].y")
    assert math.isclose(first, 1)
    assert math.isclose(second, 2 / 3)


def test_heat_map(browser: Page, sweep: Path) -> None:
    browser.open(sweep)
    assert browser.js("return [map.data[0].y, map.data[0].x]") == [["linear", "cosine"], ["l1", "l2"]]
    assert browser.js("return map.data[0].z") == [[9.5, 10.25], [8.5, None]]
    options = browser.texts("#heat-metric option")
    assert options == ["fid", "recall", "final loss", "images/s", "seconds"]
    browser.type("#heat-metric", "final")
    assert browser.js("return map.data[0].z") == [[0.125, 0.125], [0.125, 0.75]]


def test_film_plays_and_stops(browser: Page, sweep: Path) -> None:
    browser.open(sweep)
    assert len(browser.texts("#films figure")) == 3
    moving = browser.find("#films img").get_attribute("src")
    browser.type("#play", Keys.ENTER)
    still = browser.find("#films img").get_attribute("src")
    assert (browser.find("#play").text, moving != still) == ("Play", True)
    browser.find("#play").click()
    assert browser.find("#films img").get_attribute("src") == moving


def test_copy_button_copies_the_command(browser: Page, sweep: Path) -> None:
    browser.open(sweep)
    assert browser.texts("#commands code")[1] == "ddpm-train schedule=linear loss=l2"
    browser.js("arguments[0].scrollIntoView({block: 'center'})", browser.find("#commands li:nth-child(2) button"))
    browser.find("#commands li:nth-child(2) button").click()
    assert browser.find("#announce").get_attribute("textContent") == "copied the command of run 1"
    browser.find("#filter").send_keys(Keys.CONTROL, "v")
    assert browser.find("#filter").get_attribute("value") == "ddpm-train schedule=linear loss=l2"


def test_controls_are_focusable_and_labelled(browser: Page, sweep: Path) -> None:
    browser.open(sweep)
    reached = []
    for _ in range(60):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        at = "const x = document.activeElement; return x.id || x.getAttribute('href') || x.textContent"
        reached.append(browser.js(at))
    for one in ["#runs", "filter", "fid", "log", "smooth", "curves", "heat-metric", "milestone", "play", "Copy"]:
        assert one in reached
    browser.find("#milestone").send_keys(Keys.TAB)  # the outline is only shown for keyboard focus
    assert browser.js("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    unlabelled = browser.js(
        "return [...document.querySelectorAll('input, select, button, img')].filter((x) => "
        "!(x.labels?.length || x.ariaLabel || x.alt || x.textContent)).map((x) => x.outerHTML)"
    )
    assert unlabelled == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_page_is_not_wider_than_the_screen(browser: Page, sweep: Path, size: tuple[int, int]) -> None:
    browser.open(sweep, size)
    width, inner = browser.js("return [document.documentElement.scrollWidth, innerWidth]")
    assert inner == size[0]
    assert width <= inner
    assert browser.js("return curves.layout.dragmode") == ("zoom" if size == DESKTOP else False)


def test_dark_and_light_colours(browser: Page, sweep: Path) -> None:
    colours = (
        "return [getComputedStyle(document.body).backgroundColor, curves.layout.paper_bgcolor, "
        "curves.data[0].line.color]"
    )
    browser.open(sweep, dark=True)
    assert browser.js(colours) == ["rgb(22, 22, 21)", "#1e1e1c", "#4f9bf0"]
    browser.set_light(True)
    light = ["rgb(252, 252, 251)", "#ffffff", "#2a78d6"]
    # Wait, because the plots are redrawn asynchronously.
    WebDriverWait(browser.driver, TIMEOUT).until(lambda _: browser.js(colours) == light)


@pytest.mark.parametrize(
    "losses",
    [[], *(pytest.param(losses, marks=pytest.mark.slow) for losses in ([0.5], [math.nan, math.nan], [1.0, math.inf]))],
)
def test_single_run_without_pictures_and_evaluations(browser: Page, tmp_path: Path, losses: list[float]) -> None:
    a_run(tmp_path / "run", losses=losses)
    browser.open(report(tmp_path, tmp_path / "report.html"))
    assert browser.names() == ["run"]
    finite = any(map(math.isfinite, losses))
    assert browser.texts("nav a") == (["Runs", "Loss", "Reproduce"] if finite else ["Runs", "Reproduce"])
    diverged = bool(losses) and not math.isfinite(losses[-1])
    assert browser.texts(".state") == ["diverged" if diverged else "unfinished"]
    assert browser.column("final loss") == ["0.5000" if losses == [0.5] else "nan" if diverged else NO_VALUE]
    assert not browser.find("#filter-bar").is_displayed()


def test_metrics_measured_with_different_settings_are_listed(browser: Page, tmp_path: Path) -> None:
    for i, n in enumerate([100, 200]):
        line = {"metrics": {"fid": 3.0 + i}, "n": n, "intervals": {"fid": [2, 5]}}
        (a_run(tmp_path / str(i)) / "evaluations.jsonl").write_text(json.dumps(line))
    browser.open(report(tmp_path, tmp_path / "report.html"))
    assert browser.texts("#incomparable li") == ["fid: not measured with the same settings in all runs: n=100 or n=200"]
    assert browser.texts("td small") == ["2.000 to 5.000"] * 2


def test_pruned_run_is_marked(browser: Page, tmp_path: Path) -> None:
    for i in range(3):
        a_run(tmp_path / str(i), f"train.seed={i}", losses=[1.0] if i else [1.0, 0.5, 0.25, 0.125])
        append_job(tmp_path, SweepJob(i, "pruned" if i == 1 else "done", 1.0, 1.0, "", ""))
    browser.open(report(tmp_path, tmp_path / "report.html"))
    assert browser.texts("tbody .state") == ["pruned", "unfinished"]


def test_many_runs(browser: Page, tmp_path: Path) -> None:
    """The table has all runs, the plot the first hundred of the table, and the samples those of the best twelve."""
    for i in range(120):
        a_run(tmp_path / str(i), f"train.seed={i}", scores={"fid": i}, milestones=[10])
    browser.open(report(tmp_path, tmp_path / "report.html"))
    assert len(browser.names()) == 120
    WebDriverWait(browser.driver, TIMEOUT).until(lambda _: len(browser.texts("#legend li")) == 100)
    assert browser.texts("#curves-count") == [
        "The first 100 of 120 runs in the order of the table. Sort or filter it to see others."
    ]
    assert browser.texts("#samples .pictured") == ["Pictures of the 12 runs with the best fid."]
    assert browser.shown_steps() == ["10"] * 12
    browser.filter("seed=119")
    WebDriverWait(browser.driver, TIMEOUT).until(lambda _: browser.texts("#legend li") == ["119: train.seed=119"])
    assert not browser.find("#curves-count").is_displayed()
    assert browser.shown_steps() == []


def test_html_in_names_is_inert(browser: Page, tmp_path: Path) -> None:
    evil = "<img src=x onerror=pwned=1></script><script>pwned=1</script><a href='https://example.org'>x</a>"
    for i in range(2):
        name = f"{evil.replace('/', chr(0x2215))}{i}"
        folder = a_run(tmp_path / "runs" / name, scores={"<img src=x onerror=pwned=1>": 1.0}, milestones=[10])
        odd = [f"{evil}={i}", f"x={evil}{i}"]
        (folder / ".hydra/overrides.yaml").write_text(json.dumps(odd))
        (folder / ".hydra/config.yaml").write_text(json.dumps({evil: f"{evil}{i}", "__proto__": i}))
    browser.open(report(tmp_path / "runs", tmp_path / "report.html"))
    assert browser.js("return window.pwned") is None
    assert evil in browser.texts("thead button")[1]
    assert browser.texts("tbody td:nth-child(2)") == [f"{evil}0", f"{evil}1"]
    assert browser.js("return document.querySelectorAll('main script, main a, svg a, img[onerror]').length") == 0
    hover = browser.find("#curves .nsewdrag")
    ActionChains(browser.driver).move_to_element(hover).perform()
    assert browser.js("return document.querySelectorAll('svg a').length") == 0
