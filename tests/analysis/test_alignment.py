"""Likeness of clients' texts: known cases, and that length and sample size do not pass for likeness."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from fedsdr.analysis.alignment import cluster, js, split_words, text_alignment, tfidf
from fedsdr.errors import UserError

WORDS = 2000
ZIPF = 1 / np.arange(1, WORDS + 1)


def texts(num: int, length: int, seed: int, name: str = "w") -> list[str]:
    """Texts of words drawn by Zipf's law; another name is another vocabulary."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(WORDS, (num, length), p=ZIPF / ZIPF.sum())
    return [" ".join(f"{name}{word}" for word in row) for row in drawn]


def means(pairs: dict[str, list[tuple[str, str]]]) -> dict[tuple[str, str], dict[str, float]]:
    return {(r["measure"], r["view"]): r for r in text_alignment(pairs, 0) if r["a"] == "mean"}


def test_the_divergence_is_that_of_scipy_squared_in_bits():
    p, q = np.array([3, 0, 1, 4]), np.array([2, 2, 2, 2])
    assert js(p, q) == pytest.approx(jensenshannon(p, q, base=2) ** 2)
    assert js(p, p) == pytest.approx(0)
    assert js(np.array([5, 3, 0]), np.array([0, 0, 8])) == pytest.approx(1)


def test_tfidf_of_equal_bags_is_one_and_of_disjoint_bags_zero():
    one, same, other = np.array([[3, 1, 0], [6, 2, 0], [0, 0, 4]])
    idf = np.array([1.3, 1.3, 1.7])
    assert tfidf(one, same, idf) == pytest.approx(1)
    assert tfidf(one, other, idf) == tfidf(same, other, idf) == 0


def test_texts_of_one_distribution_have_no_divergence_beyond_chance():
    """The plain divergence of the same samples is far above 0: what the adjustment is for."""
    found = means({name: [(t, t) for t in texts(40, 30, seed)] for seed, name in enumerate("ab")})
    assert found["js", "raw"]["low"] < 0 < found["js", "raw"]["high"]
    assert found["js_plain", "raw"]["low"] > 0.3


def test_texts_without_a_common_word_are_as_far_apart_as_can_be():
    found = means({name: [(t, t) for t in texts(20, 20, 0, name)] for name in "ab"})
    for measure, value in (("js", 1), ("js_plain", 1), ("tfidf", 0)):
        assert found[measure, "raw"]["value"] == pytest.approx(value)
        assert found[measure, "raw"]["high"] == pytest.approx(value)


def test_rewritings_with_common_words_are_told_as_nearer_with_an_interval_that_excludes_no_change():
    pairs = {
        name: list(zip(texts(40, 20, 0, name), texts(40, 20, seed), strict=True))
        for seed, name in enumerate("abc")
    }
    found = means(pairs)
    assert found["js", "difference"]["high"] < 0 < found["tfidf", "difference"]["low"]
    for measure in ("js", "tfidf"):
        raw, distilled = (found[measure, view]["value"] for view in ("raw", "distilled"))
        assert found[measure, "difference"]["value"] == pytest.approx(distilled - raw)


def test_longer_rewritings_do_not_pass_for_nearer_ones():
    """Of the same distributions, five times as long; without the cut the plain divergence falls by itself."""
    pairs = {
        name: list(zip(texts(40, 10, seed), texts(40, 50, 9 + seed), strict=True))
        for seed, name in enumerate("ab")
    }
    found = means(pairs)
    assert found["js_plain", "difference"]["low"] < 0 < found["js_plain", "difference"]["high"]
    assert found["js", "raw"]["num_words"] == 20 * 10  # a half of the shorter texts


def test_longer_rewritings_whose_words_come_in_clusters_do_not_pass_for_nearer_ones():
    """Each text repeats a few words of its own, so a longer one has more clusters, under one distribution.
    With single words dealt out for the chance level, such texts once seemed closer, with intervals that
    excluded no change.
    """

    def clustered(num: int, seed: int) -> str:
        words = texts(num, 4, seed)
        return " ".join(" ".join([text] * 3) for text in words)

    pairs = {
        name: [(clustered(1, 1000 * start + n), clustered(4, 5000 * (start + 7) + 9 * n)) for n in range(40)]
        for start, name in enumerate("ab", 1)
    }
    found = means(pairs)
    for view in ("raw", "distilled", "difference"):
        assert found["js", view]["low"] < 0 < found["js", view]["high"], view


def test_what_cannot_be_told_apart_from_chance_is_refused():
    one = [(t, t) for t in texts(8, 20, 0)]
    with pytest.raises(UserError, match="at least two"):
        text_alignment({"a": one}, 0)
    with pytest.raises(UserError, match="b has 3 responses; 4"):
        text_alignment({"a": one, "b": one[:3]}, 0)
    with pytest.raises(UserError, match="have 4 words"):
        text_alignment({"a": one, "b": [("yes", "no")] * 8}, 0)


def test_words_are_told_without_case_and_signs():
    assert split_words("The Answer, 'is': 4.5!") == ["the", "answer", "is", "4", "5"]


def test_clusters_part_what_has_no_common_word():
    found = cluster([*texts(10, 99, 0, "a"), *texts(6, 99, 0, "b")], 2, 0)
    assert found == ["cluster-1"] * 10 + ["cluster-2"] * 6


def test_equal_texts_differ_by_nothing():
    """Once their divergence beyond chance differed by the noise of chance itself, and was called a change."""
    pairs = {name: [(t, t) for t in texts(12, 12, seed)] for seed, name in enumerate("abc")}
    for measure in ("js", "js_plain", "tfidf"):
        found = means(pairs)[measure, "difference"]
        assert found["value"] == found["low"] == found["high"] == 0
