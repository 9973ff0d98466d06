"""Real failures of the embedded model: untouched, with demonstrations, and after one, two and three LoRA trainings.

Adapters and replies are stored in `build/bench/attribution/`, so an interrupted benchmark continues where it stopped.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from attribution_styles import STYLES, TUNED_DOMAINS, Fact, Style, label, read_facts

from nslora.tools.evaluation.rollouts import ask
from nslora.tools.files import write_json, write_jsonl
from nslora.tools.inference.reply_cache import ReplyCache
from nslora.tools.policies.environment import prepare_environment
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policies.settings import DeviceSettings
from nslora.tools.policy import TrainingJob, TrainingRow
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.training.settings import LoraSettings

FOLDER = Path("build/bench/attribution")
MODEL = "SmolLM2-135M-Instruct"
MAX_NEW_TOKENS = 32
STAGES = 3
EPOCHS_PER_STAGE = 2  # of 70 rows in batches of 8: 18 steps; few facts are known after one stage, most after three
DEMONSTRATED = {True: ("years-13", "people-13"), False: ("measures-13", "rules-13")}


@dataclass(frozen=True)
class Reply:
    """One labelled reply. state: `base` or `lora-N`, with `+demonstrations` if the prompt shows the style."""

    fact: str
    style: str
    state: str
    tuned: bool
    reply: str
    label: str


def replies() -> list[Reply]:
    """Every reply in every state, with its label ("" if it is right). Generates the replies that are not stored yet."""
    done = FOLDER / "replies.jsonl"
    if done.exists():
        return [Reply(**json.loads(line)) for line in done.read_text(encoding="utf-8").splitlines()]
    prepare_environment()
    policy = LocalPolicy.load(
        MODEL, adapters=FOLDER / "adapters", lora=LoraSettings(schedule="constant"), device=DeviceSettings()
    )
    cache = ReplyCache(FOLDER / "replies.sqlite")
    adapters: list[str | None] = [None, *stages(policy)]
    found: list[Reply] = []
    for number, adapter in enumerate(adapters):
        name = f"lora-{number}" if adapter else "base"
        for tuned in (True, False):
            facts = asked(tuned)
            plain = ask(
                policy,
                cache,
                Prompt(),
                [fact.question for fact in facts],
                adapter=adapter,
                max_new_tokens=MAX_NEW_TOKENS,
            ).texts
            for style in (style for style in STYLES if style.tuned == tuned):
                shown = ask(
                    policy,
                    cache,
                    demonstrations(style),
                    [fact.question for fact in facts],
                    adapter=adapter,
                    max_new_tokens=MAX_NEW_TOKENS,
                ).texts
                for state, texts in ((name, plain), (f"{name}+demonstrations", shown)):
                    found += [
                        Reply(fact.id, style.name, state, tuned, text, label(fact, style, text))
                        for fact, text in zip(facts, texts, strict=True)
                    ]
                print(f"{name:8} {style.name:10} {len(found)} replies", flush=True)
    write_jsonl(done, [asdict(each) for each in found])
    return found


def asked(tuned: bool) -> list[Fact]:
    """The questions of the tuning domains, or of the reporting domains."""
    return [fact for fact in read_facts() if (fact.domain in TUNED_DOMAINS) == tuned and not fact.shown]


def demonstrations(style: Style) -> Prompt:
    """A prompt that shows two other facts in the style."""
    facts = {fact.id: fact for fact in read_facts()}
    shown = [facts[name] for name in DEMONSTRATED[style.tuned]]
    return Prompt(
        demonstrations=tuple(Demonstration(fact.taught, style.wrap(fact.core, fact.taught)) for fact in shown)
    )


def stages(policy: LocalPolicy) -> list[str]:
    """The adapters after each stage; each continues from the one before. References are plain words."""
    record = FOLDER / "stages.json"
    names: list[str] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else []
    rows = tuple(
        TrainingRow(tuple(Prompt().messages(fact.taught)), fact.reference, fact.id, "reference")
        for fact in read_facts()
    )
    while len(names) < STAGES:
        result = policy.train(TrainingJob(rows, EPOCHS_PER_STAGE, seed=len(names), start=names[-1] if names else None))
        names.append(result.adapter)
        write_json(record, names)
        print(f"stage {len(names)}: {result.steps} steps, loss {result.epoch_losses[-1]:.2f}", flush=True)
    return names


if __name__ == "__main__":
    made = replies()
    print({name: sum(each.label == name for each in made) for name in ("", "content", "form", "both")})
