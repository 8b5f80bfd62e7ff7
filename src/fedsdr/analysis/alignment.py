"""How similar the clients' texts are, before and after rewriting.

Texts become bags of words. Longer texts look more similar by themselves, so two compared clients, in both
views, are cut to the same number of randomly drawn words. Measures that need the texts of several clients
work in simulation only: in a deployment nobody has them all.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import vstack
from scipy.spatial.distance import cosine, jensenshannon
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from fedsdr.errors import UserError
from fedsdr.seeds import seed_for
from fedsdr.stats import half_samples, with_interval
from fedsdr.storage import Event

Pair = tuple[str, str]
"""A response and its rewriting."""
Counts = NDArray[np.int64]
VIEWS = ("raw", "distilled")
LEAST = 4
"""Minimum number of examples of a client: half of them is two, the least with different draws."""
LEAST_WORDS = 20
"""Minimum number of words of a half: with fewer, nearly all differences are chance."""


def text_alignment(pairs: Mapping[str, Sequence[Pair]], seed: int) -> list[Event]:
    """Similarity of the clients' responses, pairwise and mean: raw, distilled, and the difference.

    Each of 200 draws takes a random half of every client's examples, the same for both views. For a pair of
    clients all texts are cut to the number of words of the shortest of their four. A value is the mean over
    the draws; its interval is t times their spread (`half_samples`), which also covers the draw of words.

    - js_plain: Jensen-Shannon divergence of the word distributions in bits,
      D = H((P + Q) / 2) - (H(P) + H(Q)) / 2, possibly the paper's definition. Two samples of one
      distribution are well above 0.
    - js: the same, adjusted for chance, (D - D0) / (1 - D0). D0 is the divergence after the responses of both
      are pooled and dealt out again as wholes, since words occur in clusters; a mean over all draws. About 0
      for texts of one distribution, 1 without a common word. It may be negative.
    - tfidf: cosine of the clients' TF-IDF vectors, each client one document.

    Paper: FedSDR (arXiv 2605.18028) reports both without their definitions. Lin, "Divergence measures based
    on the Shannon entropy", IEEE Transactions on Information Theory 37 (1991), 145-151. The adjustment has
    the form of Vinh, Epps and Bailey, JMLR 11 (2010), 2837-2854.

    Args:
        pairs: Client -> its responses, each with its rewriting.
        seed: Seed of the draws.

    Returns:
        Records with measure, view, a, b ("mean" and "" for the mean over pairs), value, low, high and
        num_words, the mean number of words that the texts were cut to.

    Raises:
        UserError: Fewer than two clients, or one has fewer than four examples or too few words.
    """
    _check(pairs)
    names = list(pairs)
    rng = np.random.default_rng(seed_for(seed, "alignment"))
    matrices = _count_words(pairs)
    places = list(combinations(range(len(names)), 2))
    found: list[NDArray[np.float64]] = []
    num_words: list[list[int]] = []
    for halves in half_samples([len(pairs[name]) for name in names], rng):
        views = [[matrix[half] for matrix, half in zip(view, halves, strict=True)] for view in matrices]
        totals = np.min([[matrix.sum() for matrix in view] for view in views], axis=0)
        _require_words(names, totals)
        num_words.append([int(min(totals[a], totals[b])) for a, b in places])
        likeness = []
        paired = int(rng.integers(2**63))  # the same draws in both views: equal texts have difference 0
        for view in views:
            own = np.random.default_rng(paired)
            idf = _idf([_draw_words(_bag(m), int(num), own) for m, num in zip(view, totals, strict=True)])
            pairs_of_view = zip(places, num_words[-1], strict=True)
            likeness.append([_likeness(view[a], view[b], num, idf, own) for (a, b), num in pairs_of_view])
        found.append(np.array(likeness).transpose(2, 0, 1))
    # All have shape (draws, views, pairs).
    plain, cosine, dealt = np.moveaxis(np.stack(found), 1, 0)
    chance = dealt.mean(axis=0)
    draws = {"js": (plain - chance) / (1 - chance), "js_plain": plain, "tfidf": cosine}
    freedom = min(map(len, pairs.values())) - 1
    of_pair = np.mean(num_words, axis=0)
    num = {(names[a], names[b]): float(words) for (a, b), words in zip(places, of_pair, strict=True)}
    num["mean", ""] = float(of_pair.mean())
    return [
        {"measure": measure, **record, "num_words": num[record["a"], record["b"]]}
        for measure, drawn in draws.items()
        for record in pair_records(names, drawn.mean(axis=0), drawn, freedom)
    ]


def pair_records(
    names: Sequence[str], values: NDArray[np.float64], draws: NDArray[np.float64], freedom: int
) -> list[Event]:
    """Records for each view and their difference, by pair of clients and for the mean over pairs.

    Args:
        names: The clients.
        values: (views, pairs), pairs in the order of `itertools.combinations`.
        draws: (draws, views, pairs).
        freedom: Degrees of freedom of Student's t: units of the smallest client minus one.
    """
    places = [*combinations(names, 2), ("mean", "")]
    # With the difference as a third view and the mean as a last pair: (value and draws, views, pairs).
    found = np.array([[raw, distilled, distilled - raw] for raw, distilled in (values, *draws)])
    found = np.concatenate([found, found.mean(axis=2, keepdims=True)], axis=2)
    return [
        {"view": view, "a": a, "b": b, **with_interval(found[0, row, pair], found[1:, row, pair], freedom)}
        for row, view in enumerate((*VIEWS, "difference"))
        for pair, (a, b) in enumerate(places)
    ]


def cluster(instructions: Sequence[str], num: int, seed: int) -> list[str]:
    """Group instructions into clusters, which replace clients if a file names no domains.

    k-means of TF-IDF vectors.

    Returns:
        "cluster-1", ... for each instruction, the largest first.

    Raises:
        UserError: Fewer instructions than clusters, or no words in them.
    """
    if len(instructions) < num or not any(map(split_words, instructions)):
        raise UserError(
            f"--clusters {num}: found {len(instructions)} instructions; expected at least {num}, with words"
        )
    vectors = TfidfVectorizer(analyzer=split_words).fit_transform(instructions)
    labels = KMeans(num, n_init=10, random_state=seed_for(seed, "cluster") % 2**32).fit_predict(vectors)
    ranks = {label: rank for rank, (label, _) in enumerate(Counter(labels.tolist()).most_common(), start=1)}
    return [f"cluster-{ranks[label]}" for label in labels.tolist()]


def split_words(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return re.findall(r"\w+", text.casefold())


def js(p: Counts, q: Counts) -> float:
    """Jensen-Shannon divergence in bits of two bags with equally many words."""
    return float(jensenshannon(p, q, base=2)) ** 2


def tfidf(p: Counts, q: Counts, idf: NDArray[np.float64]) -> float:
    """Cosine of two bags of words, with counts weighted by idf."""
    return 1 - float(cosine(p * idf, q * idf))


def _idf(bags: Sequence[Counts]) -> NDArray[np.float64]:
    """Idf = log((1 + n) / (1 + df)) + 1 of each word, where df of the n bags contain it."""
    found: NDArray[np.float64] = np.log((1 + len(bags)) / (1 + (np.array(bags) > 0).sum(axis=0))) + 1
    return found


def _likeness(a: Any, b: Any, num: int, idf: NDArray[np.float64], rng: np.random.Generator) -> list[float]:
    """Divergence, cosine, and D0 of two clients, cut to `num` words.

    Args:
        a: Words of one client's responses as sparse counts (examples, vocabulary).
        b: Words of the other client's responses.
        num: Number of words.
        idf: Idf of each word.
        rng: Source of the draws.
    """
    p, q = (_draw_words(_bag(matrix), num, rng) for matrix in (a, b))
    dealt = _deal(a, b, rng)
    least = min(num, *(int(bag.sum()) for bag in dealt))
    return [js(p, q), tfidf(p, q, idf), js(*(_draw_words(bag, least, rng) for bag in dealt))]


def _deal(a: Any, b: Any, rng: np.random.Generator) -> tuple[Counts, Counts]:
    """Pool the responses of two clients and deal them out again as wholes, alternating from long to short.

    Both sides get about the same number of words, however unequal the clients' lengths are.
    """
    both = vstack([a, b]).tocsr()
    order = rng.permutation(both.shape[0])
    lengths = np.asarray(both.sum(axis=1)).ravel()[order]
    order = order[np.argsort(-lengths, kind="stable")]
    # Of each two neighbours, one goes to each side, at random.
    first = np.arange(len(order)) % 2 == np.repeat(rng.integers(0, 2, (len(order) + 1) // 2), 2)[: len(order)]
    return _bag(both[order[first]]), _bag(both[order[~first]])


def _bag(matrix: Any) -> Counts:
    """Summed counts (vocabulary,) of all examples."""
    return np.asarray(matrix.sum(axis=0)).ravel()


def _count_words(pairs: Mapping[str, Sequence[Pair]]) -> list[list[Any]]:
    """View -> client -> words of its texts as sparse counts (examples, vocabulary)."""
    counter = CountVectorizer(analyzer=split_words)
    counter.fit([text for some in pairs.values() for pair in some for text in pair])
    return [
        [counter.transform([pair[view] for pair in some]) for some in pairs.values()]
        for view in range(len(VIEWS))
    ]


def _draw_words(counts: Counts, num: int, rng: np.random.Generator) -> Counts:
    """Draw `num` words without replacement."""
    return rng.multivariate_hypergeometric(counts, num, method="marginals")


def _check(pairs: Mapping[str, Sequence[Pair]]) -> None:
    if len(pairs) < 2:
        raise UserError(f"similarity is between clients: found {len(pairs)}, at least two are required")
    for name, some in pairs.items():
        if len(some) < LEAST:
            raise UserError(f"{name} has {len(some)} responses; {LEAST} are required for an interval")


def _require_words(names: Sequence[str], totals: Counts) -> None:
    """Reject a client with too few words in a half, in either view."""
    for name, total in zip(names, totals.tolist(), strict=True):
        if total < LEAST_WORDS:
            raise UserError(
                f"half of {name}'s responses have {total} words; {LEAST_WORDS} are required for a comparison"
            )
