"""Differential privacy: clipping by hand, noise of the right size, epsilon against its formula, and no leak by failure."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr

import fedsdr
from fedsdr.config import Privacy, Settings
from fedsdr.errors import UserError
from fedsdr.messages import privacy as module
from fedsdr.messages.privacy import Ledger, affordable, clip, epsilon, gaussian, noised, private_mean
from fedsdr.recipe import check_settings
from fedsdr.storage import read_json, read_lines

KEYS = [f"base_model.model.layer.lora_{letter}.weight" for letter in "AB"]


def adapter(*values: float) -> dict[str, np.ndarray]:
    """Factors (1, 2) and (2, 1) with these four numbers."""
    a, b, c, d = values
    return {KEYS[0]: np.array([[a, b]], np.float32), KEYS[1]: np.array([[c], [d]], np.float32)}


def numbers(arrays: dict[str, np.ndarray]) -> list[float]:
    return [float(value) for key in KEYS for value in arrays[key].ravel()]


def test_a_change_is_scaled_to_the_norm_as_a_whole_and_smaller_ones_are_left():
    assert clip(np.array([3.0, 4.0]), 1.0).tolist() == pytest.approx([0.6, 0.8])
    assert clip(np.array([0.3, 0.4]), 1.0).tolist() == [0.3, 0.4]


def test_a_change_of_zero_stays_zero():
    """Elsewhere clipping divided by its norm."""
    assert clip(np.zeros(3), 1.0).tolist() == [0, 0, 0]


def test_a_change_that_is_not_finite_cannot_pass_unclipped():
    """Elsewhere NaN passed: no comparison with it is true."""
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not finite"):
            clip(np.array([bad, 0.0]), 1.0)


@pytest.mark.parametrize("seed", [None, 3, b"secret"])
def test_noise_is_standard_normal(seed: int | bytes | None):
    """Mean 0, deviation 1 and kurtosis 3, within six standard errors of 200,000 draws."""
    drawn = gaussian(200_000, seed)
    error = 1 / math.sqrt(drawn.size)
    assert abs(drawn.mean()) < 6 * error
    assert abs(drawn.std() - 1) < 6 * error / math.sqrt(2)
    assert abs((drawn**4).mean() - 3) < 6 * error * math.sqrt(96)


def gaussian_near(wanted: np.ndarray, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch):
    """What `gaussian` computes when the system's source happens to bring each number near the wanted one.

    Each is half a sum of four: normal numbers given their sum, and the words that stand for them.
    """
    four = rng.standard_normal((4, wanted.size))
    four += wanted / 2 - four.mean(axis=0)
    words = (ndtr(four) * 2.0**52).astype(np.uint64) << np.uint64(12)
    with monkeypatch.context() as patch:
        patch.setattr("os.urandom", lambda size: words.tobytes())
        return gaussian(wanted.size, None)


@pytest.mark.parametrize("kind", ["central", "local"])
def test_the_low_bits_of_what_leaves_do_not_betray_a_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
):
    """The attack: is a number near zero a multiple of 2^-54? The broadcast is zero, like LoRA's initial B, so
    float32 can represent the last bits of numbers below 2^-32. Noise there is half a sum of numbers around 1,
    whose own bits end at 2^-53. A clipped change of 2^-7 has bits down to 2^-60, and so does its sum with
    noise that brings it near zero. Before noise was rounded, 72 in 100 such numbers were multiples without a
    change, and 18 with one. Of 2.4 million numbers one is that near with probability 2.4e6 * 2^-31 * 0.4 =
    4e-4, in every release.
    """
    rng, size, privacy = np.random.default_rng(1), 20_000, Privacy(kind=kind)
    zero = {KEYS[0]: np.zeros((1, size), np.float32)}

    def share_of_multiples(change: np.ndarray) -> float:
        clipped = clip(change.ravel(), privacy.clipping_norm)
        noise = gaussian_near(rng.uniform(-(2.0**-32), 2.0**-32, size) - clipped, rng, monkeypatch)
        monkeypatch.setattr(module, "gaussian", lambda size, seed: noise)
        changed = {KEYS[0]: change}
        if kind == "central":
            left = private_mean([changed], zero, 1, privacy, None)
        else:
            left = noised(changed, zero, privacy, None, tmp_path / "key")
        return float((left[KEYS[0]].astype(np.float64) * 2.0**54 % 1 == 0).mean())

    with_none = share_of_multiples(zero[KEYS[0]])
    with_one = share_of_multiples(rng.standard_normal((1, size)).astype(np.float32))
    assert abs(with_none - with_one) < 0.01


@pytest.mark.parametrize("largest", [0.0, 1e-3, 1.0])
def test_what_leaves_is_the_broadcast_and_whole_steps_of_the_noise(tmp_path: Path, largest: float):
    """Steps of sigma C 2^-20, whatever the change: here 2^-19, whose multiples up to 32 float32 holds."""
    rng = np.random.default_rng(2)
    zero = {KEYS[0]: np.zeros((1, 1000), np.float32)}
    change = {KEYS[0]: rng.uniform(-largest, largest, (1, 1000)).astype(np.float32)}
    central = Privacy(kind="central", noise_multiplier=4.0, clipping_norm=0.5)
    for left in (
        private_mean([change], zero, 1, central, None),
        noised(
            change,
            zero,
            Privacy(kind="local", noise_multiplier=4.0, clipping_norm=0.5),
            None,
            tmp_path / "key",
        ),
    ):
        steps = left[KEYS[0]] * 2.0**19
        assert (steps == np.rint(steps)).all()
        assert steps.std() > 2.0**19


def test_secure_noise_never_repeats_and_seeded_noise_does():
    assert (gaussian(8, None) != gaussian(8, None)).all()
    assert gaussian(8, 1).tolist() == gaussian(8, 1).tolist() != gaussian(8, 2).tolist()


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_secure_noise_is_finite_whatever_is_drawn(monkeypatch: pytest.MonkeyPatch, byte: bytes):
    """One infinite number would spoil the adapter of all."""
    monkeypatch.setattr("os.urandom", lambda size: byte * size)
    assert np.isfinite(gaussian(4, None)).all()


def test_a_secret_that_was_cut_off_is_refused(tmp_path: Path):
    """Noise that follows from nothing can be taken off again."""
    (tmp_path / "noise.key").write_bytes(b"")
    adapter = {"a": np.zeros(4, np.float32)}
    with pytest.raises(UserError, match=r"noise\.key is damaged: 0 bytes, expected 32"):
        noised(adapter, adapter, Privacy(kind="local", noise_multiplier=1.0), None, tmp_path / "noise.key")


def test_the_central_mean_is_of_clipped_changes_over_all_that_were_asked(monkeypatch: pytest.MonkeyPatch):
    """Changes (3, 4, 0, 0), clipped to norm 1, and (0, 0, 0, 0.5); four were asked, two have not answered.

    ((0.6, 0.8, 0, 0) + (0, 0, 0, 0.5) + 2 * 1 * (1, 1, 1, 1)) / 4 beyond what was sent, with noise of ones.
    """
    monkeypatch.setattr(module, "gaussian", lambda size, seed: np.ones(size))
    sent = adapter(1, 1, 1, 1)
    new = private_mean(
        [adapter(4, 5, 1, 1), adapter(1, 1, 1, 1.5)],
        sent,
        4,
        Privacy(kind="central", noise_multiplier=2.0),
        0,
    )
    assert numbers(new) == pytest.approx([1 + 2.6 / 4, 1 + 2.8 / 4, 1 + 2 / 4, 1 + 2.5 / 4])


def test_one_client_moves_the_central_sum_by_no_more_than_the_norm():
    """What the noise is measured against; an update of norm 10^6 is no exception."""
    sent, privacy = adapter(0, 0, 0, 0), Privacy(kind="central", clipping_norm=0.5, noise_multiplier=1.0)
    others = [adapter(1, 0, 0, 0), adapter(0, 1, 0, 0)]
    without = private_mean(others, sent, 3, privacy, 7)
    with_one = private_mean([*others, adapter(0, 0, 1e6, 0)], sent, 3, privacy, 7)
    moved = np.array(numbers(with_one)) - np.array(numbers(without))
    assert 3 * np.linalg.norm(moved) == pytest.approx(0.5, rel=1e-5)


def test_a_round_that_is_asked_again_is_answered_by_the_same_bytes_and_no_other_round_is(tmp_path: Path):
    """Fresh noise on the same change would be a second release, which the accountant does not count."""
    privacy, before, secret = Privacy(kind="local"), adapter(1, 1, 1, 1), tmp_path / "key"
    first = numbers(noised(adapter(2, 1, 1, 1), before, privacy, None, secret))
    assert numbers(noised(adapter(2, 1, 1, 1), before, privacy, None, secret)) == first
    for trained, received, own in (
        (adapter(2, 1, 1, 2), before, secret),
        (adapter(2, 1, 1, 1), adapter(1, 1, 1, 0), secret),
        (adapter(2, 1, 1, 1), before, tmp_path / "another"),
    ):
        other = np.array(numbers(noised(trained, received, privacy, None, own)))
        assert (np.abs(other - first) > 1e-7).all()
    assert secret.stat().st_mode & 0o77 == 0


def test_the_same_change_under_other_noise_gets_other_noise(tmp_path: Path):
    """Else a server that asks twice, with sigma 1 and 2, takes their difference and has the change itself."""
    before, secret = np.array(numbers(adapter(1, 1, 1, 1))), tmp_path / "key"
    change = np.array([1.0, 0, 0, 0])
    drawn = []
    for sigma, norm in ((1.0, 1.0), (2.0, 1.0), (1.0, 2.0)):
        privacy = Privacy(kind="local", noise_multiplier=sigma, clipping_norm=norm)
        sent = noised(adapter(2, 1, 1, 1), adapter(1, 1, 1, 1), privacy, None, secret)
        drawn.append((np.array(numbers(sent)) - before - change) / (sigma * norm))
    assert (np.abs(drawn[1] - drawn[0]) > 1e-7).all()
    assert (np.abs(drawn[2] - drawn[0]) > 1e-7).all()


def test_a_client_counts_every_new_update_that_leaves_it_and_stops_at_its_limit(tmp_path: Path):
    """Whatever runs and noise the server names: here sigma 4 twice, then 8, then 4 again.

    An update sent again costs nothing, also beyond the limit. What is refused is not entered.
    """
    one, both = (epsilon(Privacy(kind="local", noise_multiplier=4.0), n) for n in (1, 2))
    ledger = Ledger(tmp_path / "releases.json", both, 1e-5)

    def send(first: float, sigma: float = 4.0, run: str = "a") -> dict[str, np.ndarray]:
        privacy = Privacy(kind="local", noise_multiplier=sigma)
        return noised(adapter(first, 0, 0, 0), adapter(0, 0, 0, 0), privacy, None, tmp_path / run, ledger)

    sent = send(1)
    send(1, run="another")  # with another secret, so with other noise
    with pytest.raises(UserError, match=r"after the 2 of .*releases\.json; its max-epsilon is"):
        send(2, sigma=8.0)
    assert numbers(send(1)) == numbers(sent)
    assert list(read_json(ledger.path).values()) == [4.0, 4.0]
    with pytest.raises(UserError, match="max-epsilon is"):
        Ledger(tmp_path / "new.json", one * 0.99, 1e-5).enter(b"update", 4.0)
    assert not (tmp_path / "new.json").exists()
    ledger.path.write_text(ledger.path.read_text()[:-20])
    with pytest.raises(UserError, match="found no JSON document"):  # not: nothing was sent yet
        send(1)


def test_an_update_that_is_not_finite_leaves_as_no_change_and_noise(tmp_path: Path):
    """An error instead would say something of the data, without noise."""
    privacy = Privacy(kind="local", noise_multiplier=1.0)
    sent = noised(adapter(math.nan, 1, 1, 1), adapter(1, 1, 1, 1), privacy, 3, tmp_path / "key")
    assert numbers(sent) == pytest.approx(1 + gaussian(4, 3))


def test_a_client_under_local_privacy_sends_its_clipped_change_with_noise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(module, "gaussian", lambda size, seed: np.ones(size))
    sent = noised(
        adapter(4, 5, 1, 1),
        adapter(1, 1, 1, 1),
        Privacy(kind="local", noise_multiplier=0.5),
        0,
        tmp_path / "key",
    )
    assert numbers(sent) == pytest.approx([1 + 0.6 + 0.5, 1 + 0.8 + 0.5, 1.5, 1.5])


def delta_of(mu: float, eps: float) -> float:
    """Balle and Wang 2018, equation 6, as it stands there: good for small numbers."""
    return float(ndtr(mu / 2 - eps / mu) - math.exp(eps) * ndtr(-mu / 2 - eps / mu))


@pytest.mark.parametrize(("kind", "multiplier"), [("central", 4.0), ("local", 2.0)])
def test_epsilon_is_that_of_composed_gaussian_mechanisms(kind: str, multiplier: float):
    """T releases, each of noise s times what one client can change: mu = sqrt(T) / s."""
    for num_rounds in (1, 10):
        for delta in (1e-5, 1e-9):
            found = epsilon(Privacy(kind=kind, noise_multiplier=4.0, delta=delta), num_rounds)
            assert delta_of(math.sqrt(num_rounds) / multiplier, found) == pytest.approx(delta, rel=1e-6)


@pytest.mark.parametrize(
    ("sigma", "delta", "published"),
    [
        (1, 0.12693674, 1),
        (1, 0.02092364, 2),
        (1 / 3, 0.78760074, 1),
        (1 / 0.35, 1e-5, 1.34),
        (1 / 1.78, 1e-5, 8.68),
    ],
)
def test_epsilon_is_what_others_published(sigma: float, delta: float, published: float):
    """Three of the tests of Google's dp-accounting, and mu = 0.35 and 1.78 of figure 4 of Bu, Dong, Long and Su,
    "Deep learning with Gaussian differential privacy", HDSR 2020, whose mu is given to 0.005."""
    found = epsilon(Privacy(kind="central", noise_multiplier=sigma, delta=delta), 1)
    assert found == pytest.approx(published, abs=1e-6 if delta > 1e-5 else 0.04)


@pytest.mark.parametrize("sigma", [1e-3, 0.1, 1.0, 4.0, 50.0, 1e3])
@pytest.mark.parametrize("num_rounds", [1, 10, 1000])
@pytest.mark.parametrize("delta", [1e-5, 1e-12])
def test_epsilon_is_below_the_bound_by_renyi_divergences(sigma: float, num_rounds: int, delta: float):
    """opacus' accountant is sound and not exact, so it is above; by less than a tenth where its orders suffice."""
    accountant = pytest.importorskip("opacus.accountants").RDPAccountant()
    accountant.history = [(sigma, 1.0, num_rounds)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of orders that do not suffice
        bound = accountant.get_epsilon(delta)
    found = epsilon(Privacy(kind="central", noise_multiplier=sigma, delta=delta), num_rounds)
    assert 0 < found < bound
    if 0.5 < found < 1000:
        assert found > 0.9 * bound


def test_epsilon_is_finite_and_grows_over_all_that_may_be_set():
    """To 10^18, where e^epsilon has no floating-point number; its leading term is mu^2 / 2."""
    noises = (1e6, 1e3, 1.0, 1e-3, 1e-6)
    for delta in (1e-300, 1e-5, 0.9):
        found = [
            epsilon(Privacy(kind="local", noise_multiplier=noise, delta=delta), num_rounds)
            for noise in noises
            for num_rounds in (1, 1000, 1_000_000)
        ]
        assert found == sorted(found)
        assert found[-1] == pytest.approx((2 / 1e-6) ** 2 / 2 * 1e6, rel=1e-4)


def test_releases_of_different_noise_cost_as_one_of_the_harmonic_sum(tmp_path: Path):
    """1 / sigma^2 adds up: sigma 3 and 4 cost as one of 2.4, since 1/9 + 1/16 = (5/12)^2."""
    ledger = Ledger(tmp_path / "releases.json", 100.0, 1e-5)
    assert ledger.spent() == 0
    ledger.enter(b"one", 3.0)
    ledger.enter(b"another", 4.0)
    assert ledger.spent() == pytest.approx(epsilon(Privacy(kind="local", noise_multiplier=2.4), 1), rel=1e-9)


@pytest.mark.parametrize("key", ["noise_multiplier", "clipping_norm"])
@pytest.mark.parametrize("value", [1e300, 1e-300, 1e7, 1e-7, math.nan, math.inf])
def test_noise_that_no_adapter_can_hold_is_refused_by_name(key: str, value: float):
    """1e300 is infinite in float32; the epsilon of 1e-300 is infinite."""
    with pytest.raises(UserError, match=rf"privacy\.{key} = .*should be"):
        check_settings({"privacy": {"kind": "central", key: value}}, "test")


def test_the_budget_pays_for_the_rounds_whose_epsilon_is_within_it():
    privacy = Privacy(kind="central", noise_multiplier=4.0, max_epsilon=3.0)
    paid = affordable(privacy, 100)
    assert 0 < paid < 100
    assert epsilon(privacy, paid) <= 3.0 < epsilon(privacy, paid + 1)
    assert affordable(privacy.model_copy(update={"max_epsilon": 1e-3}), 100) == 0


PRIVATE = {
    "method": "fedit",
    "data.domains": ["finance", "math"],
    "server.num_rounds": 2,
    "eval.max_new_tokens": 2,
    "eval.rewritings": False,
    "privacy.source": "seeded",
}


@pytest.mark.parametrize("kind", ["central", "local"])
def test_a_run_records_what_each_round_has_cost_and_shows_it(
    tiny_settings: Callable[..., Settings], kind: str
):
    settings = tiny_settings(**PRIVATE, **{"privacy.kind": kind, "privacy.noise_multiplier": 2.0})
    folder = fedsdr.run(settings).folder
    rounds = [event for event in read_lines(folder / "metrics.jsonl") if event["event"] == "round"]
    assert [event["epsilon"] for event in rounds] == [
        epsilon(settings.privacy, 1),
        epsilon(settings.privacy, 2),
    ]
    page = (folder / "report.html").read_text()
    assert f"epsilon {rounds[-1]['epsilon']:.3g} at delta 1e-05" in page
    told = page[page.index("Privacy spent") :]
    assert [told.index(f"{event['epsilon']:.3g}") for event in rounds] == sorted(
        told.index(f"{event['epsilon']:.3g}") for event in rounds
    )


def test_a_run_beyond_its_budget_stops_before_it_trains_and_says_what_would_do(
    tiny_settings: Callable[..., Settings],
):
    one = epsilon(Privacy(kind="central", noise_multiplier=2.0), 1)
    settings = tiny_settings(
        **PRIVATE,
        **{"privacy.kind": "central", "privacy.noise_multiplier": 2.0, "privacy.max_epsilon": one + 0.01},
    )
    with pytest.raises(
        UserError, match=r"set server\.num_rounds = 1, or a larger privacy.noise_multiplier than 2"
    ):
        fedsdr.run(settings)
    assert not (Path(settings.run.dir) / "server/round-0001").exists()


@pytest.mark.parametrize(
    "more",
    [
        {"server": {"keep_updates": True}},
        {"server": {"aggregation": "flora"}},
        {"communication": {"dtype": "int8"}},
        {"client": {"drift_correction": "scaffold-adamw"}},
        {"server": {"robust": "median"}},
        {"method": "local-only"},
    ],
)
def test_what_would_let_out_more_than_is_accounted_for_is_refused(more: dict):
    with pytest.raises(UserError, match=r"set |leave"):
        check_settings({"privacy": {"kind": "central"}, **more}, "test")


def test_settings_of_privacy_without_privacy_are_refused():
    with pytest.raises(
        UserError, match=r"privacy\.noise_multiplier = 3\.0 does nothing under privacy.kind = 'none'"
    ):
        check_settings({"privacy": {"noise_multiplier": 3.0}}, "test")
