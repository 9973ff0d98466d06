"""What a node of a decision tree measures beside its run; none of it changes the run, or counts as its compute.

    held_out   after each epoch of the node's training job: the loss of validation references
    stopped    the reward of the weights at the first epoch after which that loss rises, beside that of the whole job
    variance   of the reward among prompts and among sampled replies, as arXiv 2604.08801 splits it

The references are scored as they stand, under the prompt of the job. A job on remade rows teaches another form, which
plain references do not have: their loss may rise while the reward does.
"""

import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, variance
from typing import Any
from unittest.mock import patch

from nslora.tools.errors import TooLongError
from nslora.tools.evaluation.rollouts import grade
from nslora.tools.files import append_jsonl, publish_folder, read_jsonl
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policy import OnStep, Sampling, TrainingJob, TrainingResult, no_progress
from nslora.tools.prompt import Prompt
from nslora.tools.schema import Example

TEMPERATURE = 1.0  # of sampled replies
REPLIES = 4  # sampled to each question under each prompt
PROMPTS = 4  # at most, the kept one among them
TIE = 1e-9


@dataclass(frozen=True)
class Probes:
    """How many rows each probe takes; 0 leaves it out.

    Attributes:
        held_out: Validation rows whose references are scored after each epoch.
        stopped: Validation rows that are answered by the weights of an earlier epoch.
        variance: Train rows whose replies are sampled, in nodes below an edit.
    """

    held_out: int = 20
    stopped: int = 30
    variance: int = 0


@contextmanager
def epochs_kept(folder: Path) -> Iterator[None]:
    """Training jobs of this process leave their weights after each epoch but the last: `<folder>/<adapter>/<epoch>`."""
    import torch
    from safetensors.torch import save_file

    from nslora.tools.training.snapshots import trainable

    plain = LocalPolicy.train_plan

    def train_plan(policy: Any, plan: Any, job: TrainingJob, on_progress: OnStep = no_progress) -> TrainingResult:
        partial = folder / f".{job.progress.name if job.progress else 'job'}"

        def after_step(done: int, total: int, values: Mapping[str, float] | None = None) -> None:
            if done < total and plan.epoch_of(done - 1) != plan.epoch_of(done):
                partial.mkdir(parents=True, exist_ok=True)
                weights = [parameter for _, parameter in trainable(policy.base)]
                vector = torch.nn.utils.parameters_to_vector(weights).detach().clone()
                save_file({"weights": vector}, partial / f"{plan.epoch_of(done - 1) + 1}.safetensors")
            on_progress(done, total, values)

        result = plain(policy, plan, job, after_step)
        if partial.is_dir():
            publish_folder(partial, folder / result.adapter)
        return result

    with patch.object(LocalPolicy, "train_plan", train_plan):
        yield


def probed(run: Any, parent: Any, tree: Path, probes: Probes) -> dict[str, Any]:
    """All probes of a node below `parent`; None for those that it has not: `{"held_out": ..., ...}`."""
    record = run.state()["rounds"][-1]
    found: dict[str, Any] = dict.fromkeys(("held_out", "stopped", "variance"))
    if record["candidate"] is None or record["evaluation"] is None:
        return found
    if record["action"] == "lora":
        return found | _by_epoch(run, parent, record, tree, probes)
    return found | {"variance": _variance(run, parent, record, probes)}


def _by_epoch(run: Any, parent: Any, record: Mapping[str, Any], tree: Path, probes: Probes) -> dict[str, Any]:
    """The losses by epoch, and the reward at an earlier end; on record once for each adapter under a prompt."""
    known, adapter = tree / "epochs.jsonl", record["candidate"]["adapter"]
    for line in read_jsonl(known):
        if line["candidate"] == record["candidate"]:
            return dict(line["found"])
    folder, epochs = tree / "epochs" / adapter, len(record["epoch_losses_nats"])
    if not probes.held_out or not folder.is_dir():  # an adapter of a job that was trained before this was measured
        return {}
    found: dict[str, Any] = {"held_out": _losses(run, parent, record, folder, epochs, probes.held_out)}
    if found["held_out"] and probes.stopped and (epoch := first_rise(found["held_out"]["losses_nats"])):
        found["stopped"] = _stopped(run, record, folder, epoch, probes.stopped)
    append_jsonl(known, {"candidate": record["candidate"], "found": found})
    shutil.rmtree(folder)
    return found


def first_rise(losses: Sequence[float | None]) -> int | None:
    """The epoch, from 1, after which the loss rises for the first time; None if it never does, or is not known."""
    for epoch, (before, after) in enumerate(pairwise(losses), start=1):
        if before is None or after is None:
            return None
        if after > before:
            return epoch
    return None


def _losses(
    run: Any, parent: Any, record: Mapping[str, Any], folder: Path, epochs: int, rows: int
) -> dict[str, Any] | None:
    """Mean losses of references: before the job, and after each epoch. None if no row has a reference."""
    started, workspace = time.monotonic(), run.workspace
    chosen = sample([row for row in workspace.task.validation if row.reference], rows)
    if not chosen:
        return None
    prompt = workspace.prompts.get(record["candidate"]["prompt"])
    dialogues, references = [prompt.dialogue(row) for row in chosen], [row.target or "" for row in chosen]
    candidate, kept, before = record["candidate"], parent.state()["kept"], parent.state()["kept_measured"]
    same = kept["prompt"] == candidate["prompt"]

    def scored(adapter: str | None) -> float:
        return fmean(workspace.policy.reference_losses(dialogues, references, adapter=adapter))

    def measured(key: str) -> float:
        """From an evaluation, which scored all validation rows."""
        losses = workspace.evaluations.load(key).of("validation")
        return fmean(losses[row.id].loss_nats for row in chosen)

    def of_epoch(epoch: int) -> float | None:
        with weights_of(workspace.policy, candidate["adapter"], folder / f"{epoch}.safetensors") as found:
            return scored(candidate["adapter"]) if found else None

    return {
        "rows": len(chosen),
        "before_nats": measured(before["key"]) if same else scored(kept["adapter"]),
        "losses_nats": [*(of_epoch(epoch) for epoch in range(1, epochs)), measured(record["evaluation"])],
        "seconds": time.monotonic() - started,
    }


def _stopped(run: Any, record: Mapping[str, Any], folder: Path, epoch: int, rows: int) -> dict[str, Any]:
    """Rewards on the same validation rows: of the weights after that epoch, and of the whole job."""
    started, workspace = time.monotonic(), run.workspace
    chosen, candidate = sample(workspace.task.validation, rows), record["candidate"]
    whole = workspace.evaluations.load(record["evaluation"]).of("validation")
    with weights_of(workspace.policy, candidate["adapter"], folder / f"{epoch}.safetensors"):
        replies = workspace.policy.generate(
            [workspace.prompts.get(candidate["prompt"]).dialogue(row) for row in chosen],
            adapter=candidate["adapter"],
            max_new_tokens=workspace.task.max_new_tokens,
        )
    early = [each.score.value for each in grade(workspace.task.reward, chosen, replies.replies)]
    late = [whole[row.id].value for row in chosen]
    pairs = list(zip(early, late, strict=True))
    return {
        "epoch": epoch,
        "rows": len(chosen),
        "reward": fmean(early),
        "reward_whole": fmean(late),
        "won": sum(one > other + TIE for one, other in pairs),
        "lost": sum(one < other - TIE for one, other in pairs),
        "generated_tokens": replies.tokens,
        "seconds": time.monotonic() - started,
    }


@contextmanager
def weights_of(policy: Any, adapter: str, file: Path) -> Iterator[bool]:
    """Put the weights of a file in the place of an adapter's; yields whether the file is there."""
    import torch
    from safetensors.torch import load_file

    if not file.is_file():
        yield False
        return
    with policy.using(adapter):
        held = [parameter for name, parameter in policy.base.named_parameters() if f".{adapter}." in name]
    vector = load_file(file)["weights"]
    parts = vector.to(held[0].device, held[0].dtype).split([parameter.numel() for parameter in held])
    own = [parameter.detach().clone() for parameter in held]

    def put(values: Sequence[Any]) -> None:
        with torch.no_grad():
            for parameter, value in zip(held, values, strict=True):
                parameter.copy_(value.view_as(parameter))

    put(parts)
    try:
        yield True
    finally:
        put(own)


def _variance(run: Any, parent: Any, record: Mapping[str, Any], probes: Probes) -> dict[str, Any] | None:
    """Variances of the reward on train rows, under the kept prompt, the edit's, and the parts of it alone."""
    started, workspace, kept = time.monotonic(), run.workspace, parent.state()["kept"]
    edit = workspace.prompts.get(record["candidate"]["prompt"])
    prompts = prompts_beside(workspace.prompts.get(kept["prompt"]), edit)
    rows = sample(workspace.task.train, probes.variance)
    if not rows:
        return None
    try:
        sampled = [_sampled(workspace, prompt, kept["adapter"], rows) for prompt in prompts]
    except TooLongError:
        return None
    rewards, tokens = [each for each, _ in sampled], sum(count for _, count in sampled)
    spent = {"prompts": len(prompts), "generated_tokens": tokens, "seconds": time.monotonic() - started}
    return {**variances(rewards), **spent}


def prompts_beside(kept: Prompt, edit: Prompt) -> list[Prompt]:
    """Different prompts of one task: the kept one, an edit of it, and the edit without one of its parts."""
    parts = [kept, edit, replace(edit, demonstrations=()), replace(edit, system=kept.system)]
    return list({each.hash: each for each in parts}.values())[:PROMPTS]


def variances(rewards: Sequence[Sequence[Sequence[float]]]) -> dict[str, float]:
    """Variance among replies, and among prompts, of rewards by prompt, row and reply.

    among_replies: mean, over prompts and rows, of the variance of one row's replies. among_prompts: variance of the
    prompts' mean rewards, less the part of it that the draws of replies explain; below 0 if they explain more.
    """
    rows, replies = len(rewards[0]), len(rewards[0][0])
    among_replies = fmean(variance(row) for prompt in rewards for row in prompt)
    means = [fmean(fmean(row) for row in prompt) for prompt in rewards]
    among_prompts = variance(means) - among_replies / (rows * replies) if len(means) > 1 else 0.0
    return {"rows": rows, "replies": replies, "among_replies": among_replies, "among_prompts": among_prompts}


def _sampled(
    workspace: Any, prompt: Prompt, adapter: str | None, rows: Sequence[Example]
) -> tuple[list[list[float]], int]:
    """Rewards of sampled replies by row, and the tokens generated for them."""
    task, dialogues, drawn, tokens = workspace.task, [prompt.dialogue(row) for row in rows], [], 0
    for number in range(1, REPLIES + 1):
        replies = workspace.policy.generate(
            dialogues,
            adapter=adapter,
            max_new_tokens=task.max_new_tokens,
            sampling=Sampling(TEMPERATURE, number),
        )
        tokens += replies.tokens
        drawn.append([each.score.value for each in grade(task.reward, rows, replies.replies)])
    return [list(row) for row in zip(*drawn, strict=True)], tokens


def sample(rows: Sequence[Example], most: int) -> list[Example]:
    """The same rows at each node, in the order of the task."""
    drawn = set(random.Random(0).sample(range(len(rows)), min(most, len(rows))))
    return [row for number, row in enumerate(rows) if number in drawn]
