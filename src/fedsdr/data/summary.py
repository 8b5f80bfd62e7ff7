"""Describe what each client would hold: the numbers behind `fedsdr data`.

In: domains and the clients' data. Out: plain dicts that JSON can hold. Nothing is printed here.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from fedsdr.data.checks import is_inconsistent
from fedsdr.data.examples import Example
from fedsdr.data.files import cut
from fedsdr.data.partition import ClientData
from fedsdr.data.sources import Domain, count_known_responses, find_duplicates


def summarize(domains: dict[str, Domain], clients: list[ClientData], num_samples: int = 2) -> dict[str, Any]:
    """Count what there is and what each client would hold.

    Args:
        domains: As from `load_domains`.
        clients: As from `partition`.
        num_samples: How many samples, duplicates and inconsistent examples are shown.

    Returns:
        ``{"domains": [...], "clients": [...]}``, one dict for each. Words are means over the training
        examples; domains and labels are counts of them. `num_duplicates` counts the test examples
        whose prompt is a training prompt of the domain too, `num_known_responses` those whose response
        is a training response (labels aside), `num_inconsistent` the examples whose own
        response loses their label, answer or facts.
    """
    return {
        "domains": [_domain(name, domain, num_samples) for name, domain in domains.items()],
        "clients": [_client(client, num_samples) for client in clients],
    }


def count_inconsistent(examples: Iterable[Example]) -> int:
    """Count the examples whose own response loses its label, answer or facts (`checks.is_inconsistent`)."""
    return sum(map(is_inconsistent, examples))


def render_summary(summary: dict[str, Any]) -> str:
    """Lay out a summary as text for a terminal."""
    lines = []
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
        for reason, num in domain["left_out"].items():
            lines.append(f"{domain['domain']}: {num} rows left out: {reason}")
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


def _domain(name: str, domain: Domain, num_samples: int) -> dict[str, Any]:
    duplicates = find_duplicates(domain)
    examples = [record.example for record in domain.train + domain.test]
    inconsistent = [example.instruction for example in examples if is_inconsistent(example)]
    return {
        "domain": name,
        "num_train": len(domain.train),
        "num_test": len(domain.test),
        "left_out": dict(domain.left_out),
        "num_duplicates": len(duplicates),
        "duplicates": [cut(text) for text in duplicates[:num_samples]],
        "num_known_responses": count_known_responses(domain),
        "num_inconsistent": len(inconsistent),
        "inconsistent": [cut(text) for text in inconsistent[:num_samples]],
    }


def _client(client: ClientData, num_samples: int) -> dict[str, Any]:
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
            for example in client.train[:num_samples]
        ],
    }


def _count(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _mean_words(examples: list[Example], field: str) -> float:
    return sum(len(getattr(example, field).split()) for example in examples) / max(1, len(examples))
