"""The page in Debian's Chromium: it is quiet, needs nothing, sorts, and reads well."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.made_up import GRID_RUNS
from playwright.sync_api import Browser, Page, Request, sync_playwright

from nsrelu_bench.plot import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip("no chromium here (apt-get install chromium)", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]  # one page, one browser

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WIDTHS = (400, 1400)
#: Of every shape one: of one panel, two, four, six and ten, with lines, with fields, with bars.
OF_EACH_SHAPE = ("tradeoff", "profile", "layers", "phase", "gradient_depth", "histogram")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on disk."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "ORDER", OF_EACH_SHAPE)
        path.write_text(report.render(GRID_RUNS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Browser, path: Path) -> Iterator[Page]:
    """The page, opened from disk; when the tests are over, it has said and asked for nothing."""
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    said: list[str] = []
    asked: list[Request] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    yield page
    page.close()
    assert said == []
    assert [r.url for r in asked if not r.url.startswith("data:")] == [path.as_uri()]


def column(page: Page, number: int) -> list[str]:
    return page.locator(f"table.sortable >> nth=0 >> td:nth-child({number})").all_inner_texts()


def test_a_click_sorts_a_table_and_a_second_reverses(page: Page) -> None:
    names = column(page, 1)
    head = page.locator("table.sortable >> nth=0 >> th", has_text="accuracy")
    place = head.evaluate("head => head.cellIndex") + 1
    for direction, falling in (("ascending", False), ("descending", True)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == direction
        values = [float(text.split()[0].rstrip(",")) for text in column(page, place) if text != "-"]
        assert len(set(values)) > 3
        assert values == sorted(values, reverse=falling)
        assert column(page, place)[-1] == "-"  # all runs diverged
    assert sorted(column(page, 1)) == sorted(names)
    assert column(page, 1) != names
    page.locator("table.sortable >> nth=0 >> th >> nth=0 >> button").click()
    assert column(page, 1)[:3] == [
        "leaky_relu(0.1) lr=0.1",
        "leaky_relu(0.1) lr=0.2",
        "nsrelu(0.01) lr=0.1",
    ]


def test_each_figure_has_a_size_and_something_in_it(page: Page) -> None:
    boxes = [figure.bounding_box() for figure in page.locator("figure svg:visible").all()]
    assert len(boxes) == page.locator("figure").count() == len(OF_EACH_SHAPE)
    width = page.viewport_size["width"]
    for box in boxes:
        assert box is not None
        assert 300 < box["width"] < width
        assert box["height"] > 150
    drawn = "svg => [...svg.querySelectorAll('path')].filter(p => p.getBBox().width > 1).length"
    for figure in page.locator("figure svg:visible").all():
        assert figure.evaluate(drawn) > 20


def test_the_page_fits_the_window_in_readable_letters(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    sizes = page.evaluate(
        "[...document.querySelectorAll('p, li, td, th, dd, dt, figcaption, pre')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 13
    # Text in a figure is 8 points high; its view box is in points.
    scales = page.evaluate(
        "[...document.querySelectorAll('figure svg')].filter(s => s.clientWidth)"
        ".map(s => s.clientWidth / s.viewBox.baseVal.width)"
    )
    assert min(scales) * 8 >= 11
    cut = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg'))"
        ".filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML)"
    )
    assert cut == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    contrasts = page.evaluate(
        """() => {
          const light = text => {
            const [r, g, b] = text.match(/[\\d.]+/g).map(v => v / 255)
              .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const back = light(getComputedStyle(document.body).backgroundColor);
          return [back, ...[...document.querySelectorAll('p, td, li, dt, figcaption')].map(e => {
            const fore = light(getComputedStyle(e).color);
            return (Math.max(fore, back) + 0.05) / (Math.min(fore, back) + 0.05);
          })];
        }"""
    )
    back, *ratios = contrasts
    assert (back > 0.5) == (scheme == "light")
    assert min(ratios) >= 4.5
