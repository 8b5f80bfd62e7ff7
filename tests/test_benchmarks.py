"""The benchmarks: their measurements can be loaded, what growth.py reads, and what equal_answers.py counts."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from fedsdr.federation.client_context import close_clients
from fedsdr.recipe import load_settings


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return `benchmark(name)`: a script of benchmarks/."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module


@pytest.fixture
def growth(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("growth")


def test_measurements_are_loaded_with_everything_they_import(benchmark: Callable[[str], ModuleType]):
    """`make bench` failed where a name that they import had moved."""
    assert {"train_ours", "federation", "generate_llama_cpp"} <= benchmark("measures").MEASURES.keys()


def test_steps_off_the_expected_slope_are_named(growth: ModuleType):
    """A cost of x up to 100, from there on of x^2 / 100: one step departs, with slope 2."""
    points = [(size, size if size <= 100 else size * size / 100) for size in (1, 10, 100, 1000)]
    (step,) = growth.departures(points, 1)
    assert step == (100, 1000, pytest.approx(2))
    assert growth.slope(points[:3]) == pytest.approx(1)
    assert growth.departures([(size, 7.0) for size in (4, 8, 64)], 0) == []


def test_a_table_and_a_drawing_can_be_made_after_the_first_point(growth: ModuleType):
    """They are written after each measured point."""
    curve = growth.AXES["clients"].curves[0]
    row = {one.key: 0.5 for one in growth.AXES["clients"].curves}
    assert growth.read({"clients": {"5": row}}) == []
    assert growth.drawing({"clients": {"5": row}}).count("<circle") == 2
    tenfold = {one.key: 10 * row[one.key] for one in growth.AXES["clients"].curves}
    table = growth.as_markdown(growth.read({"clients": {"5": row, "50": tenfold}}))
    assert f"| clients: 5, 50 | {curve.label} | 500, 5e+03 | 1.00 | 0 | 5 to 50: 1.00 |" in table


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_simulation_writes_the_rewritings_and_files_of_the_nodes_of_a_deployment(
    benchmark: Callable[[str], ModuleType], tmp_path: Path, dtype: str
):
    """What benchmarks/equal_answers.py counts with a real model and real data."""
    equal_answers = benchmark("equal_answers")
    chosen = {
        "model.name": "tiny",
        "model.dtype": dtype,
        "distill.max_new_tokens": 6,
        "distill.batch_size": 4,
    }
    values = equal_answers.SETTINGS | chosen
    equal_answers.choose(load_settings(None, values), 5, tmp_path)
    nodes = [path.name for path in (tmp_path / "all").iterdir()]
    found = []
    for way, clients in (("together", [""]), ("apart", nodes)):
        to = str(tmp_path / way)
        for client in clients:
            data = str(tmp_path / (client or "all"))
            equal_answers.write(client, values | {"data.root": data, "run.dir": to, "run.cache": to})
            close_clients()
        found.append({path.name: path.read_bytes() for path in Path(to).glob("rewritings/*.jsonl")})
    assert found[0] == found[1]
    assert [len(lines.splitlines()) for lines in found[0].values()] == 5 * [5]
