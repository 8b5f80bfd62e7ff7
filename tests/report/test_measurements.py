from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsdr.config import Settings
from fedsdr.report.answers import benchmark_sheet
from fedsdr.report.blocks import Table
from fedsdr.report.figures import Figure
from fedsdr.report.measurements import SHOWN, measurement_tabs, read_measurements, verdicts
from fedsdr.report.page import write_report
from fedsdr.report.sheets import Sheet
from fedsdr.storage import read_json, write_json

MeasuredRun = Callable[..., tuple[Path, Settings]]


def figures(folder: Path) -> dict[str, Figure]:
    return {
        b.key: b
        for blocks in measurement_tabs(read_measurements(folder)).values()
        for b in blocks
        if isinstance(b, Figure)
    }


def sheets(folder: Path) -> dict[str, Sheet]:
    found = [
        b
        for blocks in measurement_tabs(read_measurements(folder)).values()
        for b in blocks
        if isinstance(b, Table)
    ]
    return {table.key: table.sheet for table in found}


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / "measurements" / f"{name}.json"
    write_json(path, read_json(path) | values)


def test_every_measurement_has_a_place_and_no_run_needs_any(
    make_run: MeasuredRun, make_measured: MeasuredRun
) -> None:
    assert measurement_tabs(read_measurements(make_run()[0])) == {}
    folder, _ = make_measured()
    assert list(read_measurements(folder)) == list(SHOWN)
    assert {
        tab: len(blocks) > 3 for tab, blocks in measurement_tabs(read_measurements(folder)).items()
    } == dict.fromkeys(["alignment", "paradox", "consistency", "benchmarks"], True)


def test_verdicts_come_in_the_order_of_the_measurements_from_any_file(make_measured: MeasuredRun) -> None:
    folder, _ = make_measured()
    late = {"claim": "c", "verdict": "supported", "text": "t"}
    made = {"records": [], "notes": [], "command": "c", "seconds": 1.0}
    write_json(folder / "measurements" / "all.json", made | {"verdicts": [late]})
    found = [one["verdict"] for one in verdicts(read_measurements(folder))]
    assert found == ["supported", "undecided", "refuted", "not measured", "supported"]


def test_raw_and_distilled_have_one_scale_so_that_colours_compare(make_measured: MeasuredRun) -> None:
    folder, _ = make_measured(clients=["a", "b", "c"])
    values = {"raw": (0.6, 0.5, 0.4), "distilled": (0.4, 0.3, 0.2), "difference": (-0.2, -0.2, -0.2)}
    pairs = (("a", "b"), ("a", "c"), ("b", "c"))
    records = [
        {"measure": "js", "view": view, "a": a, "b": b, "value": value, "low": value, "high": value}
        for view, some in values.items()
        for (a, b), value in zip(pairs, some, strict=True)
    ]
    change(folder, "alignment", records=records)
    raw, distilled, difference = figures(folder)["likeness-js"].panels
    assert [cell.style for cell in raw.cells if cell.shown == "0.40"] == ["h5", "h5"]  # both halves
    assert [cell.style for cell in distilled.cells if cell.shown == "0.40"] == ["h5", "h5"]
    assert {cell.style for cell in difference.cells} == {"c10"}


def test_means_stand_with_their_intervals_and_the_difference(make_measured: MeasuredRun) -> None:
    folder, _ = make_measured()
    (mean,) = [
        one
        for one in read_measurements(folder)["alignment"]["records"]
        if (one["measure"], one["view"], one["a"]) == ("tfidf", "difference", "mean")
    ]
    sheet = sheets(folder)["alignment-means"]
    assert sheet.rows[-1][-1] == f"{mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]"


def test_many_layers_are_put_together_by_block_and_a_layer_that_did_not_change_counts_as_nothing(
    make_measured: MeasuredRun,
) -> None:
    folder, _ = make_measured(num_layers=21)  # two projections each: 42 layers
    records = read_measurements(folder)["consistency"]["records"]
    cosine, _ = figures(folder)["consistency-layers"].panels
    assert [label for _, _, label in cosine.rows] == [f"block {number}" for number in range(21)]
    (q, v) = [
        one["cosine"] for one in records if one["round"] == 1 and one["layer"].startswith("model.layers.0.")
    ]
    assert q is None
    (first,) = [cell for cell in cosine.cells if cell.hint.startswith("block 0, 1:")]
    assert first.hint == f"block 0, 1: {v:.2f}"


def test_few_layers_keep_their_projections(make_measured: MeasuredRun) -> None:
    folder, _ = make_measured(num_layers=2)
    cosine, _ = figures(folder)["consistency-layers"].panels
    assert [label for _, _, label in cosine.rows] == ["0 q_proj", "0 v_proj", "1 q_proj", "1 v_proj"]


def test_a_csv_file_holds_what_is_drawn_and_not_every_layer_of_every_pair(make_measured: MeasuredRun) -> None:
    folder, _ = make_measured(rounds=4)
    drawn = figures(folder)["consistency-clients"].records
    assert {(one["round"], one["layer"]) for one in drawn} == {(4, "all")}
    assert len(drawn) == 10  # pairs of five clients


def test_subjects_of_a_benchmark_stand_in_its_records_alone() -> None:
    whole = {"task": "mmlu", "metric": "likelihood", "model": "base", "value": 0.31, "stderr": 0.02}
    whole |= {"chance": 0.25, "num": 400, "origin": "local"}
    records = [whole, whole | {"subject": "law", "value": 0.5, "stderr": None, "num": 20}]
    sheet = benchmark_sheet(records)
    assert sheet.rows == (("mmlu", "likelihood", "0.31 ± 0.02", "0.25", "400", "local"),)
    assert list(sheet.records) == records


def test_no_right_answer_in_ten_is_not_shown_as_certain() -> None:
    """Its standard error is 0. Wilson's upper end is z^2 / (n + z^2) = 3.84 / 13.84."""
    none = {"task": "gsm8k", "metric": "strict", "model": "base", "value": 0.0, "stderr": 0.0}
    sheet = benchmark_sheet([none | {"chance": None, "num": 10, "origin": "local"}])
    assert sheet.rows[0][2] == "0.00 [0.00, 0.28]"


@pytest.mark.parametrize("name", SHOWN)
def test_a_measurement_without_records_shows_its_notes(make_measured: MeasuredRun, name: str) -> None:
    folder, settings = make_measured()
    change(folder, name, records=[], notes=["One client alone."], examples=[])
    text = write_report(folder, settings).read_text()
    assert "Nothing could be measured." in text
    assert "One client alone." in text


def test_texts_of_examples_are_escaped(make_measured: MeasuredRun) -> None:
    text = write_report(*make_measured()).read_text()
    assert "<b>nothing</b>" not in text
    assert "&lt;b&gt;nothing&lt;/b&gt;" in text
