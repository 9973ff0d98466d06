"""Replies to many questions after the same demonstrations, against plain generate in batches and one by one."""

import argparse
from collections.abc import Sequence
from typing import Any

from form import Figure, figure
from speed_sides import alternating, goals_apply, json_prompt, ratio

from nslora.tools.policies.local import LocalPolicy
from nslora.tools.schema import Example

QUESTIONS, REPLY_TOKENS, PLAIN_BATCH = 96, 24, 16
ONE_BY_ONE = 3  # every third question: one by one, the time of a reply does not depend on the others


def evaluation_figures(arguments: argparse.Namespace, policy: LocalPolicy, rows: Sequence[Example]) -> list[Figure]:
    """Time three ways to get the text of the replies to the same dialogues."""
    prompt, on_cpu = json_prompt(rows[-2:]), goals_apply(arguments)
    dialogues = [prompt.messages(row.question) for row in rows[:QUESTIONS]]
    replies: dict[str, tuple[str, ...]] = {}

    def ours() -> None:
        replies["ours"] = policy.generate(dialogues, adapter=None, max_new_tokens=REPLY_TOKENS).replies

    def plain(batch: int, step: int = 1) -> None:
        replies[f"plain {batch}"] = plain_generate(policy, dialogues[::step], batch)

    policy.generate(dialogues[:2], adapter=None, max_new_tokens=2)
    seconds = alternating(
        {
            "prefix cache": ours,
            f"plain, batch {PLAIN_BATCH}": lambda: plain(PLAIN_BATCH),
            "a third one by one": lambda: plain(1, ONE_BY_ONE),
        },
        arguments.repeats,
    )
    one_by_one = [each * len(dialogues) / len(dialogues[::ONE_BY_ONE]) for each in seconds["a third one by one"]]
    exact = on_cpu and str(policy.base.dtype) == "torch.float32"
    return [
        ratio(
            f"evaluation: plain generate at batch {PLAIN_BATCH} / ours",
            seconds[f"plain, batch {PLAIN_BATCH}"],
            seconds["prefix cache"],
            at_least=1.5 if on_cpu else None,
        ),
        ratio(
            "evaluation: plain generate one by one / ours",
            one_by_one,
            seconds["prefix cache"],
            at_least=2.5 if on_cpu else None,
        ),
        # In bfloat16, rounding depends on the shape of a batch, in plain generate too.
        *(
            figure(
                f"evaluation: replies as from plain generate, batch {batch}",
                share_alike(replies["ours"][::step], replies[f"plain {batch}"]),
                "share",
                at_least=1.0 if exact else None,
            )
            for batch, step in ((1, ONE_BY_ONE), (PLAIN_BATCH, 1))
        ),
    ]


def share_alike(ours: Sequence[str], theirs: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)


def plain_generate(policy: LocalPolicy, dialogues: Sequence[Any], batch: int) -> tuple[str, ...]:
    """transformers' generate with left padding, as its documentation shows it."""
    import torch

    rows, replies = [policy.format.prompt_ids(dialogue) for dialogue in dialogues], []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        width = max(map(len, part))
        ids = torch.tensor([[policy.format.pad_id] * (width - len(row)) + row for row in part])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
        with torch.inference_mode():
            output = policy.base.generate(
                ids.to(policy.base.device),
                attention_mask=mask.to(policy.base.device),
                max_new_tokens=REPLY_TOKENS,
                do_sample=False,
                eos_token_id=list(policy.format.stop_ids),
                pad_token_id=policy.format.pad_id,
            )
        replies += [policy.format.decode(row) for row in output[:, width:].tolist()]
    return tuple(replies)
