"""A result's prompt, trained into its weights: context distillation, by which a request needs no prompt any more.

The pair answers the train questions; each reply that earns full reward becomes a training row without the prompt, and
the adapter goes on from where it is. Askell et al. (2021, arXiv 2112.00861) and Snell et al. (2022, arXiv 2209.15189)
distil a prompt so from the model's probabilities. Here whole replies are learnt, because verified ones are at hand, and
because a policy behind a server gives no probabilities.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nslora.graph.lock import sole_writer
from nslora.tools.dataset.remade import RemadeRow, rows_by_source
from nslora.tools.dataset.selection import Material, training_rows
from nslora.tools.errors import DivergedError, RunError, SettingsError
from nslora.tools.evaluation.acceptance import MARGIN, KeepDecision, nothing_lost, smallest_loss_ruled_out
from nslora.tools.export.pair import written_whole
from nslora.tools.files import quoted, read_json, sha256_of_file, write_json, write_jsonl, write_text
from nslora.tools.policy import OnStep, TrainingJob, TrainingResult
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example
from nslora.tools.training.adapters import WEIGHTS
from nslora.tools.workspace.record import RUN_FILE
from nslora.tools.workspace.report import compare_on_test
from nslora.tools.workspace.tables import test_rows, write_table
from nslora.tools.workspace.workspace import Workspace, refuse_changed_checks

FOLDER = "merged_prompt"  # in a run's `result`
EMPTY = Prompt()
TOLD = 4  # times that a long step tells how far it is
Both = tuple[tuple[Prompt, str | None], tuple[Prompt, str | None]]  # prompt and adapter of the pair, and of the new one


@dataclass(frozen=True)
class MergedPrompt:
    """What came of training a prompt into the weights.

    Attributes:
        kept: Whether the new adapter alone does what the pair did. If not, the pair stays what the run gives.
        reason: Of the decision, in a sentence.
        saved_tokens: Tokens of the prompt, which no request needs any more.
        row_tokens: Tokens of a request with its reply under the pair, on average.
        folder: `result/merged_prompt` of the run. Where a command wants the folder of a run, it takes this one too.
        report: Its `report.json`.
    """

    kept: bool
    reason: str
    saved_tokens: int
    row_tokens: float
    folder: Path
    report: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "MergedPrompt":
        """What `merge_prompt` wrote."""
        report = read_json(folder / "report.json")
        kept, reason = bool(report["kept"]), str(report["reason"])
        return cls(kept, reason, report["saved_tokens"], report["row_tokens"], folder, report)


def folder_in(run: Path) -> Path:
    """Where a run's merged prompt lies."""
    return run / "result" / FOLDER


class Taken(NamedTuple):
    """What a folder stands for where a pair is taken from it.

    Attributes:
        run: The run's folder.
        result: Its `result`, or the `merged_prompt` in it.
        name: What the pair is called.
    """

    run: Path
    result: Path
    name: str


def taken(folder: Path) -> Taken:
    """What is taken from a run's folder, or from its `result/merged_prompt`."""
    path = folder.resolve()
    if path.name == FOLDER and not (path / RUN_FILE).exists():
        return Taken(path.parents[1], path, f"{path.parents[1].name}-merged-prompt")
    return Taken(folder, folder / "result", path.name)


def kept_report(folder: Path) -> dict[str, Any]:
    """The report of a merged prompt. Raises RunError if it was not kept."""
    if not (folder / "report.json").exists():
        raise RunError(f"There is no {folder}: make it with nslora merge-prompt {quoted(folder.parents[1])}.")
    report: dict[str, Any] = read_json(folder / "report.json")
    if not report["kept"]:
        raise RunError(f"{folder} holds nothing to take away ({report['reason']}): take the pair of the run itself.")
    return report


def merge_prompt(workspace: Workspace, report: Mapping[str, Any], *, margin: float = MARGIN) -> MergedPrompt:
    """Train a result's prompt into its weights, and keep the new adapter only if nothing is lost on validation.

    The test split decides nothing: it is answered after the decision, and only if the adapter is kept. A second call
    with the same arguments reads what the first one wrote. After a call that was stopped, the next one goes on.

    Args:
        workspace: Of the finished run.
        report: Its report.
        margin: The largest loss of mean reward that the 95 % interval may leave possible, in (0, 1].

    Raises:
        RunError: If the result has no prompt or is of an agent, no reply of it earns full reward, or another process
            works on the run.
        SettingsError: If so few validation rows cannot rule out such a loss.
    """
    folder, pair = workspace.folder, report["result"]
    if pair["prompt"] == EMPTY.hash:
        raise RunError(f"The result of {folder} has no prompt: its model is asked with questions alone already.")
    if workspace.task.agent:
        raise RunError(f"The task of {folder} has an agent, whose nodes read their prompts: they stay prompts.")
    refuse_blind(len(workspace.task.validation), margin)
    refuse_changed_checks(folder, workspace.task)
    target, asked = folder_in(folder), {"pair": pair, "margin": margin}
    if (target / "report.json").exists() and (found := MergedPrompt.read(target)).report["asked"] == asked:
        return found
    workspace.seat_judges()
    with sole_writer(folder):
        _learn(workspace, report, asked, target)
    return MergedPrompt.read(target)


def refuse_blind(rows: int, margin: float) -> None:
    """Raise SettingsError if so many validation rows could rule out no loss of this size."""
    if not 0 < margin <= 1:
        raise SettingsError(f"The margin is {margin:g}: wanted a loss of reward above 0 and up to 1, such as {MARGIN}.")
    if (least := smallest_loss_ruled_out(rows)) > margin:
        raise SettingsError(
            f"{rows} validation rows cannot rule out a loss of {margin:g}, even if none of them loses: allow a margin "
            f"of {least + 0.005:.2f}, or give the task more validation rows."
        )


def _learn(workspace: Workspace, report: Mapping[str, Any], asked: Mapping[str, Any], target: Path) -> None:
    """Train, decide, and write the folder whole."""
    pair = report["result"]
    prompt = workspace.prompts.get(pair["prompt"])
    rows, row_tokens = _verified(workspace, prompt, pair["adapter"])
    found: dict[str, Any] = {"kept": False, "result": None, "adapter_sha256": None, "test": None}
    tested: tuple[list[Graded], list[Graded]] | None = None
    try:
        trained = _trained(workspace, pair["adapter"], rows)
    except DivergedError as error:
        found |= {"reason": f"Dropped: {error}", "numbers": {}, "trained_tokens": 0}
    else:
        both = (prompt, pair["adapter"]), (EMPTY, trained.adapter)
        decision = _decided(workspace, both, asked["margin"])
        found |= {
            "reason": decision.reason,
            "numbers": dict(decision.numbers),
            "trained_tokens": trained.trained_tokens,
        }
        if decision.kept:
            tested = _graded(workspace, both, workspace.task.test, "test")
            compared = compare_on_test(*tested, workspace.task.reward)
            found |= {
                "kept": True,
                "result": {"adapter": trained.adapter, "prompt": EMPTY.hash},
                "test": {**compared, "base": report["test"]["base"], "pair": compared["base"]},
            }
    found |= {"asked": asked, "saved_tokens": workspace.prompt_tokens(prompt), "row_tokens": row_tokens}
    found |= {"verified_replies": len(rows), "task": report["task"], "versions": report["versions"]}
    with written_whole(target, overwrite=True) as made:
        if save_template := getattr(workspace.policy, "save_template", None):
            save_template(made / "tokenizer")
        as_text = (made / "tokenizer").is_dir()
        write_jsonl(made / "remade.jsonl", [row.as_trl(EMPTY, as_text=as_text) for row in rows])
        write_text(made / "prompt.md", EMPTY.render())
        if tested:
            workspace.adapters.export(found["result"]["adapter"], made / "adapter")
            found["adapter_sha256"] = sha256_of_file(made / "adapter" / WEIGHTS)
            write_table(made / "test.csv", *test_rows(*tested, named="pair"))
        write_json(made / "report.json", found)


def _verified(workspace: Workspace, prompt: Prompt, adapter: str | None) -> tuple[list[RemadeRow], float]:
    """The pair's replies to train questions that earn full reward, and the mean tokens of a request with its reply.

    Of more train rows than `remade_rows`, a sample is asked. Raises RunError if no reply is verified.
    """
    settings, asked = workspace.settings, list(workspace.task.train)
    if settings.remade_rows is not None and len(asked) > settings.remade_rows:
        asked = random.Random(f"{settings.seed}/{FOLDER}").sample(asked, settings.remade_rows)
    told = _told(workspace, "train replies under the prompt")
    graded, replies = workspace.graded_replies(prompt, adapter, asked, told)
    good = [each for i, each in enumerate(graded) if each.score.passed and i not in replies.truncated]
    if not good:
        raise RunError(
            f"No reply of {workspace.folder}'s result to its {len(asked)} train questions earns full reward, so there "
            "is nothing to learn from: the pair stays as it is."
        )
    workspace.notify(f"verified {len(good)} of {len(asked)} replies earn full reward")
    rows = [
        RemadeRow(
            each.example.id,
            each.example.question,
            each.reply,
            EMPTY.hash,
            adapter,
            each.score.value,
            thinking=each.thinking,
            history=each.example.history,
        )
        for each in good
    ]
    return rows, replies.forward_tokens / len(asked)


def _trained(workspace: Workspace, start: str | None, rows: Sequence[RemadeRow]) -> TrainingResult:
    """One training job on the verified rows, without the prompt. Raises DivergedError."""
    remade = rows_by_source(rows)
    learnt = [row for row in workspace.task.train if row.id in remade]
    job = TrainingJob(
        tuple(training_rows(learnt, Material((), (), ()), EMPTY, remade, everything=True, replay_share=0, seed="")),
        workspace.settings.lora.epochs,
        seed=workspace.settings.seed,
        start=start,
        progress=workspace.folder / "progress" / FOLDER,
    )
    return workspace.train(job, _told(workspace, "training steps without the prompt"))


def _decided(workspace: Workspace, both: Both, margin: float) -> KeepDecision:
    """Whether the second candidate loses nothing against the first, on validation and on the regression set."""

    def rewards(rows: Sequence[Example]) -> list[list[float]]:
        return [[each.score.value for each in graded] for graded in _graded(workspace, both, rows, "validation")]

    (old, new), (regression_old, regression_new) = rewards(workspace.task.validation), rewards(workspace.regression_set)
    return nothing_lost(
        old,
        new,
        margin=margin,
        regression_old=regression_old,
        regression_new=regression_new,
        settings=workspace.settings.keep,
    )


def _graded(workspace: Workspace, both: Both, rows: Sequence[Example], of: str) -> tuple[list[Graded], list[Graded]]:
    """The graded replies of both candidates."""
    names = f"{of} replies under the prompt", f"{of} replies without it"
    before, after = (
        workspace.graded_replies(prompt, adapter, rows, _told(workspace, name))[0]
        for (prompt, adapter), name in zip(both, names, strict=True)
    )
    return before, after


def _told(workspace: Workspace, what: str) -> OnStep:
    """Progress in a few lines."""
    said = [0]

    def on_progress(done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        if (part := done * TOLD // max(1, total)) > said[0]:
            said[0] = part
            workspace.notify(f"{what}: {done} of {total}")

    return on_progress
