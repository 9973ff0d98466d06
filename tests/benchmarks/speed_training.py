"""A training job against plain SFTTrainer, a hand-written loop, and its matrix products alone."""

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from form import Figure, figure
from speed_sides import alternating, goals_apply, json_prompt, ratio, styled, timed

from nslora.tools.inference.decoder import compact_head
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policy import TrainingJob
from nslora.tools.schema import Example
from nslora.tools.training.batches import BatchPlan, PaddedLayout, TokenRow
from nslora.tools.training.frozen_trunk import lowest_trained_block, without_trunk
from nslora.tools.training.trainer import REPEATABLE

ROWS, EPOCHS = 48, 8
PREFIX_EPOCHS = 2  # enough for a ratio: the prefix is computed once per batch, not once per training job


def training_figures(arguments: argparse.Namespace, policy: LocalPolicy, rows: Sequence[Example]) -> list[Figure]:
    """Time whole training jobs: each side goes from the rows to the stored adapter."""
    settings, on_cpu = policy.lora, goals_apply(arguments)
    job = TrainingJob(styled(rows[:ROWS], json_prompt()), EPOCHS, seed=1)
    found: dict[str, set[str]] = {"fast": set(), "plain": set()}

    def run(job: TrainingJob, name: str = "", **lora: Any) -> Callable[[], None]:
        def work() -> None:
            policy.lora = settings.model_copy(update=lora)
            adapter = policy.train(job).adapter
            if name:
                found[name].add(adapter)

        return work

    def usual_kernels() -> None:
        """Train without `fixed_order_of_sums`: kernels that do not guarantee repeatable sums."""
        policy._found_exact[REPEATABLE] = False
        run(job, share_prefix=False)()
        policy._found_exact[REPEATABLE] = True

    # Imports and first-use costs belong to neither side.
    run(TrainingJob(job.rows[:8], 1, seed=1), share_prefix=False)()
    seconds = alternating(
        {
            "shortcuts": run(job, "fast", share_prefix=False),
            "plain SFTTrainer": run(job, "plain", fast=False),
            "by hand": lambda: hand_written(policy, job),
            **({"usual kernels": usual_kernels} if arguments.device == "cuda" else {}),
        },
        arguments.repeats,
    )
    behind = TrainingJob(styled(rows[:ROWS], json_prompt(rows[-2:])), PREFIX_EPOCHS, seed=1)
    prefix = alternating({"shared prefix": run(behind), "without": run(behind, share_prefix=False)}, arguments.repeats)
    policy.lora = settings
    ours = seconds["shortcuts"]
    same = len(found["fast"] | found["plain"]) == 1
    on_gpu = (
        [ratio("training job: kernels of a fixed order / the usual ones", ours, seconds["usual kernels"])]
        if "usual kernels" in seconds
        else []
    )
    return [
        ratio(
            "training job: plain SFTTrainer / shortcuts",
            seconds["plain SFTTrainer"],
            ours,
            at_least=2.5 if on_cpu else None,
        ),
        figure(
            "training job: the same adapter, to the bit, with and without shortcuts",
            float(same),
            "1 = yes",
            at_least=1 if on_cpu else None,
        ),
        figure(
            "training job: the same adapter, to the bit, in every repeat",
            float(all(len(each) == 1 for each in found.values())),
            "1 = yes",
            at_least=1,
        ),
        *on_gpu,
        ratio(
            "training job: shortcuts / a hand-written loop with the same two",
            ours,
            seconds["by hand"],
            at_most=1.15 if on_cpu else None,
        ),
        figure(
            "training job: shortcuts / its matrix products alone",
            statistics.median(ours) / matrix_products_s(policy, job),
            "x",
        ),
        ratio(
            "training job with 2 demonstrations: shortcuts / shared prefix too",
            prefix["without"],
            prefix["shared prefix"],
        ),
    ]


def plan_of(policy: LocalPolicy, job: TrainingJob) -> BatchPlan:
    """The training job as tokens, in the policy's own order."""
    pairs = (policy.format.pair_ids(row.dialogue, row.completion) for row in job.rows)
    rows = tuple(TokenRow(tuple(asked), tuple(reply)) for asked, reply in pairs)
    return BatchPlan(rows, job.epochs, job.seed, policy.format.pad_id, policy.lora)


def hand_written(policy: LocalPolicy, job: TrainingJob) -> None:
    """A hand-written loop with the same two shortcuts: cached trunk, logits at supervised positions only."""
    import torch
    from transformers import get_scheduler

    from nslora.tools.training.shortcuts import cached_states

    plan = plan_of(policy, job)
    model, base, layout, size = (
        policy.peft.begin(job, policy.lora),
        policy.base,
        PaddedLayout(plan),
        plan.settings.batch_size,
    )
    lowest = lowest_trained_block(base, [n for n, p in model.named_parameters() if p.requires_grad]) or 0
    parameters = [p for p in model.parameters() if p.requires_grad]
    rate = plan.settings.rate_for(base.config.get_text_config().hidden_size)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    scheduler = get_scheduler(
        plan.settings.schedule, optimizer, round(plan.settings.warmup_share * plan.steps), plan.steps
    )
    states = cached_states(base, layout, lowest) if lowest else None
    model.train()
    with compact_head(base) as positions, without_trunk(base, lowest):
        for start in range(0, len(plan.order), size):
            numbers = plan.order[start : start + size]
            batch = {key: value.to(base.device) for key, value in layout.batch(numbers).items()}
            targets = positions.set(batch["labels"])
            inputs = (
                {"input_ids": batch["input_ids"]}
                if states is None
                else {"inputs_embeds": layout.join([states[number] for number in numbers]).to(base.device)}
            )
            hidden = base.get_decoder()(
                **inputs, attention_mask=batch["attention_mask"], use_cache=False
            ).last_hidden_state
            logits = base.get_output_embeddings()(hidden).float()
            torch.nn.functional.cross_entropy(logits[0], targets[0]).backward()
            torch.nn.utils.clip_grad_norm_(parameters, plan.settings.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    model.eval()
    policy.peft.save({})
    policy.peft.forget()


def matrix_products_s(policy: LocalPolicy, job: TrainingJob) -> float:
    """Seconds of the matrix products of a training job alone, measured on this machine.

    Per step: the linear layers of the trained blocks and the head at supervised positions, forward and for the gradient
    of the input. Once per job: the frozen blocks, forward. Without attention's products, LoRA's products and
    elementwise operations.
    """
    import torch

    plan, config = plan_of(policy, job), policy.base.config
    tokens = plan.settings.batch_size * PaddedLayout(plan).width
    supervised = sum(len(plan.rows[n].completion_ids) for n in plan.order) // plan.steps
    trained = len(policy._targets["layers_to_transform"])
    weights = [
        module.weight
        for name, module in policy.base.get_decoder().layers[-1].named_modules()
        if isinstance(module, torch.nn.Linear) and "lora" not in name
    ]

    def products(weight: Any, count: int, *, backward: bool) -> float:
        """Median seconds of five products, after one warm-up."""
        x = torch.randn(count, weight.shape[1], dtype=weight.dtype, device=weight.device)

        def work() -> None:
            y = x @ weight.T
            if backward:
                _ = y @ weight

        work()
        return statistics.median(timed(work) for _ in range(5))

    with torch.no_grad():
        step = trained * sum(products(weight, tokens, backward=True) for weight in weights)
        step += products(policy.base.get_output_embeddings().weight, supervised, backward=True)
        once = sum(products(weight, tokens, backward=False) for weight in weights)
    frozen = (config.num_hidden_layers - trained) * once * len(plan.rows) / plan.settings.batch_size
    return step * plan.steps + frozen
