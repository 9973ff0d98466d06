"""A run: one folder, one thread of checkpoints, from first state to result."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.runtime import RunControl
from langgraph.types import Command, StreamMode

from nslora.graph.build import STEPS_PER_ROUND, Graph, build_graph
from nslora.graph.lock import sole_writer
from nslora.graph.runs.checkpoints import (
    CHECKPOINTS_FILE,
    OBJECT,
    check_checkpoints,
    described,
    place_of,
    postgres_checkpoints,
    sqlite_checkpoints,
    without_password,
)
from nslora.graph.runs.disk_errors import named_disk_problems
from nslora.graph.runs.folder import (
    could_begin,
    delete_earlier,
    make_folder,
    read_settings,
    refuse_no_policy,
    refuse_no_task,
    refuse_unfit_model,
    refuse_unusable,
    write_record,
)
from nslora.graph.runs.history import last_whole_round, line_of
from nslora.graph.runs.integrity import check_records
from nslora.graph.runs.view import report_of
from nslora.graph.state import AdaptationContext, AdaptationState, first_state
from nslora.tools.editor.chat_models import editor_name
from nslora.tools.editor.wrapped_chat import Chat
from nslora.tools.errors import DamagedError, RunError
from nslora.tools.files import quoted, read_jsonl, write_jsonl
from nslora.tools.inference.weights import Notify
from nslora.tools.policy import Policy
from nslora.tools.prompt import Prompt
from nslora.tools.tasks.task import Task
from nslora.tools.workspace.budget import plan_of
from nslora.tools.workspace.record import (
    OLD_THREAD,
    QUESTION_FILE,
    read_run_file,
    recorded_settings,
    refuse_half_begun,
)
from nslora.tools.workspace.workspace import Workspace, open_workspace, refuse_other_regression_set, register

Saver = BaseCheckpointSaver[Any]
# To a question of `approve`: {"answer": "accept"}, "reject", or {"answer": "rewrite", "prompt": the document, or a
# Prompt}; to one that a chat model asks, what that expects.
Answer = str | Mapping[str, Any]


class Run:
    """One adaptation: its folder, its workspace, and its checkpoints.

    saver: a checkpointer of the user's own; without one the place in the folder's record is used.
    """

    def __init__(
        self, folder: Path, workspace: Workspace, saver: Saver | None = None, place: str | None = None
    ) -> None:
        self.folder, self.workspace = (
            folder.absolute(),
            workspace,
        )  # whoever changes the working directory stays with this run
        self._saver = saver
        record = read_run_file(folder)
        recorded = record.get("checkpoints")
        if saver is None and (recorded == OBJECT or (place is not None and without_password(place) != recorded)):
            raise RunError(
                f"The checkpoints of {folder} are in {described(recorded)}: give that with checkpoints=..., "
                "or the run would begin again in its own folder."
            )
        self._place = place or place_of(recorded)
        self.thread: str = record.get("thread", OLD_THREAD)
        self.origin: dict[str, Any] | None = record.get("origin")

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        task: Task,
        model: str | PathLike[str] | Policy = "SmolLM2-135M-Instruct",
        editor: str | Chat = "rules",
        notify: Notify = lambda _: None,
        checkpoints: str | Saver | None = None,
        overwrite: bool = False,
        **settings: Any,
    ) -> "Run":
        """Begin a run in a new folder.

        model: embedded, folder, hub id, or an object that is a Policy. editor: a name such as "openai:gpt-4o", or a
        LangChain chat model. checkpoints: URL of a PostgreSQL database or a LangGraph checkpointer, None for a file in
        the folder. overwrite: replace an earlier run in `folder`. settings: fields of RunSettings (seed=1,
        max_rounds=4, lora={"rank": 16}, ...).
        note: is told what should be heard before anything is spent, such as a validation split too small to judge by.
        All that can be checked without loading the model is checked first: after such an error nothing is written.
        """
        path = Path(folder)
        place = checkpoints if isinstance(checkpoints, str) else None
        check_checkpoints(checkpoints)
        refuse_no_task(task)
        model = os.fspath(model) if isinstance(model, PathLike) else model
        if not isinstance(model, str):
            refuse_no_policy(model)
        values = read_settings(
            model=model if isinstance(model, str) else model.name,
            editor=editor if isinstance(editor, str) else editor_name(editor),
            **settings,
        )

        def workspace() -> Workspace:
            return Workspace(
                path.resolve(),
                values,
                task,
                policy=None if isinstance(model, str) else model,
                editor_chat=None if isinstance(editor, str) else editor,
                notify=notify,
            )

        could_begin(workspace())
        refuse_unusable(path, overwrite=overwrite)
        if isinstance(model, str):  # may fetch or convert it
            refuse_unfit_model(model, values.lora, notify)
        if overwrite:
            delete_earlier(path)
        refuse_unusable(path)  # fetching takes minutes, in which another run may have begun there
        for warning in plan_of(task, values).warnings:
            notify(f"note     {warning}")
        make_folder(path)
        begun = register(workspace())  # another one: that above read the record of a run which is overwritten now
        write_record(
            begun,
            editor_is_object=not isinstance(editor, str),
            checkpoints=place if checkpoints is None or place else OBJECT,
        )
        return cls(path, begun, None if isinstance(checkpoints, str) else checkpoints, place)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        task: Task | None = None,
        editor: Chat | None = None,
        model: Policy | None = None,
        notify: Notify = lambda _: None,
        checkpoints: str | Saver | None = None,
        needs_editor: bool = True,
    ) -> "Run":
        """A run that exists. task, editor, model, checkpoints: only where it was created with Python objects, or where
        the database's URL has a password (which is not written down). needs_editor: False where it is only to be
        replayed, or forked with another editor; then a chat model object need not be given again.
        """
        path = Path(folder)
        record = read_run_file(path)
        refuse_half_begun(path, record)
        place = checkpoints if isinstance(checkpoints, str) else None
        check_checkpoints(checkpoints)
        saver = None if isinstance(checkpoints, str) else checkpoints
        if task is None and editor is None and model is None:
            return cls(path, open_workspace(path, needs_editor=needs_editor), saver, place)
        if task is None:
            raise RunError("Give the task too: Run.open(folder, task=..., editor=...).")
        refuse_no_task(task)
        if model is not None:
            refuse_no_policy(model)
        if task.hash != record["task"]["hash"]:
            raise RunError(
                f"Another task than the one that {folder} was begun with (hash {task.hash[:12]}, wanted "
                f"{record['task']['hash'][:12]})."
            )
        workspace = Workspace(
            path.resolve(), recorded_settings(path, record), task, policy=model, editor_chat=editor, notify=notify
        )
        refuse_other_regression_set(workspace, record)
        if editor is not None and (name := editor_name(editor)) != workspace.settings.editor:
            notify(
                f"note     {folder} was begun with the editor {workspace.settings.editor} and goes on with {name}, "
                "and the "
                "report names the first: fork(run, folder, at=..., editor=...) keeps the two apart"
            )
        return cls(path, register(workspace), saver, place)

    @property
    def config(self) -> RunnableConfig:
        """LangGraph's config of this run."""
        limit = STEPS_PER_ROUND * (self.workspace.settings.max_rounds + 2)
        return {"configurable": {"thread_id": self.thread}, "recursion_limit": limit}

    @property
    def context(self) -> AdaptationContext:
        """What the nodes are given beside the state; pass it with every invoke."""
        return AdaptationContext(folder=str(self.folder.resolve()))

    def first_state(self) -> AdaptationState:
        """The state to begin with: the base model under the task's prompt.

        Raises RunError where the run has begun: it would begin anew on top of what is there.
        """
        # Rounds without a state were made under a checkpointer that this object does not know.
        if (self.folder / "decisions.jsonl").exists() or self.state() is not None:
            raise RunError(
                f"The run {self.folder} has begun: to go on, give the graph None in the place of "
                "first_state(), or call adapt()."
            )
        return self._first_state()

    def _first_state(self) -> AdaptationState:
        return first_state(
            self.workspace.prompts.add(self.workspace.task.prompt), approve=self.workspace.settings.approve
        )

    def checkpointer(self) -> AbstractContextManager[Saver]:
        """The run's checkpoints, open as long as the block lasts."""
        if self._saver is not None:
            return nullcontext(self._saver)
        if self._place is not None:
            return postgres_checkpoints(self._place)
        return sqlite_checkpoints(self.folder / CHECKPOINTS_FILE)

    def stream(
        self,
        modes: Sequence[StreamMode] = ("updates", "custom"),
        *,
        control: RunControl | None = None,
        answer: Answer | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Run to the end, yielding (mode, part) of LangGraph's stream as they come.

        modes: "updates" gives {node: changes}, "values" whole states, "custom" progress inside a node. control: its
        `request_drain()` ends the run after the current step with GraphDrained. answer: to the question of an
        `approve` node, see `question`. A run that was begun before goes on from its last checkpoint, under the same
        settings; a finished one yields nothing. Raises RunError where another process is at work on the run, the disk
        is full, nothing waits for the answer, or another checkpointer holds the run; and DamagedError, with the command
        that goes on, where a file of the past is damaged.
        """
        moved_away = self._saver is None and self._place is None and not (self.folder / CHECKPOINTS_FILE).exists()
        with named_disk_problems(self.folder), sole_writer(self.folder) as stream, self.checkpointer() as saver:
            graph = build_graph(saver)
            try:
                self._refuse_where_unasked(graph, answer, begins_anew=moved_away)
                yield from self._streamed(graph, replace(self.context, stream=stream), modes, control, answer)
            except DamagedError as error:
                raise DamagedError(
                    f"{error} Nothing was overwritten; go on from the last good checkpoint with: nslora "
                    f"fork {quoted(self.folder)} --at {last_whole_round(graph, self.config, self.workspace)}"
                ) from error

    def _refuse_where_unasked(self, graph: Graph, answer: Answer | None, *, begins_anew: bool) -> None:
        seen = graph.get_state(self.config)
        traces = [name for name in (QUESTION_FILE, "decisions.jsonl") if (self.folder / name).exists()]
        if traces and not seen.values and not begins_anew and not (self.origin and self.origin["round"] > 0):
            where = "this checkpointer" if self._saver else described(read_run_file(self.folder).get("checkpoints"))
            raise RunError(
                f"{self.folder} has begun under another checkpointer than {where} ({traces[0]} is there): "
                "go on with that one, as Run.open(folder, checkpoints=...) or with the graph itself; where "
                f"it is lost, move {' and '.join(traces)} away, and the run begins again from its records."
            )
        if answer is not None and not seen.interrupts:
            raise RunError(f"{self.folder} waits for no answer: leave out answer, or look at question() first.")

    def _streamed(
        self,
        graph: Graph,
        context: AdaptationContext,
        modes: Sequence[StreamMode],
        control: RunControl | None,
        answer: Answer | None,
    ) -> Iterator[tuple[str, Any]]:
        seen = graph.get_state(self.config)
        config = self.config
        if seen.values.get("status") == "finished":
            told = self.folder / "decisions.jsonl"
            if len(read_jsonl(told)) != len(seen.values["rounds"]):
                write_jsonl(told, seen.values["rounds"])
            if (self.folder / "result" / "test.jsonl").is_file() and report_of(self.folder, read_jsonl(told)):
                return
            # Somebody removed the result, or a part of it: the last node makes it again, from the same state.
            end = next((each for each in line_of(graph, config) if "finish" in each.next), None)
            if end is None:
                raise RunError(f"{self.folder} has lost its result, and the checkpoint that it could be made from.")
            config = {**config, **end.config}
        check_records(self.folder)
        if not seen.values and self.origin and self.origin["round"] > 0:
            raise RunError(
                f"{self.folder} has lost the checkpoints that it was begun with: fork again, into another folder."
            )
        start: Any = None if seen.values else self._first_state()
        if seen.interrupts:
            if answer is None:
                return
            start = Command(resume=storable(answer))
        for mode, part in graph.stream(
            start, config, context=context, stream_mode=list(modes), durability="sync", control=control
        ):
            yield str(mode), part

    def adapt(self) -> dict[str, Any]:
        """Run to the end and return the report.

        Raises RunError where the run stops before its end to ask a person; `question` then holds what it asks.
        """
        return self.resume()

    def resume(self, answer: Answer | None = None) -> dict[str, Any]:
        """Go on from the last checkpoint to the end, and return the report. answer: as in `stream`."""
        for _ in self.stream(answer=answer):
            pass
        if (asked := self.question()) is not None:
            problem = asked.get("problem") if isinstance(asked, Mapping) else None
            then = (
                "resume({'answer': 'accept'})"
                if isinstance(asked, Mapping) and "answers" in asked
                else "resume(answer)"
            )
            raise RunError(
                (f"{problem} " if problem else "") + f"The run {self.folder} waits for a person: look at "
                f"question(), then {then}."
            )
        return self.report()

    def question(self) -> Any:
        """What an `approve` node asks: {"kind", "round", "diff", "screening", ...}; None where nothing waits.

        Of a chat model that asks a person, what it gave to `interrupt`.
        """
        with self.checkpointer() as saver:
            interrupts = build_graph(saver).get_state(self.config).interrupts
        return interrupts[0].value if interrupts else None

    def state(self) -> AdaptationState | None:
        """The newest state, None before the first checkpoint."""
        with self.checkpointer() as saver:
            values: Any = build_graph(saver).get_state(self.config).values
        return values or None

    def report(self) -> dict[str, Any]:
        """`result/report.json` as a dict. Raises RunError while the run has not finished."""
        report = report_of(self.folder, read_jsonl(self.folder / "decisions.jsonl"))
        if report is None:
            raise RunError(
                f"The run {self.folder} has no result yet: let it finish (nslora resume {quoted(self.folder)})."
            )
        return report


def storable(answer: Answer) -> Any:
    """An answer as checkpoints keep it: a Prompt as its document. Raises RunError for what JSON cannot hold."""
    if isinstance(answer, Mapping) and isinstance(prompt := answer.get("prompt"), Prompt):
        answer = {**answer, "prompt": prompt.render()}
    try:
        json.dumps(answer, ensure_ascii=False).encode()  # half a surrogate pair would be kept as another character
    except (TypeError, ValueError) as error:
        raise RunError(f"The answer cannot be kept ({error}): give text, numbers, lists and dicts.") from error
    return answer
