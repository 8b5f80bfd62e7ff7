import base64
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedsdr.config import Settings
from fedsdr.report.events import train_records
from fedsdr.report.page import PageWriter, write_report
from fedsdr.report.sheets import to_csv
from fedsdr.storage import read_lines

MakeRun = Callable[..., tuple[Path, Settings]]
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """What a test wants to know of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def parse(make_run: MakeRun, **kind: object) -> Page:
    return Page(write_report(*make_run(**kind)).read_text())


def test_tags_close_and_every_id_that_is_referred_to_exists_once(make_run: MakeRun) -> None:
    page = parse(make_run)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    wanted = [name for _, a in page.tags for name in (a.get("aria-labelledby") or "").split()]
    wanted += [(a["href"] or "")[1:] for a in page.all("a") if (a["href"] or "").startswith("#")]
    assert wanted
    assert set(wanted) <= set(ids)


def test_every_plot_tells_its_title_and_its_values(make_run: MakeRun) -> None:
    page = parse(make_run)
    plots = page.all("svg")
    assert len(plots) == 1 + 6 + 6 + 5  # scores; five clients and mean; five domains and mean; five measures
    assert all(len((plot["aria-labelledby"] or "").split()) == 2 for plot in plots)
    assert "private adapter, on distilled data 3.300 in round 1, 2.310 in round 4" in page.text


def test_page_loads_nothing_from_elsewhere_and_is_small(make_run: MakeRun) -> None:
    path = write_report(*make_run())
    page = Page(path.read_text())
    links = [a.get("href") or "" for a in page.all("a")]
    assert all(link.startswith(("#", "data:text/csv;base64,")) for link in links)
    assert not [a for _, a in page.tags if "src" in a or "onclick" in a]
    assert {"script", "link", "img", "iframe"}.isdisjoint(tag for tag, _ in page.tags)
    assert "url(" not in path.read_text()
    assert path.stat().st_size < 500_000


def test_text_from_data_is_escaped(make_run: MakeRun) -> None:
    evil = "<script>alert(1)</script>"
    path = write_report(*make_run(clients=[evil, "math"], model=f'"><img src=x>{evil}'))
    page = Page(path.read_text())
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert evil in page.text


def test_csv_of_a_plot_holds_its_records(make_run: MakeRun) -> None:
    folder, settings = make_run()
    page = Page(write_report(folder, settings).read_text())
    (link,) = (a["href"] or "" for a in page.all("a") if a.get("download") == "training.csv")
    text = base64.b64decode(link.partition(",")[2]).decode()
    assert text == to_csv(train_records(read_lines(folder / "metrics.jsonl")))
    assert len(text.splitlines()) == 1 + 4 * 5 * 2  # rounds, clients, adapters


def test_first_screen_says_what_was_run(make_run: MakeRun) -> None:
    first, _, _ = parse(make_run).text.partition("Part of this page to show")
    for words in (
        "fedsdr: with rectification",
        "Q4_1 dequantised",
        "5: code, finance",
        "4; 8 steps",
        "built-in",
    ):
        assert words in first
    assert "own private adapter" in first
    assert "unfinished" not in first


def test_one_adapter_has_no_personalised_model_and_no_rewriting(make_run: MakeRun) -> None:
    page = parse(make_run, method="fedit")
    assert "fedit trains one adapter" in page.text
    assert "No training response was rewritten" in page.text
    assert "personalised model, on" not in page.text


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ({"rounds": 2}, "unfinished: 2 of 4 rounds"),
        ({"rounds": 4, "evaluated": False}, "unfinished: 4 of 4 rounds; the last evaluation is missing"),
        ({"rounds": 0}, "Scores of the base model"),
        ({"rounds": 0, "evaluated": False}, "Nothing was evaluated yet."),
    ],
)
def test_unfinished_run_is_shown_as_far_as_it_went(make_run: MakeRun, kind: dict, said: str) -> None:
    page = parse(make_run, **kind)
    assert said in page.text
    assert "unfinished" in page.text


def test_settings_that_differ_come_with_their_defaults(make_run: MakeRun) -> None:
    text = parse(make_run).text
    assert "server.num_rounds 4 3" in text
    changed = text.partition("Settings that differ from the defaults")[2].partition("All settings")[0]
    assert "client.batch_size" not in changed
    assert "client.batch_size 4 4 Examples in one forward pass." in text.partition("All settings")[2]


def test_the_report_imports_no_torch() -> None:
    code = "import sys, fedsdr.report.page; sys.exit('torch' in sys.modules or 'flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_page_of_now_that_cannot_be_written_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []
    said: list[str] = []
    monkeypatch.setattr("fedsdr.report.page.say", said.append)

    def write() -> None:
        written.append("page")
        raise OSError("no space left")

    writer = PageWriter(write)
    writer.write()
    assert said == ["  the page is not up to date: no space left"]
    writer.next += 60  # it took 3 seconds
    writer.write()
    assert len(written) == 1
