"""The workspace of a run: task, policy, editor and stores, as plain objects without graph or state.

`open_workspace` makes it from the run's folder, so that another process (a resume, `langgraph dev`) gets the same one.
Objects that cannot be written to the folder, such as a chat model, reach the nodes through `register`.
"""

import random
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from nslora.tools.agents.running import run_agent, with_trajectories
from nslora.tools.editor.call_log import EditorLog
from nslora.tools.editor.editor import Editor
from nslora.tools.editor.judge_calls import JudgePlace
from nslora.tools.errors import BudgetError, DamagedError, DivergedError, ModelError, RunError
from nslora.tools.evaluation.records import EvaluationStore
from nslora.tools.evaluation.rollouts import Replies, ask, grade
from nslora.tools.files import as_text, quoted, read_json, sha256_of_json, write_json
from nslora.tools.inference.flops import FlopRates
from nslora.tools.inference.reply_cache import ReplyCache, token_counts
from nslora.tools.inference.weights import Notify, cache_folder, refuse_other_weights
from nslora.tools.policies.adapter_proof import OTHER_BASE_NATS
from nslora.tools.policy import OnProgress, OnStep, Policy, TrainingJob, TrainingResult, no_progress
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Dialogue, Example
from nslora.tools.tasks.regression_set import read_regression_set
from nslora.tools.tasks.task import Task, load_task
from nslora.tools.training.adapters import AdapterStore
from nslora.tools.training.training_cache import TrainingCache, job_sha256
from nslora.tools.workspace.prompt_store import PromptStore
from nslora.tools.workspace.record import POLICY_FILE, read_run_file, recorded_settings, refuse_half_begun
from nslora.tools.workspace.settings import RunSettings
from nslora.tools.workspace.task_clock import TaskClock


def no_report(what: str, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
    """Ignore what a node reports of its work."""


class Workspace:
    """The objects of one run. The policy and the editor are made at their first use.

    Args:
        folder: The run's folder.
        settings: The run's settings.
        task: The task.
        policy: The user's policy object; None if the settings name the model.
        editor_chat: The user's chat model object; None if the settings name the editor.
        notify: Called with lines for the user.
    """

    def __init__(
        self,
        folder: Path,
        settings: RunSettings,
        task: Task,
        *,
        policy: Policy | None = None,
        editor_chat: Any = None,
        notify: Notify = lambda _: None,
    ) -> None:
        self.folder, self.settings, self.task, self.notify = folder, settings, task, notify
        self.adapters = AdapterStore(folder / "adapters")
        self.prompts = PromptStore(folder / "prompts")
        self.regression_set = read_regression_set(settings.anchor, task)
        self.evaluations = EvaluationStore(folder / "evaluations")
        self.remade = folder / "remade"
        self.training_cache = TrainingCache(folder / "bursts.jsonl", self.adapters)
        self.task_id = ""  # of the graph's task that works now; it stays the same after a kill
        self.clock = TaskClock(folder, "")
        self.on_progress: Callable[..., None] = no_report  # (what, done, total, values of a training step)
        self.given_policy, self.editor_chat = policy, editor_chat  # None where the settings name them

    @cached_property
    def policy(self) -> Policy:
        """The model to adapt; loading takes seconds. Raises RunError if its weights differ from those at the start."""
        policy = self.given_policy or self.load_policy()
        facts = self.folder / POLICY_FILE
        if facts.exists():
            known = read_json(facts)
            if not isinstance(known, dict) or "fingerprint" not in known:
                raise DamagedError(f"{facts} is damaged: it names no fingerprint.")
            refuse_other_weights(policy.name, policy.fingerprint, known["fingerprint"])
            refuse_other_losses(policy.describe().get("probe_nats"), known.get("probe_nats"))
        elif self.folder.is_dir():
            named = {name: getattr(policy, name) for name in ("name", "fingerprint", "context_tokens")}
            write_json(facts, {**policy.describe(), **named})
        return policy

    def load_policy(self) -> Policy:
        """Load the model that the settings name."""
        from nslora.tools.policies.opening import open_policy

        return open_policy(
            self.settings.model,
            engine=self.settings.engine,
            adapters=self.adapters.folder,
            lora=self.settings.lora,
            device=self.settings.device,
            thinking=self.settings.thinking,
            notify=self.notify,
        )

    @cached_property
    def editor(self) -> Editor:
        """The symbolic editor. Each call is recorded in `editor.jsonl`, and no call is paid twice."""
        from nslora.tools.workspace.editor_factory import editor_of

        log = EditorLog(self.folder / "editor.jsonl")
        return editor_of(self.settings, chat=self.editor_chat, log=log, policy=lambda: self.policy)

    def release(self) -> None:
        """Stop the server that an editor named in the settings has started; its next request starts it again."""
        if self.editor_chat is None and "editor" in vars(self):
            self.editor.close()

    @cached_property
    def replies(self) -> ReplyCache:
        """Known replies: shared with other runs, or only this run's if `reuse_replies` is off."""
        folder = cache_folder() if self.settings.reuse_replies else self.folder
        return ReplyCache(folder / "replies.sqlite")

    @cached_property
    def judge_place(self) -> JudgePlace:
        """Where the judges of this run work; those of a replay ask nobody."""
        origin = read_run_file(self.folder).get("origin") or {}
        offline = origin.get("kind") == "replay"
        return JudgePlace(self.settings.judging, self.folder, self.replies, offline=offline)

    def seat_judges(self, *, begun: bool = True) -> None:
        """Have the task's judges work for this run. begun: whether it has a folder; nothing is written else."""
        if self.task.reward.judges:
            self.task.reward.judge_in(self.judge_place if begun else self._beforehand)

    @cached_property
    def _beforehand(self) -> JudgePlace:
        return JudgePlace(self.settings.judging, cache=self.replies if self.settings.reuse_replies else None)

    def count_tokens(self, dialogue: Dialogue) -> int:
        """Tokens of a dialogue."""
        return self.token_counts([dialogue])[0]

    def token_counts(self, dialogues: Sequence[Dialogue]) -> list[int]:
        """Tokens of each dialogue, cached beside the replies."""
        return token_counts(self.policy, self.replies, dialogues)

    def prompt_tokens(self, prompt: Prompt) -> int | None:
        """Tokens that a prompt adds to each row that is trained on, and to each reply that is served.

        None if they are not on record and the model is gone, as in a replay of an old run.
        """
        row = self.task.train[0]
        try:
            asked, bare = self.token_counts([each.dialogue(row) for each in (prompt, Prompt())])
        except ModelError:
            return None
        return asked - bare

    def graded_replies(
        self, prompt: Prompt, adapter: str | None, rows: Sequence[Example], on_progress: OnProgress
    ) -> tuple[list[Graded], Replies]:
        """The policy's graded replies to rows, and what they cost; the reply cache answers what it knows.

        A task with an agent gets the final answers of its trajectories, and rows that hold these.
        """
        if self.task.agent:
            flown = run_agent(
                self.policy, self.replies, self.task, prompt, rows, adapter=adapter, on_progress=on_progress
            )
            seen = with_trajectories(rows, flown.trajectories)
            return grade(self.task.reward, seen, flown.replies.texts), flown.replies
        replies = ask(
            self.policy,
            self.replies,
            [prompt.dialogue(row) for row in rows],
            adapter=adapter,
            max_new_tokens=self.task.max_new_tokens,
            on_progress=on_progress,
        )
        return grade(self.task.reward, rows, replies.texts), replies

    @cached_property
    def flop_rates(self) -> FlopRates:
        """Model FLOPs per token."""
        return FlopRates.of(self.policy.describe())

    def train(self, job: TrainingJob, on_progress: OnStep = no_progress) -> TrainingResult:
        """Train, or return the recorded result of the same job. Deletes the job's snapshots. Raises DivergedError."""
        policy = {**self.policy.describe(), "fingerprint": self.policy.fingerprint}
        request = job_sha256(job, self.settings.lora, policy)
        if job.progress is not None:  # the job's hash is in the name, so that no job continues another one's snapshot
            job = replace(job, progress=job.progress.with_name(f"{job.progress.name}-{request[:16]}"))
        try:
            result = self.training_cache.train_once(self.policy.train, job, request, on_progress)
        except (BudgetError, DivergedError):
            self._delete_snapshots(job)  # a failed job is not continued; a stopped one is
            raise
        self._delete_snapshots(job)
        return result

    def _delete_snapshots(self, job: TrainingJob) -> None:
        if job.progress is not None:
            shutil.rmtree(job.progress, ignore_errors=True)

    @property
    def regression_hash(self) -> str | None:
        """Content hash of the regression set; None without one."""
        # As text: a column of a Parquet file may hold a type that JSON lacks, such as a date.
        rows = [
            [row.asked, row.reference, {name: as_text(value) for name, value in row.fields.items()}]
            for row in self.regression_set
        ]
        return sha256_of_json(rows) if rows else None

    @cached_property
    def examples(self) -> dict[str, Example]:
        """Train and validation rows by id."""
        return {row.id: row for row in (*self.task.train, *self.task.validation)}

    def train_sample(self, round_number: int) -> tuple[Example, ...]:
        """The train rows of the evaluation after `round_number` updates; each round draws another sample."""
        rows = list(self.task.train)
        random.Random(f"{self.settings.seed}/{round_number}/sample").shuffle(rows)
        chosen = {row.id for row in rows[: self.settings.train_sample]}
        return tuple(row for row in self.task.train if row.id in chosen)

    def measured_rows(self, round_number: int) -> tuple[Example, ...]:
        """The rows of that evaluation: validation, the sample of train, the regression set."""
        return (*self.task.validation, *self.train_sample(round_number), *self.regression_set)


# A workspace holds a model, so it lives only as long as its Run. The newest two live longer, because a graph that is
# invoked without a Run (by `langgraph dev`) finds them by their folders.
_WORKSPACES: WeakValueDictionary[Path, Workspace] = WeakValueDictionary()
_NEWEST: deque[Workspace] = deque(maxlen=2)


def register(workspace: Workspace) -> Workspace:
    """Make this workspace the one that this process uses for its folder, and return it."""
    _WORKSPACES[workspace.folder.resolve()] = workspace
    _NEWEST.append(workspace)
    return workspace


def open_workspace(folder: str | Path, *, needs_editor: bool = True) -> Workspace:
    """The registered workspace of a run's folder, or a new one from the folder's record.

    Args:
        folder: The run's folder.
        needs_editor: False if the run is only read, to replay it or to fork it with another editor.

    Raises:
        RunError: The folder is not a run, its task has changed, or its task or editor was a Python object.
    """
    path = Path(folder).resolve()
    if (known := _WORKSPACES.get(path)) is not None:
        return known
    record = read_run_file(path)
    refuse_half_begun(folder, record)
    if not record["task"]["source"]:
        raise RunError(
            f"The task of {folder} was made from Python objects: open the run with Run.open(folder, task=...)."
        )
    if record["editor_is_object"] and needs_editor:
        raise RunError(
            f"The editor of {folder} was a chat model object ({record['settings']['editor']}): open the "
            "run with Run.open(folder, task=..., editor=...)."
        )
    task = load_task(record["task"]["source"], **record["task"]["options"])
    if not is_task_of(record, task):
        raise RunError(
            f"The task {record['task']['source']} has changed since {folder} was begun (or an earlier "
            "nslora began it): restore it, or begin a new run."
        )
    workspace = Workspace(path, recorded_settings(folder, record), task)
    refuse_other_regression_set(workspace, record)
    return register(workspace)


def refuse_other_losses(found: Sequence[float] | None, known: Sequence[float] | None) -> None:
    """Raise RunError if servers score fixed references otherwise than when the run began: it is another base."""
    if found and known and max(abs(a - b) for a, b in zip(found, known, strict=True)) > OTHER_BASE_NATS:
        raise RunError(
            f"The servers of engine.replies score fixed texts with {found} nats per token, and with {known} when the "
            "run began, so they have another base: start them with the run's model."
        )


def is_task_of(record: Mapping[str, Any], task: Task) -> bool:
    """Whether a run was begun with this task, perhaps under other revisions of its checks."""
    recorded = record["task"]["hash"]
    return bool(recorded in (task.hash, task.hash_of(record["task"].get("checks", {}))))


def changed_checks(folder: Path, task: Task) -> str:
    """Say which checks score otherwise today than when the run was begun, as a sentence without its end; "" if none."""
    then = read_run_file(folder)["task"].get("checks", {})
    changed = [
        f"the check {name!r} had revision {then.get(name, 1)} and has revision {now}"
        for name, now in task.reward.revisions.items()
        if then.get(name, 1) != now
    ]
    return f"{folder} was scored otherwise than today ({', '.join(changed)})" if changed else ""


def refuse_changed_checks(folder: Path, task: Task) -> None:
    """Raise RunError if a check's scoring has changed since the run was begun, because old and new scores would mix."""
    if changed := changed_checks(folder, task):
        raise RunError(
            f"{changed}: begin a new run, or fork this one at its first evaluation (nslora fork {quoted(folder)} "
            "--at 0). It can be shown, replayed and exported."
        )


def refuse_other_regression_set(workspace: Workspace, record: Mapping[str, Any]) -> None:
    """Raise RunError if the regression set has changed since the run began."""
    if record.get("anchor", workspace.regression_hash) != workspace.regression_hash:
        raise RunError(
            f"The regression set {workspace.settings.anchor} has changed since {workspace.folder} was begun: restore "
            "it, or begin a new run."
        )
