"""The pages as a browser shows them: tabs, theme, phone, paper, and that nothing is fetched."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedsdr.config import Settings
from fedsdr.experiments.comparison import Comparison, Group, compare_runs
from fedsdr.experiments.grid_runs import GridRun
from fedsdr.experiments.page import write_grid_report
from fedsdr.report.page import write_report
from fedsdr.storage import read_json

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TABS = [
    "scores",
    "answers",
    "training",
    "alignment",
    "paradox",
    "consistency",
    "benchmarks",
    "costs",
    "settings",
]
SMALL = 360
CLIENTS = ["finance", "a-client-with-quite-a-long-name-that-does-not-fit", "math", "medicine", "code"]
MeasuredRun = Callable[..., tuple[Path, Settings]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page; at the end, it must have said nothing and fetched nothing but itself."""
    told: list[str] = []
    fetched: list[str] = []
    pages = []

    def open_page(path: Path, width: int = 1280, hash_: str = "", **kind: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 800}, **kind)
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(path.as_uri() + hash_)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert told == []
    assert len(fetched) == len(pages)


def shown(page: Any) -> list[str]:
    """The tabs that can be seen."""
    return [
        section.get_attribute("id").removesuffix("-section")
        for section in page.locator("section.tab").all()
        if section.is_visible()
    ]


def background(page: Any) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_one_tab_is_shown_at_a_time_by_pointer_and_by_keyboard(
    visit: Callable[..., Any], make_measured: MeasuredRun
) -> None:
    page = visit(write_report(*make_measured()))
    assert shown(page) == ["scores"]
    for tab in reversed(TABS):
        page.locator(f"label:has(#show-{tab})").click()
        assert shown(page) == [tab]
    page.locator("#show-scores").focus()
    for tab in TABS[1:]:
        page.keyboard.press("ArrowRight")
        assert shown(page) == [tab]
    page.keyboard.press("ArrowRight")
    assert shown(page) == TABS  # "All"


def test_the_chosen_tab_and_the_focus_can_be_seen_and_are_told(
    visit: Callable[..., Any], make_measured: MeasuredRun
) -> None:
    page = visit(write_report(*make_measured()))
    group = page.get_by_role("group", name="Part of this page to show")
    assert group.get_by_role("radio", name="Scores", exact=True).is_checked()
    page.keyboard.press("Tab")  # to the theme
    page.keyboard.press("ArrowRight")
    label = "document.activeElement.nextElementSibling"
    assert page.evaluate(f"{label}.textContent") == "Light"
    assert page.evaluate(f"getComputedStyle({label}).outlineStyle") == "solid"


def test_a_link_to_a_hidden_section_shows_it(visit: Callable[..., Any], make_measured: MeasuredRun) -> None:
    path = write_report(*make_measured())
    assert "costs" in shown(visit(path, hash_="#costs-section"))
    page = visit(path, hash_="#likeness-tfidf")
    assert page.locator("#likeness-tfidf").is_visible()


def test_theme_follows_the_system_until_one_is_chosen(
    visit: Callable[..., Any], make_measured: MeasuredRun
) -> None:
    path = write_report(*make_measured())
    light, dark = visit(path), visit(path, color_scheme="dark")
    white, black = background(light), background(dark)
    assert white != black
    light.locator("label:has(#theme-dark)").click()
    dark.locator("label:has(#theme-light)").click()
    assert (background(light), background(dark)) == (black, white)
    light.emulate_media(media="print")
    assert background(light) == white  # paper is white


# How light a colour is seen, as WCAG 2.2 defines it, of the text and what it lies on.
CONTRAST = """() => {
  const light = colour => {
    const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => {
      v /= 255;
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let least = 99;
  for (const text of document.querySelectorAll("svg .value")) {
    const [a, b] = [text, text.previousElementSibling].map(it => light(getComputedStyle(it).fill));
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_on_coloured_cells_can_be_read(
    visit: Callable[..., Any], make_measured: MeasuredRun, scheme: str
) -> None:
    page = visit(write_report(*make_measured()), color_scheme=scheme)
    page.locator("#show-all").check(force=True)
    assert 4.5 < page.evaluate(CONTRAST) < 99  # 4.5: WCAG 2.2, success criterion 1.4.3


# Texts that leave their plot, as they are drawn, turned ones too.
CLIPPED = """() => [...document.querySelectorAll("svg text")].filter(text => {
  const outer = text.ownerSVGElement.getBoundingClientRect(), inner = text.getBoundingClientRect();
  return inner.left < outer.left - 1 || inner.right > outer.right + 1
    || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
}).map(text => text.textContent)"""


@pytest.mark.parametrize("width", [SMALL, 390, 1280])
def test_nothing_sticks_out(visit: Callable[..., Any], make_measured: MeasuredRun, width: int) -> None:
    page = visit(write_report(*make_measured(clients=CLIENTS)), width=width)
    for tab in [*TABS, "all"]:
        page.locator(f"#show-{tab}").check(force=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
    assert page.evaluate(CLIPPED) == []


def test_every_section_has_its_plots_and_each_tells_its_values(
    visit: Callable[..., Any], make_measured: MeasuredRun
) -> None:
    page = visit(write_report(*make_measured()))
    plots = {
        "scores": 1 + 6,  # scores; losses of five domains and their mean
        "answers": 0,
        "training": 6,
        "alignment": 5 * 3 + 2 * 3 + 2,  # five measures and two texts in three views; two maps
        "paradox": 5 + 2 * 8,  # counts of the run; texts and answers, by four kinds and two checkers' shares
        "consistency": 2 + 2 + 1 + 5,  # layers; clients; what is kept; losses of five clients
        "benchmarks": 3 + 1,  # likelihood, strict, flexible; win rates
        "costs": 0,
        "settings": 0,
    }
    for tab, num in plots.items():
        assert page.locator(f"#{tab}-section svg").count() == num, tab
    for plot in page.locator("svg").all():
        assert plot.get_attribute("role") == "img"
        assert all(plot.locator(f"> {name}").text_content() for name in ("title", "desc"))


def test_the_page_of_a_run_that_goes_on_reloads_itself_and_keeps_the_chosen_tab(
    browser: Any, make_run: MeasuredRun
) -> None:
    folder, settings = make_run(rounds=2)
    path = write_report(folder, settings, refresh=1)
    page, loads, said = browser.new_page(), [], []
    page.on("load", lambda it: loads.append(it.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(path.as_uri())
    assert "running: 2 of 4 rounds" in page.locator(".status").text_content()
    page.locator("#show-training").check(force=True)
    page.wait_for_function("() => performance.getEntriesByType('navigation')[0].type === 'reload'")
    assert shown(page) == ["training"]
    write_report(folder, settings)
    page.wait_for_function("() => !document.querySelector('script')")
    assert "unfinished: 2 of 4 rounds" in page.locator(".status").text_content()
    assert len(loads) >= 3
    assert said == []
    page.close()


def test_paper_has_all_parts_one_after_the_other(
    visit: Callable[..., Any], make_measured: MeasuredRun
) -> None:
    page = visit(write_report(*make_measured()))
    page.emulate_media(media="print")
    assert shown(page) == TABS
    assert not page.locator("fieldset").first.is_visible()
    assert page.pdf().startswith(b"%PDF")


def test_a_large_run_is_a_small_page(visit: Callable[..., Any], make_measured: MeasuredRun) -> None:
    clients = [f"client-{number}" for number in range(10)]
    path = write_report(*make_measured(clients=clients, rounds=10, of=10))  # of 30 blocks
    assert path.stat().st_size < 3_000_000
    page = visit(path)
    numbers = page.locator("#likeness-js svg").first.locator(".value")
    assert numbers.count() == 10 * 9
    rows = page.locator("#consistency-layers svg").first.locator(".label").all_text_contents()
    assert rows == [f"block {number}" for number in range(30)] + [str(number) for number in range(1, 11)]


def test_what_was_not_measured_says_which_command_does(
    visit: Callable[..., Any], make_run: MeasuredRun
) -> None:
    page = visit(write_report(*make_run()))
    for tab in ("alignment", "paradox", "consistency", "benchmarks"):
        assert "fedsdr measure RUN" in page.locator(f"#{tab}-section").text_content(), tab


@pytest.fixture
def grid_comparison(made_up: Any) -> Comparison:
    """Three arms, equal in one of two ways, with two seeds each, and a verdict."""
    domains = ["finance", "math"]
    runs = [
        GridRun(
            arm, seed, made_up.table(domains, {"global": 0.0}),
            made_up.table(domains, {"global": done + seed / 20}), [made_up.train(1, "math", ("shared",))], {},
        )
        for arm, done in (("fedit", 0.6), ("fedsd", 0.5), ("fedsdr", 0.7))
        for seed in range(2)
    ]  # fmt: skip
    groups = {
        "equal steps per round": Group(["fedit", "fedsd"], "fedit", "fedit"),
        "equal steps of the shared adapter": Group(["fedit", "fedsdr"], "fedit", "fedit"),
    }
    for run in runs:
        for table in (run.base, run.final):
            table["global"]["mean"]["words"] = 30.0
    verdict = {"claim": "fedsdr beats fedit", "verdict": "undecided", "text": "+0.05 [-0.10, +0.20]"}
    return replace(compare_runs(runs, groups, []), verdicts=[verdict])


@pytest.mark.parametrize("width", [SMALL, 1280])
def test_a_grid_has_verdicts_scores_and_tabs(
    visit: Callable[..., Any], make_run: MeasuredRun, grid_comparison: Comparison, width: int
) -> None:
    folder, settings = make_run()
    environment = read_json(folder / "environment.json")
    links = [("fedit, seed 0", "fedit/seed-0/report.html")]
    path = write_grid_report(folder, grid_comparison, "", settings, environment, links=links)
    page = visit(path, width=width)
    assert page.locator("#part-runs-section a").get_attribute("href") == links[0][1]
    assert page.locator(".summary figure circle").count() > 0  # the forest plots
    assert "undecided" in page.locator(".verdicts li").text_content()
    assert page.locator(".summary table").count() == 2  # scores, in either way
    for tab in ("part-1", "part-2", "part-domains"):
        page.locator(f"label:has(#show-{tab})").click()
        assert shown(page) == [tab]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#part-1-section svg").count() == 3  # score, two losses
