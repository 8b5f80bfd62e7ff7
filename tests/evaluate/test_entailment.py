"""Checkers: a tiny classifier with weights set by hand, and judges of known rules."""

import re
from itertools import permutations
from pathlib import Path

import pytest
import torch

from fedsdr.errors import UserError
from fedsdr.evaluate.entailment import JudgeChecker, NliChecker

THREE = ("entailment", "neutral", "contradiction")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "yes", "no", "pad", "other")
PAIRS = [("pad", "yes"), ("pad pad pad pad", "no"), ("yes yes", "pad no"), ("no no pad pad", "yes pad")]
VERDICTS = [True, False, True, False]


@pytest.fixture
def classifier(tmp_path: Path):
    """Return `classifier(labels)`: the folder of a BERT that says entailment where "yes" outnumbers "no".

    Each word is a dimension of its own, and the one layer attends to all words alike and adds their mean to
    what stands at [CLS]; from there the classifier takes the dimension of "yes" less that of "no".
    """

    def make(labels: tuple[str, ...], max_length: int = 16) -> str:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

        ids = {word: n for n, word in enumerate(VOCABULARY)}
        words = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=max_length
        )
        size = len(VOCABULARY)
        config = BertConfig(
            vocab_size=size, hidden_size=size, num_hidden_layers=1, num_attention_heads=1,
            intermediate_size=size, id2label=dict(enumerate(labels)), max_position_embeddings=64,
            label2id={label: n for n, label in enumerate(labels)},
        )  # fmt: skip
        model = BertForSequenceClassification(config)
        with torch.no_grad():
            for name, weights in model.named_parameters():
                if "LayerNorm" not in name:
                    weights.zero_()
            layer, one = model.bert.encoder.layer[0].attention, torch.eye(size)
            for target in (model.bert.embeddings.word_embeddings, layer.self.value, layer.output.dense,
                           model.bert.pooler.dense):  # fmt: skip
                target.weight.copy_(one)
            for number, label in enumerate(labels):
                sign = 1 if label.casefold() == "entailment" else -1
                model.classifier.weight[number, ids["yes"]] = sign
                model.classifier.weight[number, ids["no"]] = -sign
        model.save_pretrained(tmp_path / "nli")
        tokenizer.save_pretrained(tmp_path / "nli")
        return str(tmp_path / "nli")

    return make


@pytest.mark.parametrize(
    "labels", [*permutations(THREE), ("not_entailment", "ENTAILMENT"), ("Entailment", "x")]
)
def test_labels_in_any_order_and_case_give_the_same_verdicts(classifier, labels):
    assert NliChecker(classifier(labels)).entails(PAIRS) == VERDICTS


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_change_no_verdict_and_no_order(classifier, batch_size):
    checker = NliChecker(classifier(THREE), batch_size)
    assert checker.entails(PAIRS[::-1]) == VERDICTS[::-1]
    assert checker.num_truncated == 0
    assert checker.entails([]) == []


def test_only_the_premise_is_cut_and_that_is_counted(classifier):
    """16 tokens, 3 of them special. "no" stands at the premise's end, so a cut premise loses it."""
    checker = NliChecker(classifier(THREE))
    fits, too_long = f"{'pad ' * 10}no no", f"{'pad ' * 20}no no"
    assert checker.entails([(fits, "yes")]) == [False]
    assert checker.num_truncated == 0
    assert checker.entails([(too_long, "yes")]) == [True]
    assert checker.num_truncated == 1
    # 12 words leave room for one word of the premise, 13 for none: no verdict, and nothing was cut.
    assert checker.entails([("no no", "yes " * 12), ("no no", "yes " * 13)]) == [True, None]
    assert checker.num_truncated == 2


def test_where_the_tokenizer_names_no_limit_the_models_positions_are_one(classifier):
    checker = NliChecker(classifier(THREE, max_length=10**30))
    assert checker.entails([("pad " * 500, "yes")]) == [True]
    assert (checker.max_length, checker.num_truncated) == (62, 1)


def test_a_classifier_without_entailment_is_an_error_that_lists_its_classes(classifier):
    with pytest.raises(UserError, match="has the classes LABEL_0, LABEL_1; use a model for natural"):
        NliChecker(classifier(("LABEL_0", "LABEL_1")))


def test_a_folder_that_holds_no_classifier_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match=f"--nli = {tmp_path} cannot be read as a sequence classifier"):
        NliChecker(str(tmp_path))


def test_a_language_model_is_no_classifier(tiny_folder: Path):
    """It has no head for classes; a random one must not judge."""
    with pytest.raises(UserError, match="--nli = "):
        NliChecker(str(tiny_folder))


def test_a_judge_answers_yes_or_no_and_all_else_is_no_verdict(judge_by):
    """It says of the second text whatever that says itself."""
    says = lambda prompt: re.search(r"Second text:\n(.*)\n\nReply", prompt)[1]  # noqa: E731
    judge, asked = judge_by(says)
    checker = JudgeChecker(judge)
    texts = ["Yes.", "no", "NO", "yes, mostly", "perhaps", "yes no"]
    assert checker.entails([(f"First {n}", text) for n, text in enumerate(texts)]) == [
        True, False, False, None, None, None,
    ]  # fmt: skip
    assert all(any(f"First text:\nFirst {n}\n" in prompt for prompt in asked) for n in range(len(texts)))
    assert checker.name == "judge rule"
