"""What goes with what: the refusal, the listing and the documentation say the same."""

import re
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedsdr import compatibility
from fedsdr.compatibility import CHOICES, allowed_with
from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.recipe import check_settings, load_settings
from fedsdr.rules import RULES, USES

COMPLETING: dict[tuple[str, str], dict[str, Any]] = {
    ("server.aggregation", "zeropad"): {"lora.client_ranks": {"a": 1}},
    ("client.drift_correction", "scaffold"): {"client.max_grad_norm": 0, "client.optimizer": "sgd"},
    **{("server.robust", name): {"server.num_byzantine": 1} for name in CHOICES["server.robust"] if name not in ("none", "median")},
}  # fmt: skip
"""What a choice needs besides other choices."""

SERVED = ["distill.url=http://localhost:8000/v1", "distill.served_name=own"]
"""Settings of a run whose responses a server rewrites."""


@pytest.mark.parametrize(("key", "other"), list(combinations(CHOICES, 2)))
def test_a_pair_is_refused_by_the_settings_where_the_listing_says_so(key: str, other: str):
    for name, found in product(CHOICES[key], CHOICES[other]):
        pair = {key: name, other: found}
        completing: dict[str, Any] = {}
        for choice in pair.items():
            completing |= COMPLETING.get(choice, {})
        is_refused = False
        try:
            load_settings(None, completing | pair)
        except UserError:
            is_refused = True
        assert (found in allowed_with(key, name)[other]) == (not is_refused), pair
        assert (name in allowed_with(other, found)[key]) == (not is_refused), pair


def test_a_refusal_names_both_settings_the_reason_and_both_ways_out():
    with pytest.raises(UserError) as caught:
        load_settings(None, ["server.aggregation=fedrot", "communication.dtype=int8"])
    message = str(caught.value)
    assert (
        "communication.dtype = 'int8' does not go with server.aggregation = 'fedrot', which rotates"
        in message
    )
    assert "set communication.dtype to 'float32', or set server.aggregation to any but 'fedrot'" in message


def test_all_broken_rules_are_named_at_once():
    words = [
        "server.aggregation=flexlora",
        "server.robust=median",
        "server.optimizer=fedadam",
        "fedala.rate=2.0",
    ]
    with pytest.raises(UserError) as caught:
        load_settings(None, words)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert (
        "fedala.rate = 2.0 does nothing under method = 'fedsdr': leave it out, or set method to 'fedala'"
        in lines[2]
    )


def test_every_setting_that_a_rule_names_exists():
    keys = {key for rule in RULES for key in (*rule.under, *rule.needs)} | {use.key for use in USES}
    sections = Settings()
    for key in keys | {use.setting for use in USES}:
        part: Any = sections
        for name in key.split("."):
            part = getattr(part, name)


@pytest.mark.parametrize("key", [key for use in USES if "." in (key := use.setting) and use.key in CHOICES])
@hypothesis_settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_what_a_choice_reads_may_be_set_with_it_and_with_no_other(key: str, data: st.DataObject):
    (use,) = (use for use in USES if use.setting == key)
    value = {"server.rotation_reference": "B", "server.num_byzantine": 1}.get(
        key, 2 if key.startswith("fdlora") else 0.25
    )
    name = data.draw(st.sampled_from(sorted(CHOICES[use.key])))
    others = {"server.num_byzantine": 1} if key == "server.num_byzantine" else {}
    others |= COMPLETING.get((use.key, name), {})
    is_read = name in [row for row in CHOICES[use.key] if use.by(CHOICES[use.key][row])]  # type: ignore[operator]
    words = others | {use.key: name, key: value}
    if is_read:
        load_settings(None, words)
    else:
        with pytest.raises(
            UserError, match=re.escape(f"{key} = {value!r} does nothing under {use.key} = {name!r}")
        ):
            load_settings(None, words)


@pytest.mark.parametrize(
    ("words", "using", "idle"),
    [
        (["partition.alpha=0.1"], ["partition.kind=dirichlet"], ["partition.kind=domain"]),
        (["partition.alpha=0.1"], ["partition.kind=quantity"], ["partition.kind=pathological"]),
        (["partition.by=label"], ["partition.kind=pathological"], ["partition.kind=iid"]),
        (["partition.classes_per_client=3"], ["partition.kind=pathological"], ["partition.kind=quantity"]),
        (["client.final_rate=0.3"], ["client.schedule=linear"], ["client.schedule=constant"]),
        (["distill.top_p=0.9"], ["distill.temperature=0.7"], ["distill.temperature=0"]),
        (["distill.num_requests=256"], SERVED, []),
        (["distill.template_args={enable_thinking=false}"], SERVED, []),
        (["run.workers=4"], ["run.engine=simulation"], ["run.engine=local"]),
        (["run.workers=4", "run.engine=simulation"], [], ["run.ray=auto"]),
        (["run.gpus_per_client=0.5"], ["run.engine=simulation"], []),
        (["run.ray=auto"], ["run.engine=simulation"], []),
    ],
    ids=str,
)
def test_a_setting_that_another_leaves_without_effect_is_refused(
    words: list[str], using: list[str], idle: list[str]
):
    """A grid over it would show equal results, and a run would not be what its recipe says."""
    load_settings(None, [*words, *using])
    with pytest.raises(UserError, match=f"{words[0].partition('=')[0]} = .* does nothing under "):
        load_settings(None, [*words, *idle])


def test_the_page_of_methods_holds_the_rules_as_they_are():
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    written = page.partition("<!-- fedsdr.compatibility -->\n")[2].partition("\n<!-- end -->")[0]
    assert written == compatibility.as_markdown(), "write it anew: python -m tools.docs_methods"


def test_a_run_reads_back_what_it_was_started_with_under_every_rule():
    """A rule that refused the defaults would make every old run unreadable."""
    assert check_settings(Settings().model_dump(), "defaults") == Settings()


def test_all_unknown_names_are_named_at_once():
    with pytest.raises(UserError) as error:
        Settings.model_validate({"method": "fedsrd", "server": {"aggregation": "avrage", "robust": "medan"}})
    for found in ("method = 'fedsrd'", "server.aggregation = 'avrage'", "server.robust = 'medan'"):
        assert found in str(error.value)
