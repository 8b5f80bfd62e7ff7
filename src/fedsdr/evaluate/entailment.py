"""Checkers of entailment: does one text support all claims of another?

Input: pairs of premise and hypothesis. Output: True, False, or None without a verdict. Checkers make errors;
`analysis.paradox` measures their false positives on true responses and true paraphrases.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fedsdr.data.batching import in_batches
from fedsdr.errors import UserError
from fedsdr.evaluate.judge import ask_judge
from fedsdr.model.base import first_line, quiet
from fedsdr.model.remote import Judge

VERDICTS = {"yes": True, "no": False}
QUESTION = """Does the first text support everything that the second text says?

First text:
{premise}

Second text:
{hypothesis}

Reply with one word and nothing else: yes or no."""


class Checker(Protocol):
    """A source of verdicts."""

    name: str

    def entails(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Decide for each (premise, hypothesis) whether the first entails the second; None: no verdict."""


class NliChecker:
    """A cross-encoder for natural language inference: a sequence classifier with a class "entailment"."""

    def __init__(self, source: str, batch_size: int = 16) -> None:
        """Load model and tokenizer, in float32, on a GPU if available.

        Args:
            source: Id on the Hugging Face hub, or a local folder.
            batch_size: Pairs in one forward pass.

        Raises:
            UserError: The model cannot be read, or not exactly one class is called entailment.
        """
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            with quiet(keep_bars=not Path(source).is_dir()):
                self.tokenizer = AutoTokenizer.from_pretrained(source)
                model = AutoModelForSequenceClassification.from_pretrained(
                    source, dtype=torch.float32, use_safetensors=True
                )
        except (OSError, ValueError, ImportError) as error:
            raise UserError(
                f"--nli = {source} cannot be read as a sequence classifier: {first_line(error)}\n"
                "How to fix it: the hub id or folder of a model for natural language inference"
            ) from None
        labels = model.config.id2label
        found = [number for number, label in labels.items() if label.casefold() == "entailment"]
        if len(found) != 1:
            raise UserError(
                f"--nli = {source} has the classes {', '.join(labels.values())}; use a model"
                " for natural language inference, with one class called entailment in its id2label"
            )
        (self.entailment,) = found
        self.name = Path(source).name if Path(source).is_dir() else source
        self.batch_size = batch_size
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        # RoBERTa's positions begin after the padding index, so two of them are never used.
        positions = getattr(model.config, "max_position_embeddings", 514) - 2
        self.max_length = min(self.tokenizer.model_max_length, positions)
        self.num_truncated = 0
        """Number of truncated premises so far; the missing part may have supported the hypothesis."""

    def entails(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Decide whether "entailment" is the likeliest class of each (premise, hypothesis).

        If both together are too long, the premise is truncated, never the hypothesis; None if no room is left
        for a premise.
        """
        import torch

        with quiet():  # it warns about lengths that are truncated below
            lengths = [len(self.tokenizer(*pair)["input_ids"]) for pair in pairs]
            least = [len(self.tokenizer("", hypothesis)["input_ids"]) for _, hypothesis in pairs]
        rows = [row for row in range(len(pairs)) if least[row] < self.max_length]
        self.num_truncated += sum(lengths[row] > self.max_length for row in rows)

        def of_batch(batch: list[tuple[str, str]]) -> list[bool]:
            encoded = self.tokenizer(
                [premise for premise, _ in batch],
                [hypothesis for _, hypothesis in batch],
                truncation="only_first",
                max_length=self.max_length,
                padding=True,
                return_tensors="pt",
            ).to(self.model.device)
            with torch.inference_mode():
                likeliest = self.model(**encoded).logits.argmax(dim=1).tolist()
            return [number == self.entailment for number in likeliest]

        some, of_some = [pairs[row] for row in rows], [lengths[row] for row in rows]
        verdicts = dict(zip(rows, in_batches(some, of_some, self.batch_size, of_batch, "pairs"), strict=True))
        return [verdicts.get(row) for row in range(len(pairs))]


class JudgeChecker:
    """A language model behind a server that judges whether one text supports another."""

    def __init__(self, judge: Judge) -> None:
        """Use this judge."""
        self.judge = judge
        self.name = f"judge {judge.served_name}"

    def entails(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Ask the judge about each (premise, hypothesis); None unless it answers exactly "yes" or "no".

        Raises:
            UserError: As for `ask_server`.
        """
        prompts = [QUESTION.format(premise=premise, hypothesis=hypothesis) for premise, hypothesis in pairs]
        return [VERDICTS.get(text) for text in ask_judge(prompts, self.judge)]
