"""The plan of a training job (rows, order, steps), and the two layouts of its batches."""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nslora.tools.inference.generation import SHORTEST_SHARED_PREFIX_TOKENS, shared_prefix_length
from nslora.tools.training.settings import LoraSettings


@dataclass(frozen=True)
class TokenRow:
    """A training row as token ids: the prompt, and the completion that is scored."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class BatchPlan:
    """A training job before its first step. It fixes the order of rows, so that a killed job can resume.

    Attributes:
        rows: The rows as token ids.
        epochs: Passes over the rows.
        seed: Seed of the order.
        pad_id: Token id of the padding.
        settings: The LoRA settings.
        shards: Parts that each batch is cut into. Their gradients are added: by one process, or by one for each shard.
    """

    rows: tuple[TokenRow, ...]
    epochs: int
    seed: int
    pad_id: int
    settings: LoraSettings
    shards: int = 1

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Row numbers in the order of training: one permutation per epoch, up to `settings.max_steps` batches."""
        order: list[int] = []
        for epoch in range(self.epochs):
            numbers = list(range(len(self.rows)))
            random.Random(f"{self.seed}/{epoch}").shuffle(numbers)
            order += numbers
        most = self.settings.max_steps
        return tuple(order if most is None else order[: most * self.settings.batch_size])

    @property
    def steps(self) -> int:
        return math.ceil(len(self.order) / self.settings.batch_size)

    def epoch_of(self, step: int) -> int:
        """Return the epoch in which step `step` (from 0) begins."""
        return min(step * self.settings.batch_size // len(self.rows), self.epochs - 1)

    def rest(self, steps_done: int) -> list[list[int]]:
        """Return the shards that are left after `steps_done` steps, `shards` a step; some of the last may be empty."""
        size = self.settings.batch_size
        batches = [self.order[start : start + size] for start in range(steps_done * size, len(self.order), size)]
        part = size // self.shards
        return [list(batch[i * part : (i + 1) * part]) for batch in batches for i in range(self.shards)]


@dataclass(frozen=True)
class PaddedLayout:
    """One row of the batch per training row, padded on the right.

    All batches have the same width, because cached states are exact to the bit only at equal padding.
    """

    plan: BatchPlan

    @cached_property
    def width(self) -> int:
        return max(len(row) for row in self.plan.rows)

    def batch(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return input_ids, attention_mask and labels of these rows, (B, width) int64.

        Labels are masked by length, never by the pad token, which may be the end token that the model should learn.
        """
        import torch

        shape = (len(numbers), self.width)
        ids, mask = torch.full(shape, self.plan.pad_id), torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, -100)
        for i, number in enumerate(numbers):
            row = self.plan.rows[number]
            ids[i, : len(row)] = torch.tensor(row.prompt_ids + row.completion_ids)
            labels[i, len(row.prompt_ids) : len(row)] = torch.tensor(row.completion_ids)
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def kinds(self) -> dict[tuple[int, ...], int]:
        """Return the plan's first whole batch with padding and the first without, and the steps of each kind."""
        return _kinds_of(self.plan, lambda numbers: all(len(self.plan.rows[i]) == self.width for i in numbers))

    def split(self, states: Any) -> list[Any]:
        """Split a batch's states (B, width, H) into one (width, H) tensor per row."""
        return list(states.unbind(0))

    def join(self, states: Sequence[Any]) -> Any:
        """The inverse of `split`."""
        import torch

        return torch.stack(list(states))


@dataclass(frozen=True)
class SharedPrefixLayout:
    """All rows of a batch in one sequence: the shared prefix once, then each row's own tail.

    A tail attends to the prefix and to itself, at its positions after the prefix, so the numbers are those of
    `PaddedLayout` up to rounding. With a system turn and two demonstrations before a short question this is less than
    half the tokens. It is not used with dropout, which would be drawn once for the prefix of all rows.
    """

    plan: BatchPlan
    shared: int

    @cached_property
    def width(self) -> int:
        """The tokens of the longest tail."""
        return max(len(row) for row in self.plan.rows) - self.shared

    def batch(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return input_ids, position_ids, labels, each (1, L) int64, and attention_mask, (1, 1, L, L) bool.

        L = shared + B * width.
        """
        import torch

        length = self.shared + len(numbers) * self.width
        ids, labels = torch.full((1, length), self.plan.pad_id), torch.full((1, length), -100)
        positions, mask = torch.arange(length)[None], torch.zeros(length, length, dtype=torch.bool)
        ids[0, : self.shared] = torch.tensor(self.plan.rows[0].prompt_ids[: self.shared])
        mask[:, : self.shared] = True
        mask[: self.shared, : self.shared] = torch.ones(self.shared, self.shared, dtype=torch.bool).tril()
        causal = torch.ones(self.width, self.width, dtype=torch.bool).tril()
        for i, number in enumerate(numbers):
            row, start = self.plan.rows[number], self.shared + i * self.width
            end = start + len(row) - self.shared
            ids[0, start:end] = torch.tensor((row.prompt_ids + row.completion_ids)[self.shared :])
            labels[0, start + len(row.prompt_ids) - self.shared : end] = torch.tensor(row.completion_ids)
            positions[0, start : start + self.width] = torch.arange(self.shared, self.shared + self.width)
            mask[start : start + self.width, start : start + self.width] = causal
        return {"input_ids": ids, "attention_mask": mask[None, None], "position_ids": positions, "labels": labels}

    def kinds(self) -> dict[tuple[int, ...], int]:
        """Return the plan's first whole batch, and the number of whole batches."""
        return _kinds_of(self.plan, lambda _: True)

    def split(self, states: Any) -> list[Any]:
        """Split a batch's states (1, L, H) into one (shared + width, H) tensor per row, each with the prefix."""
        import torch

        prefix, tails = states[0, : self.shared], states[0, self.shared :].split(self.width)
        return [torch.cat([prefix, tail]) for tail in tails]

    def join(self, states: Sequence[Any]) -> Any:
        """The inverse of `split`."""
        import torch

        return torch.cat([states[0][: self.shared], *(each[self.shared :] for each in states)])[None]


Layout = PaddedLayout | SharedPrefixLayout


def _kinds_of(plan: BatchPlan, kind: Callable[[Sequence[int]], bool]) -> dict[tuple[int, ...], int]:
    """Return the first whole batch of each kind in the plan's order, and the number of batches of this kind."""
    size = plan.settings.batch_size
    first: dict[bool, tuple[int, ...]] = {}
    steps: Counter[tuple[int, ...]] = Counter()
    for start in range(0, len(plan.order) - size + 1, size):
        numbers = plan.order[start : start + size]
        steps[first.setdefault(kind(numbers), numbers)] += 1
    return dict(steps)


def shared_layout(plan: BatchPlan) -> SharedPrefixLayout | None:
    """Return the layout that computes the shared prefix once, or None if the prefix is too short for it to pay."""
    if plan.settings.dropout or len(plan.rows) < 2 or plan.settings.batch_size < 2:
        return None
    shared = shared_prefix_length([row.prompt_ids for row in plan.rows])
    return SharedPrefixLayout(plan, shared) if shared >= SHORTEST_SHARED_PREFIX_TOKENS else None
