"""A run, from its creation to its result: everything that a user does with one."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

from langchain_core.runnables import RunnableConfig

from nslora.graph.runs.asynchronous import AsyncExecution
from nslora.graph.runs.checkpoints import OBJECT, check_checkpoints
from nslora.graph.runs.compare import Comparison, compare
from nslora.graph.runs.execution import Answer, AnyGraph
from nslora.graph.runs.folder import (
    ask_editor,
    beside,
    could_begin,
    delete_earlier,
    fitted_settings,
    make_folder,
    read_settings,
    refuse_no_graph,
    refuse_no_policy,
    refuse_no_task,
    refuse_unusable,
    write_record,
)
from nslora.graph.runs.fork import fork
from nslora.graph.runs.loops import Saver
from nslora.graph.runs.merge_prompt import MergedPrompt, merge_prompt
from nslora.graph.runs.replay import Replay, replay
from nslora.graph.runs.result import Result, result_of
from nslora.graph.runs.view import RoundDetails, RunView, look
from nslora.tools.editor.chat_models import editor_name
from nslora.tools.editor.wrapped_chat import Chat
from nslora.tools.errors import RunError, SettingsError
from nslora.tools.evaluation.acceptance import MARGIN
from nslora.tools.files import write_json
from nslora.tools.inference.weights import Notify
from nslora.tools.policy import Policy
from nslora.tools.tasks.task import Task
from nslora.tools.workspace.budget import plan_of
from nslora.tools.workspace.judges import AGREEMENT_FILE, agreements_of
from nslora.tools.workspace.record import read_run_file, recorded_settings, refuse_half_begun
from nslora.tools.workspace.workspace import (
    Workspace,
    is_task_of,
    open_workspace,
    refuse_other_regression_set,
    register,
)


class Run(AsyncExecution):
    """One adaptation: a folder, a workspace and a thread of checkpoints. `create` or `open` makes one."""

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
        graph: AnyGraph | None = None,
        overwrite: bool = False,
        check_editor: bool = True,
        **settings: Any,
    ) -> Self:
        """Begin a run in a new folder. Nothing is written if anything that can be checked beforehand is wrong.

        Args:
            folder: Where the run lives. It must be new, or empty.
            task: What `load_task` or `task_from_rows` gave.
            model: The embedded model's name, a folder, a hub id, or an object with the methods of `Policy`.
            editor: "rules", "policy", a name such as "openai:gpt-4o", or any LangChain chat model.
            notify: Is called with each remark that should be read before anything is spent.
            checkpoints: URL of a PostgreSQL database, or a LangGraph checkpointer. None keeps them in the folder.
            graph: A graph of your own: `build_workflow()` with your changes, or what its `compile()` gave.
            overwrite: Replace an earlier run in `folder`.
            check_editor: Ask an editor that is given by name for one token, to learn of a wrong key, model or address
                now. What it costs is in the report. A chat model object is not asked.
            **settings: Fields of `RunSettings`, such as seed=1, max_rounds=4, lora={"rank": 16}.

        Raises:
            SettingsError: If an argument cannot be used.
            RunError: If the folder cannot be used.
            ModelError: If the model or the editor cannot be had, or the editor does not answer.
            RewardError: If the reward fails on a row of the task.
        """
        path = Path(folder)
        place = checkpoints if isinstance(checkpoints, str) else None
        check_checkpoints(checkpoints)
        refuse_no_task(task)
        refuse_no_graph(graph)
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

        planned = workspace()
        could_begin(planned)
        refuse_unusable(path, overwrite=overwrite)
        if isinstance(model, str):  # may fetch or convert it
            values = fitted_settings(values, notify)
        elif values.adapter:
            raise SettingsError("adapter= needs a model by its name: a policy of your own loads its adapter itself.")
        if overwrite and values.adapter and Path(values.adapter).resolve().is_relative_to(path.resolve()):
            raise SettingsError(f"The adapter {values.adapter} lies in the run that is overwritten: copy it first.")
        agreements = agreements_of(task)
        for name, agreement in agreements.items():
            notify(f"judge    {name}: {agreement}")
        checked = ask_editor(planned) if check_editor and isinstance(editor, str) else None
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
            graph_is_object=graph is not None,
            adapter=begun.adapters.take(Path(values.adapter)) if values.adapter else None,
        )
        begun.seat_judges()
        if agreements:
            write_json(path / AGREEMENT_FILE, {name: asdict(each) for name, each in agreements.items()})
        if checked is not None:
            begun.editor.record(checked)
        return cls(path, begun, None if isinstance(checkpoints, str) else checkpoints, place, graph)

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
        graph: AnyGraph | None = None,
        needs_editor: bool = True,
    ) -> Self:
        """Open a run that exists.

        Args:
            folder: The run's folder.
            task, editor, model, graph: The objects that the run was created with, if it was created with objects.
            notify: Is called with each remark that should be read.
            checkpoints: The checkpointer object, or the database's URL if it needs a password, which no run writes
                down.
            needs_editor: False if the run is only replayed, or forked with another editor; a chat model object need
                not be given again then.

        Raises:
            RunError: If the folder holds no run, or an object is missing or another one.
        """
        path = Path(folder)
        record = read_run_file(path)
        refuse_half_begun(path, record)
        place = checkpoints if isinstance(checkpoints, str) else None
        check_checkpoints(checkpoints)
        refuse_no_graph(graph)
        saver = None if isinstance(checkpoints, str) else checkpoints
        if task is None and editor is None and model is None:
            return cls(path, open_workspace(path, needs_editor=needs_editor), saver, place, graph)
        if task is None:
            raise RunError("Give the task too: Run.open(folder, task=..., editor=...).")
        refuse_no_task(task)
        if model is not None:
            refuse_no_policy(model)
        if not is_task_of(record, task):
            raise RunError(
                f"This is another task than {folder} was begun with (hash {task.hash[:12]}, wanted "
                f"{record['task']['hash'][:12]})."
            )
        workspace = Workspace(
            path.resolve(), recorded_settings(path, record), task, policy=model, editor_chat=editor, notify=notify
        )
        refuse_other_regression_set(workspace, record)
        if editor is not None and (name := editor_name(editor)) != workspace.settings.editor:
            notify(
                f"note     {folder} was begun with the editor {workspace.settings.editor} and goes on with {name}, "
                "and the report names the first: run.fork(folder, at=..., editor=...) keeps the two apart"
            )
        return cls(path, register(workspace), saver, place, graph)

    def adapt(self, *, config: RunnableConfig | None = None) -> Result:
        """Run from the last checkpoint to the end.

        Args:
            config: LangChain's: callbacks, tags, metadata, run_name, ..., in addition to the run's own.

        Raises:
            RunError: If the run stops before its end to ask a person: see `question` and `resume`.
        """
        return self.resume(config=config)

    async def aadapt(self, *, config: RunnableConfig | None = None) -> Result:
        """Await what `adapt` does; the event loop is free meanwhile, and a cancelled run can be resumed."""
        return await self.aresume(config=config)

    def resume(
        self, answer: Answer | None = None, *, max_rounds: int | None = None, config: RunnableConfig | None = None
    ) -> Result:
        """Go on from the last checkpoint to the end.

        Args:
            max_rounds: Allow so many rounds from now on; a run that has ended goes on. Its earlier result is kept as
                `result.CHECKPOINT`, and the report says how often the test split has been looked at.
            answer: To the question that waits: "accept", "reject", or {"answer": "rewrite", "prompt": a Prompt or its
                document}; to a chat model that asks a person, whatever it expects.
            config: As in `adapt`.

        Raises:
            RunError: If a person is asked, no question waits for the answer, or another process works on the run.
        """
        if max_rounds is not None:
            self.allow(max_rounds)
        return result_of(self.folder, self.finish(answer, config=config))

    async def aresume(
        self, answer: Answer | None = None, *, max_rounds: int | None = None, config: RunnableConfig | None = None
    ) -> Result:
        """Await what `resume` does; the event loop is free meanwhile, and a cancelled run can be resumed."""
        if max_rounds is not None:
            await self._apart(self.allow, max_rounds)
        return result_of(self.folder, await self.afinish(answer, config=config))

    def fork(
        self,
        folder: str | Path | None = None,
        *,
        at: int,
        action: Literal["lora", "textgrad"] | None = None,
        editor: str | Chat | None = None,
        settings: Mapping[str, Any] | None = None,
        checkpoints: str | Saver | None = None,
    ) -> Self:
        """Make a new run with this one's past before round `at`, which is decided again. This run is only read.

        Args:
            folder: Of the new run. None: beside this one's.
            at: The round, from 1; 0 begins with the first evaluation.
            action: What round `at` does, whatever the strategy would choose.
            editor: Another editor from there on.
            settings: Other fields of `RunSettings`; {"lora": {"rank": 16}} changes that one field of the group.
            checkpoints: As in `create`. None: where this run has its own, under another thread; a file in this run's
                folder becomes one in the new folder.

        Raises:
            RunError: If the run never came to that round.
            SettingsError: If there is no such action or setting.
        """
        target = folder or beside(self.folder, f"fork{at}")
        return fork(self, target, at=at, action=action, editor=editor, settings=settings, checkpoints=checkpoints)

    def replay(
        self,
        folder: str | Path | None = None,
        *,
        begin_at: int = 1,
        retrain: bool = False,
        checkpoints: str | Saver | None = None,
    ) -> Replay:
        """Run again from the records into a new run, offline, and say what came out differently.

        Args:
            folder: Of the new run. None: beside this one's.
            begin_at: The first round that is decided again; 0 is the first evaluation.
            retrain: Train again and compare the adapters' hashes, instead of taking the recorded adapters.
            checkpoints: As in `fork`.

        Raises:
            RunError: If the run has not finished.
        """
        target = folder or beside(self.folder, "replay")
        return replay(self, target, begin_at=begin_at, retrain=retrain, checkpoints=checkpoints)

    def compare(self, *others: "Run | str | Path") -> Comparison:
        """Put finished runs of one task beside this one, paired by test question. Raises RunError."""
        return compare([self.folder, *(each.folder if isinstance(each, Run) else each for each in others)])

    def show(self, number: int | None = None) -> RunView | RoundDetails:
        """What the run did, or everything about one round (from 1). Raises RunError if there is no such round."""
        view = look(self.folder)
        return view if number is None else view.round(number)

    def merge_prompt(self, *, margin: float = MARGIN) -> MergedPrompt:
        """Train the result's prompt into its weights, and keep that only if validation shows that nothing is lost.

        Args:
            margin: The largest loss of mean reward that the 95 % interval may leave possible, in (0, 1].

        Raises:
            RunError: If the run has no result, the result no prompt, or no reply to a train question earns full reward.
            SettingsError: If the validation rows are too few to rule out such a loss.
        """
        return merge_prompt(self.workspace, self.report(), margin=margin)

    def html(self, *others: "Run | str | Path", to: str | Path = "comparison.html") -> Path:
        """Write the run's page, one HTML file, and return its path: in `result/` if the run has one.

        A run writes it by itself after each round and at its end, unless NSLORA_PAGE=0 is in the environment.

        Args:
            others: Finished runs of the same task. The page is then one of all of them, with differences to this run.
            to: The file of such a page.

        Raises:
            RunError: If the runs cannot be compared, or `to` is another file than such a page.
        """
        from nslora.graph.runs.page.writing import write_comparison, write_page

        if not others:
            return write_page(self.folder, self.workspace)
        folders = [each.folder if isinstance(each, Run) else Path(each) for each in others]
        return write_comparison({"": [self.folder, *folders]}, Path(to))
