"""The drawing of gain over cost: a panel for each kind of model, points where costs and gains say."""

import re
from xml.etree import ElementTree

import pytest

from fedsdr.report.frontier import frontier_svg
from fedsdr.storage import Event


def point(arm: str, cost: float, gain: float, scale: float = 1.0, model: str = "global") -> Event:
    return {"arm": arm, "model": model, "round": 4, "scale": scale, "num_seeds": 1, "cost": cost,
            "gain": gain, "low": None, "high": None}  # fmt: skip


def test_a_cost_of_a_quarter_lies_half_way_since_the_axis_is_linear_in_its_root():
    points = [point("fedit", 0.04, 0.1, 0.5), point("fedit", 0.16, 0.2), point("fedsd", 0.04, 0.15)]
    svg = frontier_svg(points, {"global": "fedit", "personalised": "local-only"})
    ElementTree.fromstring(svg)
    assert "personalised" not in svg  # there are no such points
    # The control's line begins at the base, at no cost and no gain.
    line = re.search(r'<path d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', svg)
    assert line
    (x0, y0), (x1, y1), (x2, y2) = (map(float, line.group(n, n + 1)) for n in (1, 3, 5))
    assert x1 - x0 == pytest.approx((x2 - x0) / 2, abs=0.2)
    assert y0 - y1 == pytest.approx((y0 - y2) / 2, abs=0.2)
    assert y2 < y1 < y0  # up is more


def test_names_of_arms_are_escaped():
    assert "<b>" not in frontier_svg([point("a<b>", 0.1, 0.1)], {"global": "a<b>"})
