"""Describe the data of each client: the numbers behind `fedsdr data`.

Input: domains and the clients' data. Output: JSON-compatible dicts. Nothing is printed here.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedsdr.data.checks import is_checkable, is_inconsistent, lost
from fedsdr.data.examples import Example
from fedsdr.data.files import cut
from fedsdr.data.lengths import Length, summarize_lengths
from fedsdr.data.partition import ClientData
from fedsdr.data.sandbox import isolation
from fedsdr.data.sources import Domain, count_known_responses, find_duplicates
from fedsdr.errors import UserError

MOST_CHOICES = 20
"""More choices than this for one label are probably a mistake."""
NUM_SAMPLES = 2
"""Number of samples, duplicates and inconsistent examples to show."""


def summarize(
    domains: dict[str, Domain],
    clients: list[ClientData],
    lengths: Mapping[str, Sequence[Length]] | None = None,
    max_length: int = 0,
) -> dict[str, Any]:
    """Count the examples, and what each client would hold.

    Args:
        domains: From `load_domains`.
        clients: From `partition`.
        lengths: Tokens of all examples of each domain, if the model's tokenizer is available.
        max_length: Longest conversation in tokens, compared with `lengths`.

    Returns:
        ``{"notices": [...], "tokens": {...}, "domains": [...], "clients": [...]}``: lines to read, tokens by
        domain, and one dict per domain and client. Words are means over the training examples; domains
        and labels are counts of them. `num_duplicates` counts the test examples whose prompt is also a
        training prompt of the domain, `num_known_responses` the test examples whose response is also a
        training response (labels excluded), and `num_inconsistent` the examples whose own response loses
        their label, answer or facts.
    """
    return {
        "notices": notices(domains),
        "tokens": {
            name: {"max_length": max_length, **summarize_lengths(some, max_length)}
            for name, some in (lengths or {}).items()
        },
        "domains": [_domain(name, domain) for name, domain in domains.items()],
        "clients": [_client(client) for client in clients],
    }


def count_inconsistent(examples: Iterable[Example]) -> int:
    """Count the examples whose own response loses its label, answer or facts (`checks.is_inconsistent`)."""
    return sum(map(is_inconsistent, examples))


def check_consistent(domains: Mapping[str, Domain]) -> None:
    """Reject a domain in which every example contradicts its own label, answer or facts.

    No rewriting of them could be faithful, and no answer correct: either a column feeds the wrong field, or
    `checks` cannot read the ground truth in the form it is written.

    Raises:
        UserError: Shows the first such example.
    """
    for name, domain in domains.items():
        records = domain.train + domain.test
        checked = [r for r in records if is_checkable(replace(r.example, tests=""))]
        if 2 * len(checked) < len(records) or not all(is_inconsistent(r.example) for r in checked):
            continue
        first = checked[0].example
        kinds = lost(replace(first, tests=""), first.response)
        truth = ", ".join(f"{kind} {cut(getattr(first, kind))!r}" for kind in kinds)
        raise UserError(
            f"{checked[0].place or name}: all {len(checked)} examples of domain {name!r} contradict their own"
            f" ground truth: this one has the {truth}, but the response {cut(first.response)!r} does not give"
            f' it; map the right column by columns = {{{kinds[0]} = "..."}}, or switch the field off by'
            f' columns = {{{kinds[0]} = ""}}'
        )


def notices(domains: Mapping[str, Domain]) -> list[str]:
    """Warnings about the domains that the user should see before a run costs time, one line each."""
    lines: list[str] = []
    for name, domain in domains.items():
        examples = [record.example for record in domain.train + domain.test]
        lines += [f"{name}: {num} rows left out: {reason}" for reason, num in domain.left_out.items()]
        if domain.num_cut:
            lines.append(
                f"{name}: {domain.num_cut} of {len(examples)} responses are cut at model.max_length and do"
                " not teach the model where to end"
            )
        most = max((len(example.choices) for example in examples), default=0)
        if most > MOST_CHOICES:
            lines.append(
                f"{name}: {most} choices for one label: rows without choices take all labels"
                " of the domain; set the choices of each row by columns = {choices = ...} or choices_after,"
                ' or switch the label off by columns = {label = ""}'
            )
    return lines


def program_notices(
    domains: Mapping[str, Domain], runs_programs: bool, key: str = "eval.run_programs"
) -> list[str]:
    """Report whether the `tests` of examples run, and how; nothing if there are none.

    Args:
        domains: The examples.
        runs_programs: Whether the user consents.
        key: Name of the setting that gives consent.
    """
    num = sum(bool(r.example.tests) for domain in domains.values() for r in domain.train + domain.test)
    if not num:
        return []
    if runs_programs:
        return [f"the tests of {num} examples and the model's programs run {isolation()}"]
    return [
        f"{num} examples have tests, which are programs and do not run without consent: they are ignored."
        f" If you trust the data, set {key} = true"
    ]


def render_summary(summary: dict[str, Any]) -> str:
    """Format a summary as text for a terminal."""
    lines = list(summary["notices"])
    for name, tokens in summary["tokens"].items():
        fits = (
            f"{tokens['num_cut']} responses are cut at model.max_length = {tokens['max_length']},"
            f" {tokens['num_losing_truth']} of them before their ground truth, and {tokens['num_too_long']}"
            " prompts leave no room for one"
            if tokens["num_cut"] + tokens["num_too_long"]
            else f"all fit model.max_length = {tokens['max_length']}"
        )
        lines.append(
            f"{name}: prompts of {tokens['mean_prompt']:.0f} tokens (at most {tokens['longest_prompt']:,}),"
            f" responses of {tokens['mean_response']:.0f} (at most {tokens['longest_response']:,}); {fits}"
        )
    for domain in summary["domains"]:
        if domain["num_duplicates"]:
            lines.append(
                f"{domain['domain']}: {domain['num_duplicates']} test prompts are training prompts too,"
                f" such as: {' | '.join(domain['duplicates'])}"
            )
        if domain["num_known_responses"]:
            lines.append(
                f"{domain['domain']}: {domain['num_known_responses']} of {domain['num_test']} test responses"
                " are training responses too (to other prompts)"
            )
        if domain["num_inconsistent"]:
            lines.append(
                f"{domain['domain']}: {domain['num_inconsistent']} examples whose own response loses their"
                f" label, answer or facts, such as: {' | '.join(domain['inconsistent'])}"
            )
    for client in summary["clients"]:
        words = ", ".join(f"{field} {mean:.0f}" for field, mean in client["words"].items())
        lines += [
            "",
            f"{client['client']}: {client['num_train']} training, {client['num_test']} test examples",
        ]
        lines.append(f"  mean words: {words}")
        for what in ("domains", "labels"):
            if len(client[what]) > (what == "domains"):
                counts = ", ".join(f"{name} {num}" for name, num in client[what].items())
                lines.append(f"  {what}: {counts}")
        for sample in client["samples"]:
            prompt = " / ".join(text for text in (sample["instruction"], sample["context"]) if text)
            lines.append(f"  sample: {prompt}\n      ->  {sample['response']}")
    return "\n".join(lines).strip()


def _domain(name: str, domain: Domain) -> dict[str, Any]:
    duplicates = find_duplicates(domain)
    examples = [record.example for record in domain.train + domain.test]
    inconsistent = [example.instruction for example in examples if is_inconsistent(example)]
    return {
        "domain": name,
        "num_train": len(domain.train),
        "num_test": len(domain.test),
        "left_out": dict(domain.left_out),
        "num_duplicates": len(duplicates),
        "duplicates": [cut(text) for text in duplicates[:NUM_SAMPLES]],
        "num_known_responses": count_known_responses(domain),
        "num_inconsistent": len(inconsistent),
        "inconsistent": [cut(text) for text in inconsistent[:NUM_SAMPLES]],
    }


def _client(client: ClientData) -> dict[str, Any]:
    return {
        "client": client.id,
        "num_train": len(client.train),
        "num_test": len(client.test),
        "domains": _count(example.domain for example in client.train),
        "labels": _count(example.label for example in client.train if example.label),
        "words": {
            field: _mean_words(client.train, field) for field in ("instruction", "context", "response")
        },
        "samples": [
            {field: cut(getattr(example, field)) for field in ("instruction", "context", "response")}
            for example in client.train[:NUM_SAMPLES]
        ],
    }


def _count(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _mean_words(examples: list[Example], field: str) -> float:
    return sum(len(getattr(example, field).split()) for example in examples) / max(1, len(examples))
