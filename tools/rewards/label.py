"""The label check: the label of a row out of a closed set, with the numbers of classification beside the reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from nslora.tools.errors import RewardError
from nslora.tools.rewards.choice import Choice, chosen, key_of

if TYPE_CHECKING:
    from nslora.tools.schema import Example

_MOST_LABELS = 100


class Label(Choice):
    """The reply gives the label of the row, and no other: `choice` with the labels of the train rows.

    `labels` lists them if train does not hold all. The report has macro-F1 and the numbers of each label.
    """

    must = "give the label"
    labels: tuple[str, ...] = ()

    def fitted(self, examples: Sequence[Example]) -> Self:
        """Take the labels from train rows, in alphabetical order. Raises RewardError if they are no closed set."""
        if self.labels:
            return self
        labels = sorted({key_of(text): text.strip() for example in examples for text in self.texts(example)}.values())
        if len(labels) > _MOST_LABELS or len(examples) < 2 * len(labels):
            raise RewardError(
                f"The check {self.name!r} takes its labels from train, but found {len(labels)} different texts in "
                f"{len(examples)} rows: list all labels under `labels`, or use exact_match for free text."
            )
        try:
            return type(self).model_validate({**self.model_dump(by_alias=True), "labels": labels})
        except ValidationError as error:
            raise RewardError(
                f"The check {self.name!r} found the labels {', '.join(labels)}: at least two are needed."
            ) from error

    def unfit(self, text: str) -> str | None:
        return super().unfit(text) if self.labels else None

    def numbers(self, examples: Sequence[Example], replies: Sequence[str]) -> dict[str, Any]:
        """The numbers of classification of these replies; see `classification`."""
        wanted, given = zip(*self.pairs(examples, replies), strict=True) if replies else ((), ())
        return classification({key_of(label): label for label in self.labels}, wanted, given)

    def pairs(self, examples: Sequence[Example], replies: Sequence[str]) -> list[tuple[str, str | None]]:
        """The keys of each row's right label and of the label that its reply gives; None if the reply is no label."""
        pairs = []
        for example, reply in zip(examples, replies, strict=True):
            right = [key_of(text) for text in example.answers or self.texts(example)]
            found = chosen(reply, self.labels)
            pairs.append((found if found is not None and found in right else right[0], found))
        return pairs


def classification(names: dict[str, str], wanted: Sequence[str], given: Sequence[str | None]) -> dict[str, Any]:
    """Precision, recall and F1 of each label, and their macro mean.

    A reply that is no label is a miss of its row's label, and a label of its own in no mean. A label that is neither
    wanted nor given counts in no mean, as in `f1_score(average="macro")`; a quotient by 0 is 0.

    Args:
        names: Key of a label -> the label as it is shown.
        wanted: Keys of the right labels.
        given: Keys of the labels of the replies; None for a reply that is no label.

    Returns:
        {"macro_f1", "no_label": number of replies, "labels": {label: {"precision", "recall", "f1", "support"}}}.
    """
    from sklearn.metrics import precision_recall_fscore_support

    keys = [key for key in names if key in {*wanted, *given}]
    labels = {}
    if keys:
        said = [each or "" for each in given]
        columns = precision_recall_fscore_support(wanted, said, labels=keys, zero_division=0.0)
        for key, *numbers in zip(keys, *(column.tolist() for column in columns), strict=True):
            labels[names[key]] = dict(zip(("precision", "recall", "f1", "support"), numbers, strict=True))
    macro = sum(each["f1"] for each in labels.values()) / max(1, len(labels))
    return {"macro_f1": macro, "no_label": given.count(None), "labels": labels}
