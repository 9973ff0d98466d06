"""The result of a finished run, asked in this process: a file of questions, or a dialogue with the base beside it."""

import json
from collections.abc import Iterator
from pathlib import Path

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from nslora.graph.runs.export import pair_of
from nslora.graph.runs.merge_prompt import taken
from nslora.tools.errors import ExportError, RunError, SettingsError
from nslora.tools.export.answers import answer_in_lots
from nslora.tools.export.chat import ROLES, PairChat, streamed
from nslora.tools.export.pair import refuse_existing
from nslora.tools.files import sha256_of_json, write_jsonl
from nslora.tools.inference.weights import Notify
from nslora.tools.tasks.examples import RowReader
from nslora.tools.tasks.readers import read_rows
from nslora.tools.tasks.spec import MAX_NEW_TOKENS, Fields
from nslora.tools.workspace.record import read_run_file, recorded_settings
from nslora.tools.workspace.tables import write_table
from nslora.tools.workspace.workspace import open_workspace

REPLY = "reply"


def answer_file(
    folder: Path,
    questions: Path,
    target: Path,
    *,
    overwrite: bool = False,
    base: str | None = None,
    notify: Notify = lambda _: None,
) -> int:
    """Answer a file of questions with a run's result, and write its rows with a column `reply`.

    The rows are read as those of the run's task are: its columns, its question put together from several of them. The
    replies so far lie beside `target`, so that a process that was killed is gone on with.

    Args:
        folder: The run's folder.
        questions: Rows, in any format that a task has.
        target: A new .csv or .jsonl file.
        overwrite: Replace `target`.
        base: The base, if it lies elsewhere now.
        notify: Called with what is under way.

    Returns:
        The number of replies.

    Raises:
        SettingsError: If `target` has another ending.
        TaskError: If a row asks nothing.
        ExportError: If `target` is there, or cannot be written.
    """
    if target.suffix not in (".csv", ".jsonl"):
        raise SettingsError(f"--out {target}: wanted a name that ends in .csv or .jsonl.")
    refuse_existing(target, overwrite=overwrite)
    pair, run = pair_of(folder, base=base), taken(folder).run
    settings = recorded_settings(run, read_run_file(run))
    reader, length = _reader_of(run)
    rows = read_rows(questions)
    dialogues = [pair.prompt.messages(reader.question(row), row.history) for row in rows]
    policy = pair.load(settings.device, notify)
    named = sha256_of_json([policy.fingerprint, pair.adapter_name, length, dialogues])[:16]
    kept = target.with_name(f".{target.name}.{named}.partial")
    replies = answer_in_lots(
        lambda lot: policy.generate(lot, adapter=pair.adapter_name, max_new_tokens=length).replies,
        dialogues,
        kept,
        on_progress=lambda done, total: notify(f"{done} of {total} answered"),
    )
    columns = list(dict.fromkeys(name for row in rows for name in row.columns))
    name = REPLY if REPLY not in columns else f"result_{REPLY}"
    answered = [{**row.columns, name: reply} for row, reply in zip(rows, replies, strict=True)]
    try:
        if target.suffix == ".csv":
            write_table(target, [*columns, name], ({key: _flat(row[key]) for key in row} for row in answered))
        else:
            write_jsonl(target, answered)
    except OSError as error:
        raise ExportError(f"{target} cannot be written ({error.strerror}); the replies are kept in {kept}.") from error
    kept.unlink(missing_ok=True)
    return len(replies)


def _reader_of(folder: Path) -> tuple[RowReader, int]:
    """How the run's task reads a row, and its longest reply; a task of Python objects has the usual columns."""
    try:
        task = open_workspace(folder, needs_editor=False).task
    except RunError:
        return RowReader(Fields()), MAX_NEW_TOKENS
    return task.reader, task.max_new_tokens


def _flat(value: object) -> object:
    return value if isinstance(value, str | int | float | None) else json.dumps(value, ensure_ascii=False, default=str)


class SideBySide:
    """A dialogue with the bare base and with the result; each remembers its own replies.

    Attributes:
        chat: The result.
    """

    def __init__(self, chat: PairChat) -> None:
        self.chat = chat
        self._told: dict[str, list[BaseMessage]] = {"base": [], "result": []}

    def shown(self, question: str) -> str:
        """What the result is sent, as the model reads it."""
        return self.chat.policy.format.render(self.chat.sent([*self._told["result"], HumanMessage(question)]))

    def ask(self, question: str) -> Iterator[tuple[str, Iterator[str]]]:
        """Yield "base" and "result", each with the pieces of its reply; they are to be read in this order."""
        for name in self._told:
            yield name, self._pieces(name, question)

    def _pieces(self, name: str, question: str) -> Iterator[str]:
        told = [*self._told[name], HumanMessage(question)]
        reply = ""
        if name == "base":
            dialogue = [{"role": ROLES[each.type], "content": str(each.text)} for each in told]
            pieces = streamed(self.chat.policy, dialogue, None, self.chat.max_tokens)
        else:
            pieces = (str(chunk.text) for chunk in self.chat.stream(told))
        for piece in pieces:
            reply += piece
            yield piece
        self._told[name] = [*told, AIMessage(reply)]

    def forget(self) -> None:
        """Begin a new dialogue."""
        self._told = {name: [] for name in self._told}


def opened_chat(folder: Path, *, base: str | None = None, max_tokens: int = 256) -> SideBySide:
    """The dialogue with a finished run's result. Raises RunError, ModelError."""
    return SideBySide(chat_model_of(folder, base=base, max_tokens=max_tokens))


def chat_model_of(folder: Path, *, base: str | None = None, max_tokens: int = 512) -> PairChat:
    """A finished run's result as a LangChain chat model; nothing is loaded before the first request."""
    run = taken(folder).run
    settings = recorded_settings(run, read_run_file(run))
    return PairChat(pair=pair_of(folder, base=base), device=settings.device, max_tokens=max_tokens)
