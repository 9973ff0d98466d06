"""The train rows that each kind of update learns from."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from nslora.tools.dataset.remade import RemadeRow
from nslora.tools.errors import DamagedError
from nslora.tools.evaluation.records import Failure, Row
from nslora.tools.files import read_json, write_json
from nslora.tools.policy import Origin, TrainingRow
from nslora.tools.prompt import Prompt
from nslora.tools.schema import Example


@dataclass(frozen=True)
class Material:
    """Ids of train rows, sorted by use.

    Attributes:
        content: Rows that lack content, and rows that no evaluation looked at.
        mastered: Rows with full reward, and rows with the right content in the wrong form.
        form: Failures that lack form, the largest deficit first.
        deficits: (content, form) deficit of each failure, in [0, 1], from the classifier.
    """

    content: tuple[str, ...]
    mastered: tuple[str, ...]
    form: tuple[str, ...]
    deficits: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the material as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Material":
        """Read what `save` wrote. Raises DamagedError if the file holds something else."""
        try:
            return TypeAdapter(cls).validate_python(read_json(path))
        except ValidationError as error:
            raise DamagedError(f"{path} is damaged ({error.errors()[0]['msg']}).") from error

    def why(self, row: TrainingRow, *, everything: bool) -> str:
        """The reason in words why a row is in a training job. everything: as in `training_rows`."""
        missing = ""
        if row.source in self.deficits:
            missing = "content missing {:.2f}, form missing {:.2f}".format(*self.deficits[row.source])
        if row.origin == "replay":
            return f"mastered ({missing or 'full reward'}): replayed so that it is not forgotten"
        if everything:
            return f"new remade data teaches every row{missing and f' ({missing})'}"
        return missing or "not in the sample that was looked at"


def choose_material(
    train: Sequence[Example], rows: Sequence[Row], failures: Sequence[Failure], *, seed: str
) -> Material:
    """Sort the train rows by the classifier's answers on the evaluated sample.

    A row outside the sample counts as lacking content: training on a known row costs little, and leaving out an
    unknown row loses the round.

    Args:
        train: All train rows.
        rows: Evaluated rows of the kept candidate, of all splits.
        failures: Its failures, of all splits.
        seed: Orders equal form deficits, so that the editor sees other failures at each edit.
    """
    found = {each.id: each.attribution for each in failures if each.split == "train"}
    known = {row.id for row in rows if row.split == "train"} - {
        i for i, each in found.items() if each.verdict != "form"
    }
    form = [i for i, each in found.items() if each.verdict in ("form", "both")] or list(found)
    random.Random(seed).shuffle(form)
    form.sort(key=lambda i: -round(found[i].form_deficit, 2))
    return Material(
        content=tuple(row.id for row in train if row.id not in known),
        mastered=tuple(row.id for row in train if row.id in known),
        form=tuple(form),
        deficits={i: (round(each.content_deficit, 4), round(each.form_deficit, 4)) for i, each in found.items()},
    )


def training_rows(
    train: Sequence[Example],
    material: Material,
    prompt: Prompt,
    remade: Mapping[str, Sequence[RemadeRow]],
    *,
    everything: bool,
    replay_share: float,
    seed: str,
) -> list[TrainingRow]:
    """The rows of a training job: the remade replies of each chosen example, or its reference if it has none.

    Args:
        train: All train rows.
        material: The choice of this round.
        prompt: The prompt that the job trains under.
        remade: Remade rows of that prompt, by id of the example.
        everything: True trains on all train rows, since new remade data teaches each of them its form. False trains on
            the rows that lack content, and replays mastered ones against forgetting.
        replay_share: Number of replayed rows, as a share of the rows that lack content.
        seed: Draws the replayed rows.
    """
    wanted = {row.id for row in train} if everything else set(material.content)
    count = 0 if everything else min(len(material.mastered), round(replay_share * len(wanted)))
    replay = set(random.Random(seed).sample(sorted(material.mastered), count))
    rows = []
    for example in (each for each in train if each.id in wanted | replay):
        made, asked = remade.get(example.id, ()), tuple(prompt.dialogue(example))
        pairs = [(row.dialogue or asked, row.thinking + row.reply) for row in made]
        if not made and example.target is not None:
            pairs = [(asked, example.target)]
        origin: Origin = "replay" if example.id in replay else "remade" if made else "reference"
        rows += [TrainingRow(dialogue, completion, example.id, origin) for dialogue, completion in pairs]
    return rows
