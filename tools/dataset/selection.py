"""Which train rows each kind of update learns from."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nslora.tools.dataset.remade import RemadeRow
from nslora.tools.errors import DamagedError
from nslora.tools.evaluation.records import Failure, Row
from nslora.tools.files import read_json, write_json
from nslora.tools.policy import Origin, TrainingRow
from nslora.tools.prompt import Prompt
from nslora.tools.schema import Example


@dataclass(frozen=True)
class Material:
    """Ids of train rows, by what they are good for.

    content: their content is missing, or nobody looked. mastered: full reward, or right content in the wrong form.
    form: failures whose form is missing, the largest deficit first. deficits: (content, form) of each failure, in
    [0, 1], as the classifier gave them.
    """

    content: tuple[str, ...]
    mastered: tuple[str, ...]
    form: tuple[str, ...]
    deficits: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Material":
        """What `save` wrote. Raises DamagedError where the file holds something else."""
        saved = read_json(path)
        try:
            deficits = {
                row: (float(content), float(form)) for row, (content, form) in saved.get("deficits", {}).items()
            }
            return cls(tuple(saved["content"]), tuple(saved["mastered"]), tuple(saved["form"]), deficits)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{path} is damaged ({type(error).__name__}: {error}).") from error

    def why(self, row: TrainingRow, *, everything: bool) -> str:
        """The reason for which a row is in a training job, in words. everything: as in `training_rows`."""
        told = ""
        if row.source in self.deficits:
            told = "content missing {:.2f}, form missing {:.2f}".format(*self.deficits[row.source])
        if row.origin == "replay":
            return f"mastered ({told or 'full reward'}): replayed so that it is not forgotten"
        if everything:
            return f"new remade data teaches every row{f' ({told})' if told else ''}"
        return told or "not in the sample that was looked at"


def choose_material(
    train: Sequence[Example], rows: Sequence[Row], failures: Sequence[Failure], *, seed: str
) -> Material:
    """Sort the train rows by the classifier's answers on the sample that was evaluated.

    Rows outside the sample are unknown, and count as wanting content: to learn what is known costs little, to miss
    what is not costs the round. Equal form deficits are ordered by the seed, so that each edit sees others.
    """
    verdicts = {each.id: each.attribution for each in failures if each.split == "train"}
    seen = {row.id for row in rows if row.split == "train"}
    mastered = tuple(
        row.id for row in train if row.id in seen and (row.id not in verdicts or verdicts[row.id].verdict == "form")
    )
    content = tuple(row.id for row in train if row.id not in mastered)
    form = [i for i, each in verdicts.items() if each.verdict in ("form", "both")] or list(verdicts)
    random.Random(seed).shuffle(form)
    form.sort(key=lambda i: -round(verdicts[i].form_deficit, 2))
    deficits = {i: (round(each.content_deficit, 4), round(each.form_deficit, 4)) for i, each in verdicts.items()}
    return Material(content, mastered, tuple(form), deficits)


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
    """The rows of a training job under `prompt`: verified remade replies where there are some, plain references
    elsewhere.

    everything: all train rows (new remade data teaches each row its form); else those that want content, and a replay
    of mastered ones, `replay_share` of their number, so that nothing is forgotten.
    """
    replay: set[str] = set()
    wanted = {row.id for row in train} if everything else set(material.content)
    if not everything:
        count = min(len(material.mastered), round(replay_share * len(wanted)))
        replay = set(random.Random(seed).sample(sorted(material.mastered), count))
    rows = []
    for example in train:
        made = [row.reply for row in remade.get(example.id, ())]
        completions = made or ([example.reference] if example.reference is not None else [])
        if example.id not in wanted | replay:
            continue
        origin: Origin = "replay" if example.id in replay else "remade" if made else "reference"
        dialogue = tuple(prompt.messages(example.question))
        rows += [TrainingRow(dialogue, completion, example.id, origin) for completion in completions]
    return rows
