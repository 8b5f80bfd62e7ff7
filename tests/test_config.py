"""Settings: allowed values, rejected ones, and helpful messages."""

import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.methods import DRIFT_CORRECTIONS, METHODS, OPTIMIZERS
from fedsdr.recipe import check_settings, dump_settings, load_settings, saved_settings

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
POSITIVE = st.floats(1e-300, 1e300)
SHARE = st.floats(1e-12, 1)
COUNT = st.integers(1, 2**62)

FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(sorted(METHODS)),
        "run.dir": TEXT.filter(bool),
        "run.seed": st.integers(0, 2**63),
        "model.name": TEXT,
        "model.trust_remote_code": st.booleans(),
        "data.domains": st.lists(TEXT, max_size=3),
        "data.sources": st.lists(
            st.fixed_dictionaries(
                {"domain": TEXT},
                optional={"test_share": SHARE, "columns": st.dictionaries(TEXT, TEXT, max_size=2)},
            ),
            max_size=2,
        ),
        "lora.alpha": POSITIVE,
        "lora.targets": st.lists(TEXT, min_size=1, max_size=3),
        "distill.prompts": st.lists(st.sampled_from(["turn", "reference"]), min_size=1, max_size=3),
        "distill.temperature": st.floats(0, 1e300, exclude_min=True),
        "client.learning_rate": POSITIVE,
        "client.local_steps": COUNT.map(lambda count: count + 1),
        "client.budget": st.sampled_from(["per_stage", "per_round"]),
        "server.quorum": SHARE,
        "eval.rewritings": st.booleans(),
    },
)


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
    return values


def refusal(load: Callable[[], Settings]) -> str:
    with pytest.raises(UserError) as caught:
        load()
    return str(caught.value)


@hypothesis_settings(max_examples=150, deadline=None)
@given(FIELDS)
def test_settings_written_to_a_run_folder_are_read_back_equal(tmp_path_factory, flat):
    """Text with quotes, control characters and emoji, tiny and huge floats: nothing may change."""
    written = check_settings(nest(flat), "test")
    file = tmp_path_factory.getbasetemp() / "config.toml"
    file.write_text(dump_settings(written), encoding="utf-8")
    read = load_settings(file)
    assert read.model_copy(update={"run": written.run}) == written
    assert not written.run.dir or read.run == written.run


def test_every_key_is_written_even_where_it_is_the_default():
    """A later version may have other defaults; the run folder must not depend on them."""
    written = tomllib.loads(dump_settings(Settings()))
    assert set(written) == set(Settings.model_fields)
    for section, values in written.items():
        assert section == "method" or set(values) == set(type(getattr(Settings(), section)).model_fields)


def test_overrides_win_over_the_recipe_and_the_last_override_wins(tmp_path: Path):
    recipe = tmp_path / "small.toml"
    recipe.write_text('method = "fedit"\n[client]\nlocal_steps = 3\nbatch_size = 2\n')
    settings = load_settings(recipe, ["client.local_steps=5", "run.seed=1", "run.seed=2"])
    assert (settings.client.local_steps, settings.client.batch_size, settings.run.seed) == (5, 2, 2)
    assert settings.method == "fedit"
    assert settings.run.dir == "runs/small-fedit-seed2"


def test_a_recipe_begins_with_another_and_its_own_keys_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    source = '[[data.sources]]\ndomain = "%s"\ntrain = "a.jsonl"\n'
    Path("first.toml").write_text(
        'method = "fedit"\n[client]\nlocal_steps = 3\nbatch_size = 2\n' + source % "law" + source % "tax"
    )
    Path("second.toml").write_text(
        'recipe = "first.toml"\n[client]\nlocal_steps = 5\n[server]\nnum_rounds = 9\n'
    )
    Path("third.toml").write_text('recipe = "second.toml"\nmethod = "fedsd"\n' + source % "news")
    settings = load_settings("third.toml", ["server.num_rounds=1"])
    assert (settings.method, settings.client.local_steps, settings.client.batch_size) == ("fedsd", 5, 2)
    assert settings.server.num_rounds == 1
    assert [source.domain for source in settings.data.sources] == ["news"]
    assert settings.run.dir == "runs/third-fedsd-seed0"


def test_a_recipe_that_cannot_begin_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("lost.toml").write_text('recipe = "none.toml"\n')
    assert "none.toml, with which lost.toml begins, does not exist" in refusal(
        lambda: load_settings("lost.toml")
    )
    Path("a.toml").write_text('recipe = "b.toml"\n')
    Path("b.toml").write_text('recipe = "a.toml"\n')
    assert "a.toml begins with itself" in refusal(lambda: load_settings("a.toml"))
    Path("grid.toml").write_text('recipe = "none.toml"\nbaseline = "a"\nseeds = [0]\n[arms.a]\n')
    assert "grid.toml is a grid of runs: give it to `fedsdr compare grid.toml`" in refusal(
        lambda: load_settings("grid.toml")
    )


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        (
            "model.name=my models/a=b",
            "name",
            "my models/a=b",
        ),  # no TOML, so plain text; only the first = splits
        ('model.name="42"', "name", "42"),
        ("model.name=1e5", "name", "1e5"),
        ("model.name=2024-01-01", "name", "2024-01-01"),
        ("model.name=true", "name", "true"),
        ("model.trust_remote_code=true", "trust_remote_code", True),
        ("model.max_length=1_024", "max_length", 1024),
    ],
)
def test_an_override_is_toml_where_it_can_be_and_text_where_not(word: str, key: str, value: object):
    """Where a setting is text, a number, a date or a truth value of TOML is the text as it was written."""
    assert getattr(load_settings(None, [word]).model, key) == value


def test_a_list_needs_no_quotes_in_an_override():
    words = ["run.log_to=tensorboard", "data.domains=[finance, math-2]"]
    settings = load_settings(None, words)
    assert settings.run.log_to == ("tensorboard",)
    assert settings.data.domains == ("finance", "math-2")
    assert load_settings(None, ["model.name=[a,b]"]).model.name == "[a,b]"


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("client.learning_rte=1", "client.learning_rate"),
        ("server.rounds=3", "server.num_rounds"),
        ("metod=fedit", "method"),
        ("seed=3", "run.seed"),
        ("data.sources=[{domain = 'a', colums = {}}]", "data.sources.0.columns"),
        ("client.num_clients=3", "partition.num_clients"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_known_one_is_named(word: str, nearest: str):
    message = refusal(lambda: load_settings(None, [word]))
    assert "unknown key" in message
    assert message.partition("nearest to it: ")[2].split(", ")[0].split("\n")[0] == nearest


@pytest.mark.parametrize(
    ("word", "setting"), [("lr=1", "client.learning_rate"), ("client.lr=1", "client.learning_rate"),
                          ("run.report_to=wandb", "run.log_to")]
)  # fmt: skip
def test_a_name_of_another_library_is_answered_by_the_setting_alone(word: str, setting: str):
    assert refusal(lambda: load_settings(None, [word])).endswith(f"did you mean {setting}?")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("run.seed=-1", "greater than or equal to 0"),
        ("run.seed=true", "integer"),
        ("data.domains=[1]", "string"),
        ("client.batch_size=0", "greater than or equal to 1"),
        ("client.batch_size=2.5", "integer"),
        ("client.batch_size='2'", "integer, without quotes"),
        ("client.learning_rate='1e-4'", "number, without quotes"),
        ("run.log_to=tensorbord", "'tensorboard', 'wandb', 'mlflow' or 'trackio'"),
        ("client.learning_rate=0", "greater than 0"),
        ("client.learning_rate=inf", "finite"),
        ("client.learning_rate=nan", "finite"),
        ("client.final_rate=1.5", "less than or equal to 1"),
        ("client.schedule=step", "'constant', 'cosine' or 'linear'"),
        ("model.dtype=float64", "'auto', 'float32', 'bfloat16' or 'float16'"),
        ("model.trust_remote_code=1", "boolean"),
        ("distill.top_p=0", "greater than 0"),
        ("distill.prompts=[]", "at least 1"),
        ("server.quorum=1.01", "less than or equal to 1"),
        ("partition.kind=noniid", "'domain', 'iid'"),
        ("lora.dropout=1", "less than 1"),
        ("eval.every=-1", "greater than or equal to 0"),
        ("data.sources=[{train = 'a.jsonl'}]", "is missing"),
    ],
)
def test_a_bad_value_is_refused_with_its_key_the_value_and_what_is_expected(word: str, expected: str):
    """A partition kind or another name that nothing implements must not fall through to a default."""
    key, _, value = word.partition("=")
    message = refusal(lambda: load_settings(None, [word]))
    assert key in message
    assert expected in message
    found = message.partition(" = ")[2].partition(":")[0]
    assert found.strip("'").lower() in value.lower() or "data.sources" in key


def test_a_knob_that_the_server_optimizer_does_not_read_is_refused():
    """A grid over rates would else show equal results and no reason."""
    assert load_settings(None, ["server.optimizer=fedadam", "server.learning_rate=0.5"]).server.eta == 0.5
    message = refusal(lambda: load_settings(None, ["server.learning_rate=0.5"]))
    assert "learning_rate = 0.5 does nothing under server.optimizer = 'fedavg'" in message

    message = refusal(lambda: load_settings(None, ["server.optimizer=fedavgm", "server.beta2=0.5"]))
    assert "set server.optimizer to 'fedadam' or 'fedyogi'" in message


@pytest.mark.parametrize("name", [name for name, row in DRIFT_CORRECTIONS.items() if row.weight])
def test_a_drift_correction_has_its_own_default_weight(name: str):
    """0.01, which suits fedprox, would leave an anchor at the base without effect."""
    chosen = [f"client.drift_correction={name}"]
    assert load_settings(None, chosen).client.weight == DRIFT_CORRECTIONS[name].weight
    assert load_settings(None, [*chosen, "client.mu=0.3"]).client.weight == 0.3


@pytest.mark.parametrize(
    ("key", "toml"),
    [
        # 0.01 was the default of client.mu.
        ("client.mu", "[client]\nmu = 0.01"),
        ("client.mu", "[client]\ndrift_correction = 'scaffold'\noptimizer = 'sgd'\nmax_grad_norm = 0.0\nmu = 0.01"),
        ("partition.alpha", "[partition]\nkind = 'domain'\nalpha = 0.1"),
        ("distill.top_p", "[distill]\ntemperature = 0.0\ntop_p = 0.9"),
        ("run.workers", "[run]\nengine = 'local'\nworkers = 4"),
    ],
)  # fmt: skip
def test_a_run_that_saved_what_it_does_not_use_is_read_and_a_recipe_refused(
    tmp_path: Path, key: str, toml: str
):
    """Unchanged: the hash of its settings says that it may be resumed."""
    saved = tmp_path / "config.toml"
    saved.write_text(toml)
    assert f"{key} = " in refusal(lambda: load_settings(saved))
    read = saved_settings(saved)
    saved.write_text(dump_settings(read))
    assert saved_settings(saved) == read != Settings()


def test_a_run_saved_under_old_names_is_read_and_a_recipe_with_them_is_refused(tmp_path: Path):
    """Every old name with a value of its own, and the settings under the names of today."""
    saved = tmp_path / "config.toml"
    saved.write_text(
        """
        [model]
        checkpointing = "on"
        [distill]
        cache = "/cache"
        [client]
        correction = "proximal"
        mu = 0.5
        [server]
        combination = "ffa"
        reduction = "mean"
        [wire]
        dtype = "int8"
        [personal]
        before_steps = 0
        num_examples = 5
        max_weight = 0.5
        num_evaluations = 40
        share = 0.8
        rate = 1.0
        [eval]
        on = "validation"
        [data]
        validation = 0.1
        """
    )
    today = {
        **{"model.gradient_checkpointing": "on", "run.cache": "/cache", "communication.dtype": "int8"},
        **{"client.drift_correction": "fedprox", "client.mu": 0.5, "server.aggregation": "ffa"},
        **{"eval.split": "validation", "data.validation": 0.1},
    }
    assert saved_settings(saved) == check_settings(nest(today), "test")
    assert "wire.dtype is now communication.dtype" in refusal(lambda: load_settings(saved))

    saved.write_text("[privacy]\nkind = 'local'\nnoise = 2.0\nclip = 0.5\nbudget = 3.0\n")
    private = {"kind": "local", "noise_multiplier": 2.0, "clipping_norm": 0.5, "max_epsilon": 3.0}
    assert saved_settings(saved) == check_settings({"privacy": private}, "test")

    saved.write_text("method = 'feddpa'\n[personal]\nnum_examples = 7\n")
    assert saved_settings(saved).feddpa.num_examples == 7
    saved.write_text("method = 'fedsdr'\n[personal]\nshare = 0.7\n")
    assert saved_settings(saved).fedala.share == 0.7  # unused, as in the run


@pytest.mark.parametrize(
    ("old", "new"), [("server.robust=mean", "none"), ("client.drift_correction=proximal", "fedprox")]
)
def test_the_old_name_of_a_value_is_an_error_that_says_the_new_one(old: str, new: str):
    key, _, value = old.partition("=")
    assert f"{key} = '{value}' is now '{new}'" in refusal(lambda: load_settings(None, [old]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("server.combination='ffa'", "server.combination is now server.aggregation"),
        ("wire.dtype='int8'", "wire.dtype is now communication.dtype"),
        ("personal.max_weight=0.3", "personal.max_weight is now feddpa.max_weight"),
        ("privacy.noise=2.0", "privacy.noise is now privacy.noise_multiplier"),
        ("privacy.clip=2.0", "privacy.clip is now privacy.clipping_norm"),
        ("privacy.budget=2.0", "privacy.budget is now privacy.max_epsilon"),
        ("model.checkpointing='on'", "model.checkpointing is now model.gradient_checkpointing"),
        ("eval.on='validation'", "eval.on is now eval.split"),
    ],
)
def test_the_old_name_of_a_key_is_an_error_that_says_the_new_one(old: str, new: str):
    assert new in refusal(lambda: load_settings(None, [old]))


def test_overrides_may_be_values_by_key():
    """As a grid has them: lists and tables among them."""
    source = {"domain": "law", "train": "a.jsonl", "columns": {"response": "answer"}}
    settings = load_settings(None, {"data.sources": [source], "run.seed": 3, "lora.targets": ["q_proj"]})
    assert settings.data.sources[0].columns == {"response": "answer"}
    assert (settings.run.seed, settings.lora.targets) == (3, ("q_proj",))


def test_all_bad_keys_are_named_at_once():
    message = refusal(lambda: load_settings(None, ["run.seed=-1", "client.batch_size=0", "lora.rnk=2"]))
    assert all(key in message for key in ("run.seed", "client.batch_size", "lora.rnk"))
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize(
    ("key", "misspelt", "known"),
    [
        ("method", "fedrsd", list(METHODS)),
        ("server.optimizer", "fedadagard", list(OPTIMIZERS)),
        ("server.aggregation", "avarage", ["average"]),
        ("distill.prompts", "referense", ["reference"]),
    ],
)
def test_a_misspelt_algorithm_is_an_error_and_never_runs_as_plain_averaging(
    key: str, misspelt: str, known: list[str]
):
    """Went wrong elsewhere: a misspelt optimizer fell into the last `else` and ran as FedAvg."""
    value = f'["{misspelt}"]' if key == "distill.prompts" else misspelt
    message = refusal(lambda: load_settings(None, [f"{key}={value}"]))
    assert all(word in message for word in (key, misspelt, *known))


@pytest.mark.parametrize(
    "words",
    [
        ["client.local_steps=0"],
        ["client.local_epochs=1"],  # local_steps keeps its default of 8
        ["client.local_steps=0", "client.local_epochs=1", "client.budget=per_round"],
    ],
)
def test_steps_and_epochs_exclude_each_other(words: list[str]):
    message = refusal(lambda: load_settings(None, words))
    assert "local_steps" in message
    assert "local_epochs" in message


def test_a_round_needs_a_step_for_each_of_its_stages():
    words = ["client.budget=per_round", "client.local_steps=1"]
    assert load_settings(None, [*words, "method=fedit"]).client.local_steps == 1
    message = refusal(lambda: load_settings(None, [*words, "method=fedsdr"]))
    assert "2 stages" in message
    assert "at least 2" in message


@pytest.mark.parametrize("word", ["run.seed", "=1", "run..seed=1", ".seed=1", ""])
def test_an_override_that_is_no_assignment_is_refused_with_an_example(word: str):
    assert "run.seed=1" in refusal(lambda: load_settings(None, [word]))


def test_an_override_below_a_plain_value_is_refused():
    assert "run.seed is not a table" in refusal(lambda: load_settings(None, ["run.seed=1", "run.seed.x=2"]))


def test_a_recipe_that_is_no_toml_is_refused_with_file_and_line(tmp_path: Path):
    recipe = tmp_path / "broken.toml"
    recipe.write_text("[run]\nseed = = 3\n")
    message = refusal(lambda: load_settings(recipe))
    assert "broken.toml" in message
    assert "line 2" in message
    for text, line in {"method = fedsdr": "method = fedsdr", "[run]\nseed = 1\nseed = 2\n": "seed = 2",
                       "run:\n  seed: 1": "run:"}.items():  # fmt: skip
        recipe.write_text(text)
        assert f": {line}\nTOML is key = value: each key once, text in quotes" in refusal(
            lambda: load_settings(recipe)
        )
    recipe.write_bytes(b'method = "\xff"')
    assert "broken.toml" in refusal(lambda: load_settings(recipe))


def test_one_word_stands_for_a_list_of_one_in_every_place(tmp_path: Path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[run]\nlog_to = "wandb"\n[data]\ndomains = "law"\n')
    settings = load_settings(recipe)
    assert (settings.run.log_to, settings.data.domains) == (("wandb",), ("law",))
    assert load_settings(None, {"run.log_to": "wandb"}).run.log_to == ("wandb",)


def test_a_missing_recipe_is_an_error_that_names_a_near_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Went wrong elsewhere: the check that a file exists was an assertion that is always true."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "quick.toml").touch()
    message = refusal(lambda: load_settings("recipes/qick.toml"))
    assert "recipes/qick.toml does not exist; did you mean recipes/quick.toml?" in message


def test_settings_cannot_be_changed():
    settings = load_settings(None)
    with pytest.raises(ValidationError, match="frozen"):
        settings.client.batch_size = 1
    assert isinstance(settings.distill.prompts, tuple)
    assert math.isclose(settings.lora.alpha / settings.lora.rank, 2)  # 16 / 8, the paper's usual scale
