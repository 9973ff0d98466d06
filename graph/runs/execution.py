"""The execution of a run: its folder, its thread of checkpoints, and the graph that works on them."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import RunControl
from langgraph.types import Command, StateSnapshot, StreamMode

from nslora.graph.build import STEPS_PER_ROUND, Graph, build_graph
from nslora.graph.lock import sole_writer
from nslora.graph.projection import refuse_lost_rounds, same_rounds, set_aside, show_rounds
from nslora.graph.runs.checkpoints import (
    CHECKPOINTS_FILE,
    OBJECT,
    described,
    place_of,
    postgres_checkpoints,
    refuse_unreadable,
    sqlite_checkpoints,
    without_password,
)
from nslora.graph.runs.disk_errors import named_disk_problems
from nslora.graph.runs.folder import read_settings
from nslora.graph.runs.history import last_whole_round, line_of
from nslora.graph.runs.integrity import check_records
from nslora.graph.runs.loops import FromThreads, Saver, is_asynchronous
from nslora.graph.runs.page.live import live_page
from nslora.graph.runs.view import report_of
from nslora.graph.state import AdaptationContext, AdaptationState, HeldContext
from nslora.graph.tracking.following import Following, following, trackers_of
from nslora.graph.tracking.tracker import Tracker
from nslora.nodes.shared.rounds import first_state_of
from nslora.tools.errors import (
    DamagedError,
    EditorCallError,
    RunError,
    SettingsError,
    StoppedError,
    UnreachableRewardError,
)
from nslora.tools.files import quoted, read_jsonl, write_json
from nslora.tools.prompt import Prompt
from nslora.tools.workspace.record import OLD_THREAD, QUESTION_FILE, RUN_FILE, read_run_file
from nslora.tools.workspace.workspace import Workspace, refuse_changed_checks

AnyGraph = StateGraph[Any, Any, Any, Any] | Graph
# To a question of `approve`: {"answer": "accept"}, "reject", or {"answer": "rewrite", "prompt": the document, or a
# Prompt}; to a question of a chat model, whatever it expects.
Answer = str | Mapping[str, Any]
OUTWARD = (  # of a question that a Run meets inside a node of another graph
    " To let the question reach the caller of the graph that this node is of, call build_graph().invoke({}, "
    "context=run.context) in it in the place of the Run."
)
# Of a config: they name where a run goes on.
OWN_KEYS = ("thread_id", "checkpoint_id", "checkpoint_ns", "checkpoint_map")


@dataclass(frozen=True)
class Begun:
    """A graph under its run's lock, with its open checkpoints, and what it is called with.

    look_again: to be called after each part of the graph's stream; it keeps the run's page up to date. follow: to be
    told each part; the run's trackers.
    """

    graph: Graph
    saver: Saver
    input: Any
    config: RunnableConfig
    context: AdaptationContext
    look_again: Callable[[], None]
    follow: Following

    def streamed(self, modes: list[Any], control: RunControl | None) -> dict[str, Any]:
        """The arguments of the graph's `stream` and `astream`. modes: wanted; those of the trackers are added."""
        given = {"input": self.input, "config": self.config, "context": self.context}
        return {**given, "stream_mode": self.follow.modes(modes), "durability": "sync", "control": control}


class Execution:
    """A run's folder, workspace and checkpoints, and the graph that is executed on them.

    Args:
        folder: The folder of the run.
        workspace: What the nodes work with.
        saver: A checkpointer of the user's own. Without one the run's record says where the checkpoints are.
        place: URL of the database, with the password that the record leaves out.
        graph: A graph of the user's own. Without one it is `build_graph()`.

    Raises:
        RunError: If the checkpoints or the graph of this run have to be given, and are not.
    """

    def __init__(
        self,
        folder: Path,
        workspace: Workspace,
        saver: Saver | None = None,
        place: str | None = None,
        graph: AnyGraph | None = None,
    ) -> None:
        self.folder = folder.absolute()  # stays valid when the working directory changes
        self.workspace, self.graph = workspace, graph
        self.saver = FromThreads(saver) if saver is not None and is_asynchronous(saver) else saver
        record = read_run_file(folder)
        recorded = record.get("checkpoints")
        if saver is None and (recorded == OBJECT or (place is not None and without_password(place) != recorded)):
            raise RunError(
                f"The checkpoints of {folder} are in {described(recorded)}: give that with checkpoints=..., "
                "or the run would begin again in its own folder."
            )
        if graph is None and record.get("graph_is_object"):
            raise RunError(f"{folder} was begun with a graph of your own: give it again, as Run.open(..., graph=...).")
        self.place = place or place_of(recorded)
        self.thread: str = record.get("thread", OLD_THREAD)
        self.origin: dict[str, Any] | None = record.get("origin")
        if saver is not None and saver is self.saver:
            refuse_unreadable(saver, self.config, folder)

    def compiled(self, saver: Saver) -> Graph:
        """The run's graph with this checkpointer."""
        if self.graph is None:
            return build_graph(checkpointer=saver)
        if isinstance(self.graph, CompiledStateGraph):
            return self.graph.copy({"checkpointer": saver})
        return self.graph.compile(checkpointer=saver, name="nslora")

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
        """The state to begin with: the base model, or the start adapter on it, under the task's prompt.

        Raises RunError if the run has begun: it would begin again on top of what is there.
        """
        # Rounds without a state were made under a checkpointer that this object does not know.
        if (self.folder / "decisions.jsonl").exists() or self.state() is not None:
            raise RunError(
                f"The run {self.folder} has begun: to go on, give the graph None in the place of "
                "first_state(), or call adapt()."
            )
        return first_state_of(self.workspace)

    def checkpointer(self) -> AbstractContextManager[Saver]:
        """The run's checkpoints, open as long as the block lasts."""
        if self.saver is not None:
            return nullcontext(self.saver)
        if self.place is not None:
            return postgres_checkpoints(self.place)
        return sqlite_checkpoints(self.folder / CHECKPOINTS_FILE)

    def stream(
        self,
        modes: StreamMode | Sequence[StreamMode] = ("updates", "custom"),
        *,
        control: RunControl | None = None,
        answer: Answer | None = None,
        config: RunnableConfig | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Run to the end, yielding (mode, part) of LangGraph's stream as they come.

        A run that was begun before goes on from its last checkpoint, under the same settings; a finished one yields
        nothing.

        Args:
            modes: "updates" gives {node: changes}, "values" whole states, "custom" progress inside a node.
            control: Its `request_drain()` ends the run after the current step with GraphDrained.
            answer: To the question of an `approve` node, see `question`.
            config: Callbacks, tags, metadata, run_name and the like, in addition to `Execution.config`.

        Raises:
            RunError: If another process is at work on the run, the disk is full, nothing waits for the answer, or
                another checkpointer holds the run.
            StoppedError: If a reward function meets a failure that passes.
            EditorCallError: If a call of the editor fails.
            DamagedError: If a file of the past is damaged. The last three name the command that goes on.
        """
        wanted, trackers = modes_of(modes), trackers_of(self.workspace)
        with self._begun(answer, config, trackers) as begun:
            if begun is not None:
                if begun.config.get("max_concurrency") == 1:  # LangGraph 1.2.22; awaited, it works
                    raise SettingsError(
                        "max_concurrency=1 leaves LangGraph no thread for its stream, so that it would wait for ever: "
                        "leave it out. The loop's nodes run one after the other in any case."
                    )
                for mode, part in begun.graph.stream(**begun.streamed(wanted, control)):
                    begun.look_again()
                    begun.follow.saw(str(mode), part)
                    if mode in wanted:
                        yield str(mode), part

    @contextmanager
    def _begun(
        self, answer: Answer | None, config: RunnableConfig | None, trackers: Mapping[str, Tracker]
    ) -> Iterator[Begun | None]:
        """The graph under the run's lock; None if there is nothing to do. Raises what `stream` raises."""
        added = self._with(config)
        moved_away = self.saver is None and self.place is None and not (self.folder / CHECKPOINTS_FILE).exists()
        with named_disk_problems(self.folder), sole_writer(self.folder) as stream, self.checkpointer() as saver:
            graph = self.compiled(saver)
            try:
                self._refuse_where_unasked(graph, answer, begins_anew=moved_away)
                found = self._beginning(graph, added, answer)
                held = HeldContext(self.context.folder, stream)
                # Also of a run that has ended: a tracker may lack something of it.
                with following(self.workspace, lambda: graph.get_state(self.config).values, trackers) as follow:
                    if found is None:
                        yield None
                    else:
                        with live_page(self.folder, self.workspace) as look_again:
                            yield Begun(graph, saver, *found, held, look_again, follow)
            except (EditorCallError, UnreachableRewardError) as error:
                kind = EditorCallError if isinstance(error, EditorCallError) else StoppedError
                raise kind(f"{error} Every finished step is kept: nslora resume {quoted(self.folder)}") from error
            except DamagedError as error:
                raise DamagedError(
                    f"{error} Nothing was overwritten; go on from the last good checkpoint with: nslora "
                    f"fork {quoted(self.folder)} --at {last_whole_round(graph, self.config, self.workspace)}"
                ) from error
            finally:
                self.workspace.release()

    def _with(self, config: RunnableConfig | None) -> RunnableConfig:
        """The run's config with what a caller adds. Raises SettingsError if that names another place to go on from."""
        if config is not None and not isinstance(config, Mapping):
            raise SettingsError(f"config={config!r}: wanted a dict such as {{'tags': [...], 'callbacks': [...]}}.")
        configurable = (config or {}).get("configurable") or {}
        if named := [key for key in OWN_KEYS if key in configurable]:
            raise SettingsError(
                f"config names a {named[0]}: a Run goes on from the newest checkpoint of its own thread "
                f"({self.thread}). Leave it out, or invoke build_graph() by hand to go on from another checkpoint."
            )
        return {**self.config, **(config or {}), "configurable": {**configurable, **self.config["configurable"]}}

    def _refuse_where_unasked(self, graph: Graph, answer: Answer | None, *, begins_anew: bool) -> None:
        seen = graph.get_state(self.config)
        traces = [name for name in (QUESTION_FILE, "decisions.jsonl") if (self.folder / name).exists()]
        if traces and not seen.values and not begins_anew and not (self.origin and self.origin["round"] > 0):
            where = "this checkpointer" if self.saver else described(read_run_file(self.folder).get("checkpoints"))
            raise RunError(
                f"{self.folder} has begun under another checkpointer than {where} ({traces[0]} is there): "
                "go on with that one, as Run.open(folder, checkpoints=...) or with the graph itself. If it is "
                f"lost, move {' and '.join(traces)} away, and the run begins again from its records."
            )
        if answer is not None and not seen.interrupts:
            raise RunError(f"{self.folder} waits for no answer: leave out answer, or look at question() first.")

    def _beginning(
        self, graph: Graph, config: RunnableConfig, answer: Answer | None
    ) -> tuple[Any, RunnableConfig] | None:
        """The input and the config that the graph is called with; None if nothing is left to do."""
        seen = graph.get_state(self.config)
        if seen.values.get("status") == "finished" and not seen.next:  # else nodes of the user's own come after
            refuse_lost_rounds(self.folder, seen.values)
            show_rounds(self.folder, seen.values["rounds"])
            whole = (self.folder / "result" / "test.jsonl").is_file()
            if (report := report_of(self.folder, seen.values["rounds"])) and _is_of(report, seen.values):
                if whole:
                    return None
                shutil.rmtree(self.folder / "result")
            # It is another branch's, or somebody removed it or a part of it: the last node makes it again, from the
            # same state.
            end = next((each for each in line_of(graph, self.config) if "finish" in each.next), None)
            if end is None:
                raise RunError(f"{self.folder} has lost its result, and the checkpoint that it could be made from.")
            config = {**config, "configurable": {**config["configurable"], **end.config["configurable"]}}
        refuse_changed_checks(self.folder, self.workspace.task)
        check_records(self.folder)
        if not seen.values and self.origin and self.origin["round"] > 0:
            raise RunError(
                f"{self.folder} has lost the checkpoints that it was begun with: fork again, into another folder."
            )
        if not seen.interrupts:
            return None if seen.values else first_state_of(self.workspace), config
        return None if answer is None else (Command(resume=_storable(answer)), config)

    def finish(self, answer: Answer | None = None, **options: Any) -> dict[str, Any]:
        """Run to the end and return the report. Args as in `stream`. Raises RunError if a person is asked."""
        for _ in self.stream(answer=answer, **options):
            pass
        return self.ended()

    def ended(self) -> dict[str, Any]:
        """The report of the run that has come to its end.

        Raises RunError if it has stopped before: to ask a person, or at a breakpoint of the user's graph.
        """
        with self.checkpointer() as saver:
            seen = self.compiled(saver).get_state(self.config)
        if seen.interrupts:
            value = seen.interrupts[0].value
            asked = value if isinstance(value, Mapping) else {}
            problem = f"{asked['problem']} " if asked.get("problem") else ""
            answer = "{'answer': 'accept'}" if "answers" in asked else "answer"
            raise RunError(
                f"{problem}The run {self.folder} waits for a person: look at question(), then resume({answer})."
                f"{OUTWARD if var_child_runnable_config.get() else ''}"
            )
        if seen.next:
            raise RunError(
                f"The run {self.folder} stopped before {', '.join(seen.next)}, at a breakpoint of its graph "
                "(interrupt_before, interrupt_after): adapt() or resume() goes on."
            )
        return self.report()

    def allow(self, max_rounds: int) -> None:
        """Give the run another limit of rounds, and open it again if it has ended.

        The result of an earlier end is set aside as `result.CHECKPOINT`; the next report says how often the test split
        has been looked at.

        Raises:
            SettingsError: If `max_rounds` is no number of rounds.
            RunError: If the run has done as many rounds already, or another process works on it.
        """
        record = read_run_file(self.folder)
        settings = read_settings(**{**record["settings"], "max_rounds": max_rounds})
        refuse_changed_checks(self.folder, self.workspace.task)
        with sole_writer(self.folder), self.checkpointer() as saver:
            graph = self.compiled(saver)
            values = graph.get_state(self.config).values
            if (done := values.get("round", 0)) >= settings.max_rounds:
                raise RunError(f"{self.folder} has done {done} rounds: max_rounds={max_rounds} allows no further one.")
            write_json(self.folder / RUN_FILE, {**record, "settings": settings.model_dump(mode="json")})
            self.workspace.settings = settings
            if values.get("status") == "finished":
                set_aside(self.folder)
                changes = {"status": "running", "stop": "", "decision": None}
                graph.update_state(self.config, changes, as_node="monitor")

    def connect(self, **engine: Any) -> None:
        """Give the run other addresses of servers (replies=), or another launch command (launch=).

        Raises:
            SettingsError: If they cannot be used.
            RunError: If another process works on the run.
        """
        record = read_run_file(self.folder)
        known = record["settings"].get("engine", {})
        settings = read_settings(**{**record["settings"], "engine": {**known, **engine}})
        with sole_writer(self.folder):
            write_json(self.folder / RUN_FILE, {**record, "settings": settings.model_dump(mode="json")})
        self.workspace.settings = settings
        vars(self.workspace).pop("policy", None)  # it was connected with the old ones

    def question(self) -> Any:
        """What an `approve` node asks: {"kind", "round", "diff", "screening", ...}; None if nothing waits.

        If a chat model asks the person, what it gave to `interrupt`.
        """
        with self.checkpointer() as saver:
            interrupts = self.compiled(saver).get_state(self.config).interrupts
        return interrupts[0].value if interrupts else None

    def state(self) -> AdaptationState | None:
        """The newest state, None before the first checkpoint."""
        with self.checkpointer() as saver:
            values: Any = self.compiled(saver).get_state(self.config).values
        return values or None

    def history(self) -> list[StateSnapshot]:
        """The newest checkpoint and all that it grew from, newest first; other branches are left out."""
        with self.checkpointer() as saver:
            return line_of(self.compiled(saver), self.config)

    def restore(self) -> None:
        """Bring back records of rounds that pruned or expired checkpoints held, from `decisions.jsonl`.

        Raises RunError if that file does not hold this branch's rounds, or another process works on the run.
        """
        with sole_writer(self.folder), self.checkpointer() as saver:
            graph = self.compiled(saver)
            values = graph.get_state(self.config).values
            if not values:
                raise RunError(
                    f"{self.folder} has no checkpoint left to bring records back into: move decisions.jsonl away, and "
                    "the run begins again from its records."
                )
            written, there, done = read_jsonl(self.folder / "decisions.jsonl"), values["rounds"], values["round"]
            records = written[:done]  # a kill may leave one that the state does not count yet
            kept = next((each["candidate"] for each in reversed(records) if each["kept"]), values["start"])
            whole = len(written) in (done, done + 1) and records[done - len(there) :] == there
            if not whole or kept != values["kept"]:
                raise RunError(
                    f"The records of {self.folder} cannot be brought back: decisions.jsonl does not hold the {done} "
                    "rounds of this branch. Fork from a checkpoint that is whole, or begin another run."
                )
            if len(there) < done:
                graph.update_state(self.config, {"rounds": {"__overwrite__": records}})

    def report(self) -> dict[str, Any]:
        """`result/report.json` as a dict. Raises RunError while the run, on its newest branch, has no result."""
        return report_in(self.folder, self.state())


def modes_of(modes: str | Sequence[str]) -> list[Any]:
    """Stream modes as a list. Raises SettingsError if LangGraph knows one of them not, and would stream nothing."""
    found, known = [modes] if isinstance(modes, str) else list(modes), get_args(StreamMode)
    if strange := [mode for mode in found if mode not in known]:
        raise SettingsError(f"modes={strange[0]!r} is no stream mode: known are {', '.join(known)}.")
    return found


def report_in(folder: Path, state: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The report of the finished run in `folder`. Raises RunError if the run, on its newest branch, has no result.

    state: the newest. None: that in the run's own file of checkpoints, if there is one.
    """
    thread, path = read_run_file(folder).get("thread", OLD_THREAD), folder / CHECKPOINTS_FILE
    report = report_of(folder, read_jsonl(folder / "decisions.jsonl"))
    if report is None:
        raise RunError(f"The run {folder} has no result yet: let it finish (nslora resume {quoted(folder)}).")
    if state is None and path.exists():
        with sqlite_checkpoints(path) as saver:
            state = build_graph(checkpointer=saver).get_state({"configurable": {"thread_id": thread}}).values
    if state:
        refuse_lost_rounds(folder, dict(state))
        if not _is_of(report, state):
            raise RunError(
                f"The run {folder} has no result yet on its newest branch, and result/ is another one's: let it finish "
                f"(nslora resume {quoted(folder)})."
            )
    return report


def _is_of(report: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Whether a report is about this state, by content."""
    return (
        state["status"] == "finished"
        and report["result"] == state["best"]
        and same_rounds(report["rounds"], state["rounds"])
        and (not state["stop"] or report["stop"] == state["stop"])
    )


def _storable(answer: Answer) -> Any:
    """An answer as checkpoints keep it: a Prompt as its document. Raises RunError for what JSON cannot hold."""
    if isinstance(answer, Mapping) and isinstance(prompt := answer.get("prompt"), Prompt):
        answer = {**answer, "prompt": prompt.render()}
    try:
        json.dumps(answer, ensure_ascii=False).encode()  # half a surrogate pair would be kept as another character
    except (TypeError, ValueError) as error:
        raise RunError(f"The answer cannot be kept ({error}): give text, numbers, lists and dicts.") from error
    return answer
