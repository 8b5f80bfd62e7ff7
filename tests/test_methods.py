"""The tables: every advertised name exists, leads to a function, and is distinct from a misspelt one."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from fedsdr.data.examples import Example
from fedsdr.distill.prompts import rewriting_turns
from fedsdr.errors import UserError
from fedsdr.methods import (
    AGGREGATIONS,
    DRIFT_CORRECTIONS,
    METHODS,
    OPTIMIZERS,
    PROMPTS,
    ROBUST_AGGREGATORS,
    look_up,
)
from fedsdr.rows import Method, Stage
from fedsdr.server.aggregate import AGGREGATE
from fedsdr.server.optimize import OPTIMIZE
from fedsdr.server.robust import ROBUST

TABLES = {"method": METHODS, "aggregation": AGGREGATIONS, "optimizer": OPTIMIZERS, "prompt": PROMPTS,
          "robust": ROBUST_AGGREGATORS, "drift_correction": DRIFT_CORRECTIONS}  # fmt: skip


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_row_says_what_it_is_and_where_it_comes_from(table):
    assert all(row.summary and row.paper for row in table.values())


def test_every_name_has_its_function_and_every_function_its_name():
    """Went wrong elsewhere: seven algorithms were advertised, one of them raised when it was chosen."""
    assert list(AGGREGATE) == list(AGGREGATIONS)
    assert list(OPTIMIZE) == list(OPTIMIZERS)
    assert list(ROBUST) == list(ROBUST_AGGREGATORS)
    for name in PROMPTS:
        assert rewriting_turns(name, Example("Why?", "Because.", "general"))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_only_adapters_that_are_active_and_all_but_one_the_shared_one(name: str):
    """Whatever a server aggregates must be trained, and whatever is trained must be in the forward pass."""
    stages = METHODS[name].stages
    assert METHODS[name].shares == (name != "local-only")
    assert all(set(stage.train) <= set(stage.active) for stage in stages)


def test_fedsdr_smooths_privately_on_rewritten_data_and_then_rectifies_on_raw_data():
    """The order and the frozen halves of the paper's section 4."""
    smooth, rectify = METHODS["fedsdr"].stages
    assert (smooth.train, smooth.on, set(smooth.active)) == (("private",), "distilled", {"shared", "private"})
    assert (rectify.train, rectify.on, set(rectify.active)) == (("shared",), "raw", {"shared", "private"})


def test_what_a_method_needs_follows_from_its_stages():
    found = {name: (row.has_private, row.needs_rewritings) for name, row in METHODS.items()}
    assert found["fedit"] == (False, False)
    assert found["fedsd"] == (False, True)
    assert found["fedsdr"] == (True, True)
    assert found["dual-raw"] == (True, False)
    assert found["mixed"] == (False, True)
    assert found["local-only"] == (True, False)
    assert found["fdlora"] == (True, False)  # private before the rounds only


def test_every_method_with_an_adapter_of_the_clients_own_has_a_personalised_model():
    assert {name for name, row in METHODS.items() if not row.has_personal} == {
        "fedit", "fedit-wide", "fedsd", "fedsd-then-raw", "mixed", "token-mask", "centralised"}  # fmt: skip
    assert not METHODS["fedala"].has_private  # its own adapter is the shared one, as it trained it


BOTH = ("shared", "private")
RAW = Stage(("shared",), "raw", ("shared",))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        # Without the client's last adapter there is nothing to move, and the row would be plain fedit.
        (lambda: Method("", "", (RAW,), on_receive="adapt"), "needs the client's last shared adapter"),
        # Its private adapter would be taken for its last shared one.
        (
            lambda: Method(
                "", "", (RAW, Stage(("private",), "raw", BOTH)), on_receive="adapt", personal="own"
            ),
            "keeps its shared adapter",
        ),
        (lambda: Stage(("private",), "raw", ("shared",)), "train active adapters"),
        (lambda: Stage((), "raw", ("shared",)), "train active adapters"),
        (lambda: Stage(("shared",), "raw", BOTH, mix=(1.0,)), "give each active adapter a weight"),
    ],
)
def test_a_row_of_ones_own_that_no_client_would_train_as_it_says_is_refused(
    row: Callable[[], object], says: str
):
    with pytest.raises(ValueError, match=says):
        row()


def test_stages_of_one_learner_are_told_apart():
    assert METHODS["fedsdr"].stage_names() == ("private", "shared")
    assert METHODS["fedsd-then-raw"].stage_names() == ("shared-distilled", "shared-raw")
    for method in METHODS.values():
        assert len(set(method.stage_names())) == len(method.stages)


def test_an_unknown_name_is_refused_and_the_known_ones_are_listed_nearest_first():
    with pytest.raises(UserError) as caught:
        look_up(METHODS, "fedsdrr", "method")
    ranked = str(caught.value).partition("nearest first: ")[2].split(", ")
    assert ranked[0] == "fedsdr"
    assert sorted(ranked) == sorted(METHODS)
    assert look_up(METHODS, "fedsdr", "method") is METHODS["fedsdr"]
    with pytest.raises(UserError, match=r"'FedSDR' is unknown; did you mean fedsdr\?$"):
        look_up(METHODS, "FedSDR", "method")


def test_settings_and_tables_are_read_without_torch():
    """`fedsdr --help` must be fast."""
    code = "import sys, fedsdr.config; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
