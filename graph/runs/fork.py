"""Forks: a new run that shares another one's past up to a round, and decides otherwise from there."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from langgraph.graph import START

from nslora.graph.build import Graph
from nslora.graph.projection import refuse_lost_rounds
from nslora.graph.runs.checkpoints import OBJECT, check_checkpoints, copy_past
from nslora.graph.runs.copy_files import copy_past as copy_files
from nslora.graph.runs.copy_files import copy_records
from nslora.graph.runs.execution import Execution
from nslora.graph.runs.folder import could_begin, make_folder, read_settings, refuse_unusable, write_record
from nslora.graph.runs.history import line_of, past_of
from nslora.graph.runs.loops import Saver
from nslora.graph.state import Changes
from nslora.tools.editor.chat_models import editor_name
from nslora.tools.editor.wrapped_chat import Chat
from nslora.tools.errors import RunError, SettingsError
from nslora.tools.files import write_json, write_jsonl
from nslora.tools.policy import Policy
from nslora.tools.router.monitoring_signal import Update, signal_of
from nslora.tools.schema import KINDS
from nslora.tools.training.settings import LoraSettings
from nslora.tools.workspace.record import RUN_FILE, read_run_file
from nslora.tools.workspace.settings import RunSettings
from nslora.tools.workspace.workspace import Workspace, refuse_changed_checks, register

R = TypeVar("R", bound=Execution)  # a Run comes back as a Run
# The shape of an adapter, which further training cannot change.
SHAPE = ("rank", "alpha", "dropout", "targets", "top_blocks", "use_rslora", "use_dora")


@dataclass(frozen=True)
class Beginning(Generic[R]):
    """How a new run takes over from another, and from which round on.

    Attributes:
        source: The other run.
        folder: Of the new run.
        round: That is decided again.
        kind: What it is recorded as.
        reuse_training: Take the source's adapters for the same training jobs.
        checkpoints: As in `Run.create`. None: where the source has them, under a thread of the new run's own; a file in
            the source's folder becomes one in the new folder.
    """

    source: R
    folder: Path
    round: int
    kind: Literal["fork", "replay"]
    reuse_training: bool = True
    checkpoints: str | Saver | None = None


def fork(
    source: R,
    folder: str | Path,
    *,
    at: int,
    action: Literal["lora", "textgrad"] | None = None,
    editor: str | Chat | None = None,
    settings: Mapping[str, Any] | None = None,
    checkpoints: str | Saver | None = None,
) -> R:
    """A new run in `folder` with the past of `source` before round `at`, which is decided again.

    The source is only read; see `Run.fork` for the arguments. An editor object is always asked again; a name only if
    it is another name than the source's.
    """
    if action not in (None, *KINDS):
        raise SettingsError(f"action={action!r}: wanted {' or '.join(KINDS)}.")
    changed = dict(settings or {})
    values = merged(read_run_file(source.folder)["settings"], changed)
    if editor is not None:
        values["editor"] = editor if isinstance(editor, str) else editor_name(editor)
    read = read_settings(**values)
    changed |= {name: getattr(read, name) for name in ("strategy", "track") if name in changed}  # by their names
    new = begin(
        Beginning(source, Path(folder), at, "fork", checkpoints=checkpoints),
        read,
        editor=None if isinstance(editor, str) else editor,
        keeps_editor=editor is None,
        origin={"action": action, "settings": changed},
    )
    complete(new, action)
    return new


@contextmanager
def _undone_if_it_fails(undo: Callable[..., None], *given: Any) -> Iterator[None]:
    """Delete a folder or a thread if the block fails: half a past would look like a run that has yet to begin."""
    try:
        yield
    except BaseException:
        undo(*given)
        raise


def complete(new: Execution, action: Literal["lora", "textgrad"] | None) -> None:
    """Force the action, if there is one, and put on record that the run has all that it begins with.

    A fork that was killed before that cannot be resumed.
    """
    with _undone_if_it_fails(shutil.rmtree, new.folder, True):
        if action is not None:
            force(new, action)
        record = read_run_file(new.folder)
        record["origin"] = new.origin = {**record["origin"], "whole": True}
        write_json(new.folder / RUN_FILE, record)


def _same_editor(old: RunSettings, new: RunSettings) -> bool:
    """Whether what the editor said under the old settings is what it would say under the new ones.

    The records go by the editor's name and the request; this is what else a reply depends on.
    """

    def asked(settings: RunSettings) -> tuple[object, ...]:
        editing = settings.editing
        own = (*_policy_of(settings), editing.policy_reply_tokens)
        return (
            settings.editor_base_url,
            editing.structured,
            editing.reply_tokens,
            own if settings.editor == "policy" else None,
        )

    return asked(old) == asked(new)


def begin(
    beginning: Beginning[R],
    settings: RunSettings,
    *,
    editor: Chat | None = None,
    keeps_editor: bool = True,
    policy: Policy | None = None,
    origin: Mapping[str, Any] | None = None,
) -> R:
    """Make the new run: its record, the files of its past, and its checkpoints up to the decision of the round."""
    source, folder, given = beginning.source, beginning.folder, beginning.checkpoints
    check_checkpoints(given)
    own = given if given is not None else source.saver or source.place
    place, own_saver = (own, None) if isinstance(own, str) else (None, own)
    old = source.workspace.settings
    _refuse_another_run(beginning, settings)
    with source.checkpointer() as saver:
        graph = source.compiled(saver)
        past = past_of(line_of(graph, source.config), source.folder, beginning.round)
        at = past[0]
        refuse_lost_rounds(source.folder, at.values)
        if beginning.round > 0 and at.values["kept"]["adapter"] is not None:
            _refuse_other_shape(old.lora, settings.lora, beginning.round)
        chat = editor or (source.workspace.editor_chat if keeps_editor else None)
        is_object = editor is not None or (keeps_editor and bool(read_run_file(source.folder)["editor_is_object"]))
        workspace = _checked(beginning, settings, chat, policy, without_editor=is_object and chat is None)
        make_folder(folder)
        write_record(
            workspace,
            editor_is_object=is_object,
            graph_is_object=source.graph is not None,
            checkpoints=place if own_saver is None else OBJECT,
            origin={
                "run": source.folder.name,
                "thread": source.thread,
                "kind": beginning.kind,
                "round": beginning.round,
                **(origin or {}),
                "whole": False,
            },
        )
        with _undone_if_it_fails(shutil.rmtree, folder, True):  # from here on it is this run's own
            workspace.prompts.add(workspace.task.prompt)
            copy_files(source.folder, folder, [each.values for each in past], beginning.round - 1)
            # Two objects of one name may be asked at other servers, or at another temperature.
            known = editor is None or editor is source.workspace.editor_chat
            copy_records(
                source.folder,
                folder,
                trained=beginning.reuse_training,
                editor=beginning.kind == "fork" and known and _same_editor(old, settings),
            )
            new = type(source)(folder, register(workspace), own_saver, place, source.graph)
            found = saver.get_tuple(at.config)
            if found is None:
                raise RunError(f"The checkpoint before round {beginning.round} of {source.folder} is gone.")
            if rounds := at.values.get("rounds"):
                write_jsonl(folder / "decisions.jsonl", rounds)
            with new.checkpointer() as target, _undone_if_it_fails(target.delete_thread, new.thread):
                copy_past(saver, target, found, new.thread)
                if beginning.kind == "fork":
                    reopen(
                        new.compiled(target),
                        new,
                        new_editor=editor is not None or not keeps_editor or settings.editing != old.editing,
                    )
    return new


def _refuse_another_run(beginning: Beginning[R], settings: RunSettings) -> None:
    """Raise RunError if the settings, or today's checks, make what the source measured another thing."""
    source, old = beginning.source, beginning.source.workspace.settings
    if beginning.round > 0 and _policy_of(settings) != _policy_of(old):
        raise RunError(
            f"The rewards of {source.folder} are those of {old.model} as it was loaded there: a fork with "
            "another model, thinking, device or dtype begins at 0, with the first evaluation."
        )
    if settings.adapter != old.adapter:
        raise RunError(f"{source.folder} starts from the adapter {old.adapter}: begin a new run from another one.")
    if beginning.round > 0:
        refuse_changed_checks(source.folder, source.workspace.task)


def _checked(
    beginning: Beginning[R], settings: RunSettings, chat: Chat | None, policy: Policy | None, *, without_editor: bool
) -> Workspace:
    """The new run's workspace, after every check that can be made before something is written.

    without_editor: whether the editor is an object that was not given, so that it cannot be asked.
    """
    source = beginning.source
    old, task = source.workspace, source.workspace.task
    workspace = Workspace(
        beginning.folder.resolve(),
        settings,
        task,
        policy=policy or old.given_policy,
        editor_chat=chat,
        notify=old.notify,
    )
    if not without_editor:
        judged = bool(task.reward.judges)  # its rows, in the source
        could_begin(workspace, ask_reward=not judged, judges=beginning.kind == "fork")
        del workspace.editor  # its record is copied later
    if beginning.round > 0 and workspace.regression_hash != old.regression_hash:
        raise RunError(
            f"What {source.folder} kept has not answered these anchor questions: a fork with another "
            "anchor set begins at 0, with the first evaluation."
        )
    refuse_unusable(beginning.folder)
    return workspace


def _policy_of(settings: RunSettings) -> tuple[object, ...]:
    """The settings that change what a policy replies."""
    return settings.model, settings.thinking, settings.device.device, settings.device.dtype


def _refuse_other_shape(old: LoraSettings, new: LoraSettings, number: int) -> None:
    """Raise RunError if round `number` would give a kept adapter another shape."""
    for name in SHAPE:
        was, wanted = getattr(old, name), getattr(new, name)
        if was != wanted:
            raise RunError(
                f"lora.{name} cannot become {wanted} in round {number}, which goes on with an adapter of "
                f"{was}: fork at a round before the first burst that was kept."
            )


def reopen(graph: Graph, run: Execution, *, new_editor: bool) -> None:
    """Take back a decision to stop: the settings may have changed, so `classify` decides again.

    new_editor: whether the editor, or how it is asked, has changed; the old editor's failures do not count then.
    """
    state = graph.get_state(run.config)
    settings = run.workspace.settings
    changes: Changes = {"approve": settings.approve, **({"editor_failures": 0} if new_editor else {})}
    if "evaluate" not in state.next:
        changes["signal"] = signal_of([Update.of(each) for each in state.values.get("rounds", [])], settings.signal)
    if "finish" in state.next:
        graph.update_state(run.config, {**changes, "stop": "", "decision": None}, as_node="monitor")
    elif any(state.values.get(name) != value for name, value in changes.items()):
        graph.update_state(run.config, changes, as_node=START if "evaluate" in state.next else "monitor")


def force(run: Execution, action: Literal["lora", "textgrad"]) -> None:
    """Let `classify` choose its rows, then overrule its decision."""
    with run.checkpointer() as saver:
        graph = run.compiled(saver)
        graph.invoke(None, run.config, context=run.context, interrupt_after=["classify"], durability="sync")
        decision = graph.get_state(run.config).values["decision"]
        if decision is None:
            raise RunError(f"{run.folder}: there was nothing to decide, so no action can be forced.")
        reason = f"Chosen by hand, in a fork; the strategy said: {decision['action']} ({decision.get('reason', '')})"
        graph.update_state(
            run.config, {"decision": {**decision, "action": action, "reason": reason}, "stop": ""}, as_node="classify"
        )


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with the fields of `new`, group by group."""
    result = dict(old)
    for key, value in new.items():
        result[key] = (
            merged(result[key], value) if isinstance(value, Mapping) and isinstance(result.get(key), dict) else value
        )
    return result
