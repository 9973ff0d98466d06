"""Tasks with a planted cause of failure: content, form, both, or neither; for the embedded model and for a tiny one.

The embedded model gets facts that it knows (checked in each wording) or invented facts, under a prompt that shows the
house style or under no prompt. The tiny model is trained here from random weights to answer invented codes in a house
style; the task then asks for these codes or others, in this style or another.

With cause `neither` the model is right. With every odd seed some validation references are wrong, so that rows fail
which no update can repair: a run that ends at once because every row passes would prove little.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from attribution_styles import read_facts

from nslora.tools.evaluation.rollouts import ask
from nslora.tools.inference.reply_cache import ReplyCache
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.tasks.task import Task, task_from_rows
from nslora.tools.testing.tiny_model import write_tiny_model

Cause = Literal["content", "form", "both", "neither"]
CAUSES: tuple[Cause, ...] = ("content", "form", "both", "neither")
RIGHT = {"content": ("lora",), "form": ("textgrad",), "both": ("lora", "textgrad")}
WORDINGS = ("What is {}?", "Tell me: what is {}?", "Can you tell me what {} is?")
COMMON = {
    "the capital of France": "Paris",
    "the capital of Italy": "Rome",
    "the capital of Spain": "Madrid",
    "the capital of Germany": "Berlin",
    "the capital of England": "London",
    "the capital of Japan": "Tokyo",
    "the capital of Russia": "Moscow",
    "the capital of Greece": "Athens",
    "the capital of Egypt": "Cairo",
    "the capital of China": "Beijing",
    "the capital of Austria": "Vienna",
    "the capital of Portugal": "Lisbon",
    "the capital of Ireland": "Dublin",
    "the capital of Sweden": "Stockholm",
    "the capital of Norway": "Oslo",
    "the capital of Denmark": "Copenhagen",
    "the capital of Poland": "Warsaw",
    "the capital of Hungary": "Budapest",
    "the capital of Belgium": "Brussels",
    "the capital of Turkey": "Ankara",
    "the capital of Canada": "Ottawa",
    "the capital of Cuba": "Havana",
    "the capital of Peru": "Lima",
    "the capital of Kenya": "Nairobi",
    "the capital of India": "New Delhi",
    "the capital of Thailand": "Bangkok",
    "the capital of Finland": "Helsinki",
    "the largest planet of the solar system": "Jupiter",
    "the chemical symbol of gold": "Au",
    "the chemical symbol of water": "H2O",
    "the largest ocean on Earth": "Pacific",
    "the capital of Iran": "Tehran",
    "the capital of Iraq": "Baghdad",
    "the capital of Argentina": "Buenos Aires",
    "the capital of Chile": "Santiago",
    "the capital of South Korea": "Seoul",
    "the capital of Vietnam": "Hanoi",
    "the capital of Syria": "Damascus",
}
STYLE = {
    "name": "style",
    "check": "json_schema",
    "schema": {
        "type": "object",
        "properties": {"answer": {"type": "string"}},
        "required": ["answer"],
        "additionalProperties": False,
    },
}
FACT = {"name": "fact", "check": "contains", "field": "key"}
ROWS = 10  # of each split
MISLABELLED = 4  # validation rows, with cause `neither` and an odd seed: enough for the paired test to detect
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "islet", "jetty")
TINY_WORDINGS = ("code of {}?", "{} code?", "give {}:")
TINY_STEPS = 400  # maximum
LEARNT_LOSS_NATS = 0.02


def embedded_task(cause: Cause, seed: int, known: Sequence[str]) -> Task:
    """The task for the embedded model. known: subjects of `COMMON` that it knows in every wording."""
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    prompt = Prompt()
    if cause in ("form", "neither"):
        subjects = random.Random(seed).sample(sorted(known), min(ROWS, len(known)))
        for split, wording in zip(rows, WORDINGS, strict=True):
            rows[split] = [
                {"question": wording.format(each), "reference": COMMON[each], "key": COMMON[each]} for each in subjects
            ]
    else:
        facts = random.Random(seed).sample([fact for fact in read_facts() if fact.domain != "rules"], ROWS + 2)
        for split, wording in zip(rows, ("{0}", "{1}", "Please answer: {1}"), strict=True):
            rows[split] = [
                {"question": wording.format(fact.taught, fact.question), "reference": fact.reference, "key": fact.core}
                for fact in facts[:ROWS]
            ]
        if cause == "content":
            prompt = Prompt(
                demonstrations=tuple(
                    Demonstration(fact.taught, json.dumps({"answer": fact.core})) for fact in facts[ROWS:]
                )
            )
    if cause == "neither":
        mislabel(rows["validation"], seed)
    checks = [FACT] if cause == "neither" else [FACT, STYLE]
    return task_from_rows(**rows, reward=checks, name=f"{cause}-{seed}", prompt=prompt, max_new_tokens=24)


def known_subjects(policy: LocalPolicy, cache: ReplyCache) -> list[str]:
    """Subjects that the untouched model answers correctly in every wording."""
    asked = [(subject, wording.format(subject)) for subject in COMMON for wording in WORDINGS]
    texts = ask(policy, cache, Prompt(), [question for _, question in asked], adapter=None, max_new_tokens=24).texts
    wrong = {subject for (subject, _), text in zip(asked, texts, strict=True) if COMMON[subject] not in text}
    return [subject for subject in COMMON if subject not in wrong]


def tiny_task(cause: Cause, seed: int) -> Task:
    """The task for the tiny model: its own codes or others, in its own house style or another."""
    codes = codes_of(seed if cause in ("form", "neither") else seed + 1000)
    pattern, form = (
        (r"- \S[^\n]*", "- {reply}")
        if cause in ("content", "neither")
        else (r"<answer>[^<>]+</answer>", "<answer>{reply}</answer>")
    )
    rows = {
        split: [{"question": wording.format(word), "reference": code, "key": code} for word, code in codes.items()]
        for split, wording in zip(("train", "validation", "test"), TINY_WORDINGS, strict=True)
    }
    if cause == "neither":
        mislabel(rows["validation"], seed)
    style = {"name": "style", "check": "regex", "pattern": pattern, "form": form}
    return task_from_rows(**rows, reward=[FACT, style], name=f"{cause}-{seed}", max_new_tokens=24)


def mislabel(rows: list[dict[str, Any]], seed: int) -> None:
    """With an odd seed, permute the references of the first rows."""
    if seed % 2:
        wrong = [{key: row[key] for key in ("reference", "key")} for row in rows[:MISLABELLED]]
        for row, others in zip(rows, wrong[1:] + wrong[:1], strict=False):
            row.update(others)


def codes_of(seed: int) -> dict[str, str]:
    draw = random.Random(f"codes {seed}")
    return dict(zip(WORDS, (str(each) for each in draw.sample(range(100, 1000), len(WORDS))), strict=True))


def tiny_model(folder: Path, seed: int) -> Path:
    """A tiny Llama that answers every wording of its codes as `- 123`. All weights are trained, once."""
    if (folder / "trained").exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_tiny_model(folder, width=64, seed=seed)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    rows = [(wording.format(word), f"- {code}") for word, code in codes_of(seed).items() for wording in TINY_WORDINGS]
    ids, labels = batch(tokenizer, rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(TINY_STEPS):
        loss = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < LEARNT_LOSS_NATS:
            break
    print(f"tiny model {seed}: loss {loss.item():.4f}", flush=True)
    model.save_pretrained(folder)
    (folder / "trained").touch()
    return folder


def batch(tokenizer: Any, rows: Sequence[tuple[str, str]]) -> tuple[Any, Any]:
    """(N, T) token ids and labels, -100 outside the replies; padded on the right."""
    import torch

    from nslora.tools.inference.chat_template import ChatFormat

    chat = ChatFormat(tokenizer)
    pairs = [chat.pair_ids(Prompt().messages(question), reply) for question, reply in rows]
    longest = max(len(prompt) + len(reply) for prompt, reply in pairs)
    ids = torch.full((len(pairs), longest), tokenizer.pad_token_id)
    labels = torch.full((len(pairs), longest), -100)
    for i, (prompt, reply) in enumerate(pairs):
        ids[i, : len(prompt) + len(reply)] = torch.tensor([*prompt, *reply])
        labels[i, len(prompt) : len(prompt) + len(reply)] = torch.tensor(reply)
    return ids, labels
