"""Which rows go to which split: cutting one source, samples, duplicates."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from nslora.tools.prompt import normalise
from nslora.tools.tasks.readers import SourceRow
from nslora.tools.tasks.spec import SPLITS, RowCaps, SplitShares

# Most rows that a share of train becomes if task.yaml does not state the share. An evaluation answers every validation
# row in every round; more rows than these tell little more (95 % interval of a reward of 0.5: +-0.044 and +-0.031).
DEFAULT_ROWS = {"validation": 500, "test": 1000}
FEW_LABELS = 20  # references of a task of labels
_PER_LABEL = 5  # rows of a label, at least, on average
MANY_ROWS = {"train": 10_000, "validation": 2000}  # more are worth a note

QuestionOf = Callable[[SourceRow], str]
Rows = dict[str, list[SourceRow]]


def same_question(question: str) -> str:
    """Normalise a question: NFKC, no case, single spaces, no ` .?!` at the end. Equal results are one question."""
    return " ".join(unicodedata.normalize("NFKC", question).casefold().split()).rstrip(" .?!")


def keys_of(question: str) -> set[str]:
    """Two questions that share a key are one: by `same_question`, or by the `normalise` of prompt checks."""
    return {same_question(question), normalise(question)} - {""}  # "": a question of punctuation alone


def split_off(
    rows: Sequence[SourceRow],
    shares: Mapping[str, float],
    seed: int,
    question_of: QuestionOf,
    most: Mapping[str, int] | None = None,
    label_of: QuestionOf | None = None,
) -> Rows:
    """Split rows at random by question: all rows of one question go to one split.

    Args:
        rows: The rows, in file order. Each split keeps that order.
        shares: Split name -> share of the distinct questions, in (0, 1).
        seed: Seed of the shuffle.
        question_of: Gives the question of a row.
        most: Split name -> most distinct questions.
        label_of: Gives the label of a row: each label then has the same share of each split, as far as whole rows
            allow. A question with several labels counts for the label of its first row.

    Returns:
        Split name -> rows. "train" holds the rest.
    """
    labels: dict[str, str] = {}
    asked = [question_of(row) for row in rows]
    for row, question in zip(rows, asked, strict=True):
        labels.setdefault(question, label_of(row) if label_of else "")
    groups: dict[str, list[str]] = defaultdict(list)
    for question in sorted(labels):
        groups[labels[question]].append(question)
    for label, questions in groups.items():
        random.Random(f"{seed}/{label}" if label_of else seed).shuffle(questions)
    owner = dict.fromkeys(labels, "train")
    for split, share in shares.items():
        count = min(round(share * len(labels)), (most or {}).get(split, len(labels)))
        for label, taken in _quotas({label: len(questions) for label, questions in groups.items()}, count).items():
            owner.update(dict.fromkeys(groups[label][:taken], split))
            del groups[label][:taken]
    found: Rows = {split: [] for split in ("train", *shares)}
    for row, question in zip(rows, asked, strict=True):
        found[owner[question]].append(row)
    return found


def _quotas(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Share `count` out in proportion to the sizes; what rounding leaves goes to the largest remainders."""
    total = sum(sizes.values())
    exact = {label: count * size / total for label, size in sizes.items()}
    quotas = {label: int(value) for label, value in exact.items()}
    by_remainder = sorted(exact, key=lambda label: (quotas[label] - exact[label], label))
    for label in by_remainder[: count - sum(quotas.values())]:
        quotas[label] += 1
    return quotas


def label_note(rows: Sequence[SourceRow], label_of: QuestionOf) -> str | None:
    """Advise `stratify` if the references are few labels."""
    labels = {label_of(row) for row in rows}
    if not 2 <= len(labels) <= FEW_LABELS or len(rows) < _PER_LABEL * len(labels):
        return None
    return f"The references are {len(labels)} labels: `split: {{stratify: true}}` gives each the same share of a split."


def sampled(rows: Mapping[str, Sequence[SourceRow]], caps: RowCaps) -> tuple[Rows, list[str]]:
    """Draw a sample of each split that has a cap and more rows. Rows keep their order.

    Returns:
        The rows, and a note for each sample.
    """
    kept, notes = {}, []
    for split, every in rows.items():
        cap = getattr(caps, split)
        kept[split] = list(every)
        if cap is not None and len(every) > cap:
            chosen = sorted(random.Random(f"{caps.seed}/{split}").sample(range(len(every)), cap))
            kept[split] = [every[place] for place in chosen]
            notes.append(f"{split}: a sample of {cap:,} of {len(every):,} rows (rows.{split}, seed {caps.seed}).")
    return kept, notes


def merged(
    rows: Mapping[str, Sequence[SourceRow]], question_of: QuestionOf, answers_of: Callable[[SourceRow], tuple[str, ...]]
) -> tuple[Rows, list[str]]:
    """Make the rows of one question in a split one row, with the right answers of all.

    Returns:
        The rows, and a note for each split that has fewer.
    """
    kept: Rows = {}
    notes = []
    for split, every in rows.items():
        groups: defaultdict[str, list[SourceRow]] = defaultdict(list)
        for row in every:
            groups[same_question(question_of(row))].append(row)
        kept[split] = []
        for first, *others in groups.values():
            answers = tuple(dict.fromkeys(text for row in (first, *others) for text in answers_of(row)))
            kept[split].append(replace(first, merged=answers) if others else first)
        if len(kept[split]) < len(every):
            notes.append(
                f"{split}: {len(every):,} rows ask {len(kept[split]):,} questions; each is one row, and a reply to any "
                "of its answers is right."
            )
    return kept, notes


def without_duplicates(
    rows: Mapping[str, Sequence[SourceRow]], question_of: QuestionOf, answer_of: QuestionOf
) -> tuple[Rows, list[str]]:
    """Drop rows that repeat: a question of test from validation and train, one of validation from train, and the same
    question with the same reference within a split.

    Returns:
        The rows, and a note for each split that lost some.
    """
    kept: Rows = {}
    notes: list[str] = []
    held_out: dict[str, str] = {}  # key of a question -> its split
    for split in reversed(SPLITS):
        lost: Counter[str] = Counter()
        seen: set[tuple[str, str]] = set()
        kept[split] = []
        for row in rows[split]:
            question = question_of(row)
            keys = keys_of(question)
            owner = next((held_out[key] for key in keys if key in held_out), None)
            pair = same_question(question), answer_of(row)
            if owner is None and pair not in seen:
                kept[split].append(row)
            lost[owner or "twice"] += owner is not None or pair in seen
            seen.add(pair)
        for row in kept[split]:
            held_out.update(dict.fromkeys(keys_of(question_of(row)), split))
        reasons = [
            f"{count:,} {'that repeat another' if where == 'twice' else f'that are in {where} too'}"
            for where, count in lost.items()
            if count
        ]
        if reasons:
            lost_rows = " and ".join(reasons)
            notes.append(f"{split}: of {len(rows[split]):,} rows, {lost_rows} are dropped.")
    return {split: kept[split] for split in SPLITS}, notes[::-1]


def shares_of(shares: SplitShares, missing: Iterable[str]) -> tuple[dict[str, float], dict[str, int]]:
    """Give the share of each split without a source, and the most questions of those whose share is not stated."""
    wanted = {split: getattr(shares, split) for split in missing}
    return wanted, {split: DEFAULT_ROWS[split] for split in wanted if split not in shares.model_fields_set}


def cut_notes(
    cut: Mapping[str, Sequence[SourceRow]], most: Mapping[str, int], shares: Mapping[str, float]
) -> list[str]:
    """Say which splits are smaller than their default share."""
    total = sum(len(cut[split]) for split in ("train", *shares))
    return [
        f"{split}: a sample of {len(cut[split]):,} rows, not {shares[split]:g} of all {total:,}; "
        f"`split: {{{split}: {shares[split]:g}}}` gives the whole share."
        for split in most
        if len(cut[split]) < round(0.9 * shares[split] * total)
    ]


def size_notes(rows: Mapping[str, Sequence[SourceRow]]) -> list[str]:
    """Advise a cap for a large split."""
    costs = {
        "train": "a training job may learn from all {:,} rows; `rows: {{train: 5000}}` draws a sample.",
        "validation": "each round answers all {:,} rows; `rows: {{validation: 500}}` draws a sample.",
    }
    return [
        f"{split}: {costs[split].format(len(rows[split]))}" for split in costs if len(rows[split]) > MANY_ROWS[split]
    ]
