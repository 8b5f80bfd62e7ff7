import pytest

from fedsdr.report.plots import WIDTH, Series, bar_panel, line_panel, nice_ticks, tick_labels

ONE = Series("one", "s-global")


@pytest.mark.parametrize(
    ("low", "high"), [(0.61, 3.3), (0, 1), (6.02, 6.05), (0, 0), (1500, 90000), (2.5, 2.5)]
)
def test_ticks_enclose_the_values_and_can_be_told_apart(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    assert 2 <= len(ticks) <= 7
    assert len(set(tick_labels(ticks))) == len(ticks)


def test_lower_losses_lie_lower_and_later_rounds_further_right() -> None:
    panel = line_panel("math", {ONE: {1: 3.0, 2: 2.0, 4: 2.5}})
    (x1, y1, _), (x2, y2, _), (x4, y4, _) = panel.lines[0].points
    assert y1 < y4 < y2  # an SVG's y grows downwards
    assert x4 - x2 == pytest.approx(2 * (x2 - x1), abs=0.2)  # round 3 was not evaluated: its place stays
    assert panel.summary == "one 3.000 in round 1, 2.500 in round 4"


def test_one_round_alone_is_drawn() -> None:
    ((x, _, told),) = line_panel("math", {ONE: {1: 3.0}}).lines[0].points
    assert 0 < x < WIDTH
    assert told == "math, one, round 1: 3.000"


def test_bars_are_as_long_as_their_values() -> None:
    panel = bar_panel(
        "share", {"a": {ONE: (0.5, (0.25, 0.75))}, "b": {ONE: (1.0, None)}, "c": {ONE: None}}, 1.0
    )
    (_, _, _, (half,)), (_, _, _, (whole,)), (_, _, _, none) = panel.groups
    assert whole.end - panel.left == pytest.approx(2 * (half.end - panel.left), abs=0.2)
    assert half.whisker is not None
    assert sum(half.whisker) / 2 == pytest.approx(half.end, abs=0.2)
    assert none == ()
