"""Gather the domains of a run: from a folder, from listed sources, or from the built-in data.

Input: `config.Data`. Output: for each domain its training and test records. `partition` assigns them to
clients. The presets are the five data sets of Ren et al., FedSDR, ICML 2026, arXiv 2605.18028.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path

from fedsdr.config import Data, Reading, Source
from fedsdr.data.examples import Example
from fedsdr.data.files import BadRow, file_rows, hub_rows, is_known_format, refuse_bad
from fedsdr.data.readers import NEEDED, Record, fill_choices, to_records
from fedsdr.errors import Problems, UserError
from fedsdr.methods import look_up
from fedsdr.seeds import seed_for

RESERVED = ("all", "mean", "others")
"""Names that label rows of result tables, so no domain or client may use them."""
FILES = ("train.jsonl", "test.jsonl")
"""File names of a domain; any suffix that `files` reads is accepted."""
BUILT_IN = Path(__file__).parent / "demo"
"""Folder of the built-in data, with a folder for each value of `data.built_in`; made by `tools/demo_data`."""
LAYOUT = "expected <root>/<domain>/train.jsonl and <root>/<domain>/test.jsonl, one folder for each domain"
EMPTY = frozenset(f"{name} is {what}" for name in NEEDED for what in ("missing", "empty"))
"""Kinds of bad rows in the public data sets, which their users cannot correct."""


@dataclass(frozen=True)
class Domain:
    """The examples of one domain."""

    train: list[Record]
    test: list[Record]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Rows that could not be used, by reason."""
    num_cut: int = 0
    """Number of examples whose response is truncated at `model.max_length` (`data.lengths`)."""


@dataclass(frozen=True)
class Preset:
    """A public data set in Alpaca form: its hub id, and the columns with other names."""

    hub: str
    columns: Mapping[str, str]


PRESETS: Mapping[str, Preset] = {
    "fingpt": Preset("FinGPT/fingpt-sentiment-train", {"label": "output"}),
    "mathinstruct": Preset("TIGER-Lab/MathInstruct", {}),
    "codealpaca": Preset("sahil2801/CodeAlpaca-20k", {}),
    "alpaca": Preset("tatsu-lab/alpaca", {}),
    "medalpaca": Preset("medalpaca/medical_meadow_medical_flashcards", {}),
}


def load_domains(data: Data, id_column: str = "client") -> dict[str, Domain]:
    """Load every domain of a run, sampled down to `num_train` and `num_test` examples.

    A domain with fewer examples than that is taken whole. Records keep the order of their file.

    Args:
        data: The settings.
        id_column: Key of a raw record that holds its client (`partition.id_column`).

    Returns:
        Domains by name, in the order of `data.domains` if set, otherwise sorted.

    Raises:
        UserError: The data cannot be read, or a domain is unknown, listed twice or not a valid name.
    """
    # The default key is always a candidate, and may be absent.
    columns = {} if id_column == "client" else {"client": id_column}
    if data.sources and not data.root:
        sources = {source.domain: source for source in data.sources}
        if len(sources) < len(data.sources):
            raise UserError(
                f"data.sources: a domain is listed twice ({', '.join(s.domain for s in data.sources)})"
            )
        names = _choose(data, list(sources))

        def load(name: str) -> Domain:
            return _from_source(sources[name], columns, data)

    else:
        folders = _folders(Path(data.root) if data.root else BUILT_IN / data.built_in)
        names = _choose(data, list(folders))
        reading = _reading(data, columns if data.root else {})  # the built-in data use our client column

        def load(name: str) -> Domain:
            return _from_folder(folders[name], name, reading, data)

    problems = Problems()
    domains: dict[str, Domain] = {}
    for name in names:
        with problems.gather():
            domains[name] = load(name)
    problems.refuse()
    return {name: _draw(_fill_choices(domain), data, name) for name, domain in domains.items()}


def find_duplicates(domain: Domain) -> list[str]:
    """Return the test prompts that are also training prompts, one for each such test example.

    Prompts are compared by instruction, context and system prompt, ignoring case and white space.
    """
    seen = {_prompt(record.example) for record in domain.train}
    return [r.example.instruction for r in domain.test if _prompt(r.example) in seen]


def count_known_responses(domain: Domain) -> int:
    """Count the test examples whose response answers another prompt in training; labels are excluded.

    Scores and losses on them also measure memorisation.
    """
    responses = {record.example.response for record in domain.train}
    prompts = {_prompt(record.example) for record in domain.train}
    unseen = (r.example for r in domain.test if _prompt(r.example) not in prompts)
    return sum(example.response in responses and not example.label for example in unseen)


def check_name(name: str, what: str) -> str:
    """Return a name if it is valid as the name of a folder.

    Raises:
        UserError: It holds characters other than letters, digits, dots, dashes and underscores.
    """
    if not re.fullmatch(r"\w[\w.-]{0,63}", name):
        raise UserError(
            f"{what} {name[:64]!r} cannot name a folder; expected at most 64 letters,"
            " digits, '.', '-' and '_', beginning with a letter, a digit or '_'"
        )
    if name in RESERVED:
        raise UserError(f"a {what} cannot be named {name!r}: tables use this name for a row; rename it")
    return name


LOOKS = str.maketrans("01i_.", "oll--")
"""ASCII characters that look alike, in lower case."""


def check_client(name: str, others: Iterable[str] = ()) -> str:
    """Return the client id of a deployment if it cannot be confused with another name.

    Raises:
        UserError: It is not a valid folder name, is not ASCII (other alphabets have letters that look the
            same), or looks like the name of a table row or of another client.
    """
    check_name(name, "client")
    if not name.isascii():
        raise UserError(
            f"client {name!r}: expected ASCII letters, digits, '.', '-' and '_': letters of other alphabets"
            " look like these, and one client could be mistaken for another"
        )
    for other in (*RESERVED, *others):
        if _look(other) == _look(name) and other != name:
            raise UserError(f"client {name!r} looks like {other!r}: choose a more distinct name")
    return name


def _look(name: str) -> str:
    """A key that is equal for names that look alike."""
    return name.lower().translate(LOOKS).replace("rn", "m").replace("vv", "w")


def _folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise UserError(f"data.root = {str(root)!r} is not a folder; {LAYOUT}")
    folders, missing = domain_files(root)
    if not folders:
        raise UserError(f"data.root = {str(root)!r} contains no domain folder; {LAYOUT}")
    if missing:
        listed = ", ".join(f"{file.parent} contains no {file.name}" for file in missing)
        raise UserError(f"{listed}; {LAYOUT}")
    return folders


def domain_files(root: Path) -> tuple[dict[str, Path], list[Path]]:
    """Folder of each domain under `root`, by name, and the missing files; hidden folders are ignored."""
    places = sorted(root.iterdir()) if root.is_dir() else []
    folders = {p.name: p for p in places if p.is_dir() and not p.name.startswith(".")}
    files = [folder / file for folder in folders.values() for file in FILES]
    return folders, [file for file in files if not _in_any_format(file)]


def _in_any_format(file: Path) -> list[Path]:
    """Files of this name in any format and case, such as train.csv.gz and TRAIN.JSONL for train.jsonl."""
    beside = file.parent.iterdir() if file.parent.is_dir() else []
    stem = file.stem.lower()
    return sorted(p for p in beside if p.name.lower().partition(".")[0] == stem and is_known_format(p))


def _choose(data: Data, names: list[str]) -> list[str]:
    for name in data.domains:
        if data.domains.count(name) > 1:
            raise UserError(f"data.domains: {name!r} is listed twice; list each domain once")
    if unknown := [name for name in data.domains if name not in names]:
        listed = ", ".join(map(repr, unknown))
        raise UserError(f"data.domains: unknown domain {listed}; known: {', '.join(sorted(names))}")
    return [check_name(name, "domain") for name in data.domains or sorted(names)]


def _reading(data: Data, columns: Mapping[str, str], source: Reading | None = None) -> Reading:
    """How a domain is read: [data], overridden by its source, overridden by `columns`."""
    own = source or Reading()
    return Reading(
        columns={**columns, **data.columns, **own.columns},
        label_names=own.label_names or data.label_names,
        choices_after=own.choices_after or data.choices_after,
        where={**data.where, **own.where},
        train_on=own.train_on or data.train_on,
    )


def _from_folder(folder: Path, name: str, reading: Reading, data: Data) -> Domain:
    parts: list[list[Record]] = []
    bad: list[BadRow] = []
    for file in FILES:
        found = _in_any_format(folder / file)
        if len(found) > 1:
            raise UserError(f"{folder} contains {' and '.join(p.name for p in found)}; keep one of them")
        parts.append(to_records(file_rows(found[0], bad), name, reading, bad))
    train, test = parts
    left_out = _leave_out(bad, data.skip_bad_rows, (train, test))
    return Domain(train, test, left_out)


def _leave_out(bad: list[BadRow], skips: bool, parts: Iterable[list[Record]]) -> dict[str, int]:
    """Count bad rows by reason; raise an error if they may not be skipped or nothing is left."""
    if not skips or not all(parts):
        refuse_bad(bad, leaves_some=all(parts))
    return dict(sorted(Counter(row.kind for row in bad).items()))


def _from_source(source: Source, columns: Mapping[str, str], data: Data) -> Domain:
    preset = look_up(PRESETS, source.preset, "data.sources.preset") if source.preset else Preset("", {})
    place = source.train or source.hub or preset.hub
    if not place:
        raise UserError(f"source of domain {source.domain!r}: set one of preset, train and hub")
    reading = _reading(data, {**preset.columns, **columns}, source)
    tests, split = source.test or place, source.test_split or "test"
    has_test = bool(source.test or source.test_split)
    both = _parts(place, source.train_split, source) & _parts(tests, split, source)
    if has_test and both:
        raise UserError(
            f"source of domain {source.domain!r}: {min(both)[0]} would be both training and test set, by"
            f" train = {place!r} and test = {tests!r}; set a train without it, another test, or another"
            " test_split of a data set folder or hub id, or leave out both to hold out test_share of it"
        )
    if source.stream and not any(_has_splits(one, source) for one in (place, tests)):
        raise UserError(
            f"source of domain {source.domain!r}: stream = {source.stream} is for hub ids and folders, and"
            f" {place} is a file: leave stream out"
        )
    bad: list[BadRow] = []
    parts = [_read(place, source.train_split, source, reading, bad, data)]
    if has_test:
        parts.append(_read(tests, split, source, reading, bad, data))
    _leave_out([row for row in bad if not (source.preset and row.kind in EMPTY)], data.skip_bad_rows, parts)
    left_out = _leave_out(bad, True, parts)
    if has_test:
        train, test = parts
    else:
        train, test = _hold_out(parts[0], source.test_share, seed_for(data.seed, "test", source.domain))
    return Domain(train, test, left_out)


def _has_splits(place: str, source: Source) -> bool:
    """Whether a source is a data set with splits: a folder, or a hub id."""
    return place not in (source.train, source.test) or Path(place).is_dir()


def _files(place: str) -> list[str]:
    """A file, or all files that match a pattern."""
    return [place] if Path(place).exists() else sorted(glob(place, recursive=True)) or [place]


def _parts(place: str, split: str, source: Source) -> set[tuple[str, str]]:
    """The files that are read, or the split of a data set, whatever the spelling of their paths."""
    if _has_splits(place, source):
        return {(str(Path(place).resolve()) if Path(place).is_dir() else place, split)}
    return {(str(Path(file).resolve()), "") for file in _files(place)}


def _read(
    place: str, split: str, source: Source, reading: Reading, bad: list[BadRow], data: Data
) -> list[Record]:
    """The records of a file, of all files that match a pattern, or of a split."""
    if _has_splits(place, source):
        seed = seed_for(data.seed, "stream", source.domain, split)
        rows = hub_rows(place, split, source.config, source.stream, seed)
    else:
        rows = [row for path in _files(place) for row in file_rows(path, bad)]
    return to_records(rows, source.domain, reading, bad)


def _hold_out(records: list[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Split off a share of the prompts as the test set; conversations with the same opening stay together.

    So do the examples of one conversation: the later ones contain the answers of the earlier ones.
    """
    prompts = list(dict.fromkeys(opening(record.example) for record in records))
    random.Random(seed).shuffle(prompts)
    num_test = max(1, round(share * len(prompts)))
    if num_test >= len(prompts):
        raise UserError(
            f"domain {records[0].example.domain!r}: test_share = {share} of {len(prompts)} prompts"
            " leaves none to train on; lower test_share or set a test set"
        )
    return split_off(records, prompts[-num_test:])


def split_off(records: list[Record], held: Iterable[tuple[str, ...]]) -> tuple[list[Record], list[Record]]:
    """The other records, and those of conversations with these openings."""
    chosen = set(held)
    parts: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        parts[opening(record.example) in chosen].append(record)
    return parts


def _fill_choices(domain: Domain) -> Domain:
    filled = fill_choices([*domain.train, *domain.test])
    return replace(domain, train=filled[: len(domain.train)], test=filled[len(domain.train) :])


def _draw(domain: Domain, data: Data, name: str) -> Domain:
    def draw(records: list[Record], num: int, part: str) -> list[Record]:
        if not 0 < num < len(records):
            return records
        chosen = random.Random(seed_for(data.seed, "draw", name, part)).sample(range(len(records)), num)
        return [records[i] for i in sorted(chosen)]

    return replace(
        domain,
        train=draw(domain.train, data.num_train, "train"),
        test=draw(domain.test, data.num_test, "test"),
    )


def _prompt(example: Example) -> tuple[str, ...]:
    earlier = [text for exchange in example.history for text in exchange]
    parts = (example.instruction, example.context, example.system, *earlier)
    return tuple(" ".join(part.split()).casefold() for part in parts)


def opening(example: Example) -> tuple[str, ...]:
    """The prompt that opens a conversation."""
    if not example.history:
        return _prompt(example)
    return _prompt(replace(example, instruction=example.history[0][0], context="", history=()))
