import itertools

import pytest

from fedsdr.report.maps import MARKS, MOST_HINTS, MOST_ROWS, Ramp, heat_panel, palette, scatter_panel
from fedsdr.report.plots import WIDTH


def test_a_change_is_coloured_by_its_sign_and_others_from_the_least_to_the_greatest() -> None:
    change = Ramp.of([-0.1, 0.2, None], is_change=True)
    assert [change.style(value) for value in (-0.2, -0.1, 0.0, 0.1, 0.2)] == ["c10", "c5", "h0", "h5", "h10"]
    level = Ramp.of([0.5, 0.7])
    assert [level.style(value) for value in (0.5, 0.6, 0.7)] == ["h0", "h5", "h10"]
    assert Ramp.of([0.3]).style(0.3) == "h5"
    assert (
        Ramp.of([0.1, 0.3], is_change=True).style(0.15) == "h5"
    )  # not the least of its ramp: there is a zero


def test_numbers_have_the_decimals_that_tell_them_apart_and_room_or_a_hint() -> None:
    names = [f"c{number}" for number in range(10)]
    matrix = {(a, b): -0.0039 for a in names for b in names}
    ramp = Ramp.of(matrix.values(), is_change=True)
    assert heat_panel("m", matrix, names[:3], names[:3], ramp).cells[0].shown == "-0.0039"
    crowded = heat_panel("m", matrix, names, names, ramp).cells[0]  # ten times seven signs do not fit
    assert (crowded.shown, crowded.hint) == ("", "c0, c0: -0.0039")
    assert Ramp.of([0.991, 0.995]).digits == 4
    assert Ramp.of([0.2, 0.9]).digits == 2


def test_cells_stand_in_their_row_and_column_with_their_number() -> None:
    matrix = {("a", "x"): 0.25, ("b", "y"): 0.75, ("b", "x"): None}
    panel = heat_panel("m", matrix, ["a", "b"], ["x", "y"], Ramp.of([0.0, 1.0]))
    first, second = panel.cells
    assert (first.shown, second.shown) == ("0.25", "0.75")
    width, height = panel.cell
    assert second.x - first.x == pytest.approx(width, abs=0.1)
    assert second.y - first.y == pytest.approx(height, abs=0.1)
    assert panel.columns[1][0] == pytest.approx(second.x + width / 2, abs=0.1)
    assert "least 0.25 (a, x); greatest 0.75 (b, y); mean 0.50" in panel.summary


@pytest.mark.parametrize(("num", "has_numbers"), [(10, True), (11, False)])
def test_more_than_ten_clients_have_colours_alone_with_hints_for_a_pointer(
    num: int, has_numbers: bool
) -> None:
    names = [f"client-{number}" for number in range(num)]
    panel = heat_panel("m", {(a, b): 0.5 for a in names for b in names}, names, names, Ramp.of([0.0, 1.0]))
    assert len(panel.cells) == num * num
    assert all(bool(cell.shown) == has_numbers != bool(cell.hint) for cell in panel.cells)
    assert max(cell.x for cell in panel.cells) + panel.cell[0] <= WIDTH


def test_of_large_matrices_the_first_rows_are_drawn_without_words() -> None:
    names = [f"client-{number}" for number in range(100)]
    panel = heat_panel("m", {(a, b): 0.5 for a in names for b in names}, names, names, Ramp.of([0.0, 1.0]))
    assert len(panel.cells) == MOST_ROWS**2 > MOST_HINTS
    assert {cell.hint for cell in panel.cells} == {""}
    assert max(cell.x for cell in panel.cells) + panel.cell[0] <= WIDTH


def test_a_matrix_without_values_says_so() -> None:
    panel = heat_panel("m", {("a", "x"): None}, ["a"], ["x"], Ramp.of([None]))
    assert panel.cells == ()
    assert panel.summary == "1 rows, 1 columns; no values"


def test_ten_domains_differ_in_colour_and_neighbours_in_mark() -> None:
    series = list(palette(f"domain-{number}" for number in range(10)).values())
    assert len({one.style for one in series}) == 10
    assert all(a.mark != b.mark for a, b in itertools.pairwise(series))


def test_points_keep_their_places_beside_each_other() -> None:
    (series,) = palette(["math"]).values()
    panel = scatter_panel("raw", {series: [(-1.0, 0.0), (1.0, 2.0)]}, (-1.0, 1.0, 0.0, 2.0))
    ((_, path),) = panel.points
    mark = MARKS[series.mark]
    # Ends of the bounds, twelve units from the edges; an SVG's y grows downwards.
    assert path == f"M12 {panel.height - 12:g}{mark}M{WIDTH - 12} 12{mark}"
    assert panel.summary == "2 points of math"
