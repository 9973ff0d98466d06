"""A finished run as a pair that can be exported, answer questions and be served: read from its folder alone."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nslora.graph.runs.execution import report_in
from nslora.graph.runs.merge_prompt import kept_report, taken
from nslora.tools.editor.llama_cpp import LlamaCppServer, refuse_no_llama_cpp
from nslora.tools.errors import ExportError, RunError
from nslora.tools.evaluation.paired_tests import mean
from nslora.tools.evaluation.rollouts import grade
from nslora.tools.export.clients import ask_folder, ask_server
from nslora.tools.export.gguf_file import GgufType, refuse_shape, write_gguf
from nslora.tools.export.hub import licence_of, push, write_card
from nslora.tools.export.merged import NAMING_FILE, Dtype, Merged
from nslora.tools.export.ollama import modelfile
from nslora.tools.export.pair import Pair, refuse_existing, written_whole
from nslora.tools.export.serving import command_of, started
from nslora.tools.files import quoted, read_json, read_text, write_text
from nslora.tools.inference.weights import Notify
from nslora.tools.prompt import parse
from nslora.tools.training.adapters import AdapterStore
from nslora.tools.workspace.record import POLICY_FILE, read_run_file, recorded_settings
from nslora.tools.workspace.tables import read_table
from nslora.tools.workspace.workspace import open_workspace

CHECKED = 10  # test questions that `--check` asks
UNKNOWN_LENGTH = 256  # tokens of a reply, if the task that limits them is not at hand


def pair_of(folder: str | Path, *, base: str | None = None) -> Pair:
    """The pair that a finished run chose.

    Args:
        folder: The run's folder, or its `result/merged_prompt`.
        base: The base, if it lies elsewhere now; None: as the run's settings name it.

    Raises:
        RunError: If the folder is no run, the run has no result yet, or its merged prompt was not kept.
        DamagedError: If the adapter is missing or damaged.
    """
    path, result, name = taken(Path(folder))
    settings, report = recorded_settings(path, read_run_file(path)), report_in(path)
    if result.parent != path:
        report = kept_report(result)
    chosen = report["result"]["adapter"]
    adapter = AdapterStore(path.resolve() / "adapters").path(chosen) if chosen else None
    prompt = parse(read_text(result / "prompt.md"))
    policy = read_json(path / POLICY_FILE) if (path / POLICY_FILE).exists() else {}
    return Pair(
        name=name,
        model=base or settings.model,
        fingerprint=policy.get("fingerprint", ""),
        adapter=adapter,
        prompt=prompt,
        thinking=settings.thinking,
        facts=_facts(path, report, prompt.hash),
    )


def _facts(path: Path, report: dict[str, Any], prompt: str) -> dict[str, Any]:
    """What an export says of itself."""
    test = report["test"]
    return {
        "run": path.resolve().name,
        "task": report["task"]["name"],
        "task_hash": report["task"]["hash"],
        "prompt": prompt,
        "adapter": report["result"]["adapter"],
        "adapter_sha256": report.get("adapter_sha256"),
        "test": {which: test[which]["all_checks"] for which in ("base", "result")} | {"questions": test["questions"]},
        "versions": report["versions"],
    }


@dataclass(frozen=True)
class Targets:
    """What to write, and in which types; None writes nothing of that kind."""

    merged: Path | None = None
    gguf: Path | None = None
    ollama: Path | None = None
    dtype: Dtype | None = None
    gguf_type: GgufType = "f16"

    def gguf_in(self, name: str) -> str:
        """Name of the GGUF file beside the Modelfile."""
        return f"{name}.{self.gguf_type}.gguf"


def write_exports(
    pair: Pair, targets: Targets, *, overwrite: bool = False, notify: Notify = lambda _: None
) -> Iterator[str]:
    """Write each export, whole or not at all, and say what stands where.

    Raises:
        ExportError: If something is there already, the disk is full, or the shape of the model is not known.
        ModelError, RunError: If the base cannot be loaded, or is another one than the run's.
    """
    for target in filter(None, (targets.merged, targets.gguf, targets.ollama)):
        refuse_existing(target, overwrite=overwrite)
    whole = Merged.of(pair, notify)  # what is refused by shape is known by now, before anything is written
    if targets.gguf or targets.ollama:
        refuse_shape(whole.model.config)
    name = targets.gguf_in(pair.name)
    ollama = modelfile(whole.chat, pair.prompt, name) if targets.ollama else ""
    if targets.merged:
        with written_whole(targets.merged, overwrite=overwrite) as new:
            whole.save(new, targets.dtype)
        yield f"wrote    {quoted(targets.merged)}: for transformers, TRL and vLLM"
    if targets.gguf:
        with written_whole(targets.gguf, overwrite=overwrite, file=True) as new:
            write_gguf(whole, new, targets.gguf_type)
        yield f"wrote    {quoted(targets.gguf)} ({targets.gguf_type}): for llama.cpp and LM Studio"
    if targets.ollama:
        with written_whole(targets.ollama, overwrite=overwrite) as new:
            write_gguf(whole, new / name, targets.gguf_type)
            write_text(new / "Modelfile", ollama)
        yield f"wrote    {quoted(targets.ollama)}: ollama create {pair.name} -f {quoted(targets.ollama / 'Modelfile')}"


def push_merged(pair: Pair, folder: Path, repository: str, *, public: bool = False) -> str:
    """Write the model card of a merged folder, upload it, and give its address. Raises ExportError."""
    facts = read_json(folder / NAMING_FILE)
    write_card(folder, facts, pair.prompt.render(), licence_of(facts["base"]))
    return push(folder, repository, public=public)


def refuse_no_check(folder: Path, targets: Targets) -> None:
    """Raise RunError or ModelError if exports of this run cannot be checked: before any is written."""
    if not (taken(folder).result / "test.csv").exists():
        raise RunError(
            f"{folder} has no result/test.csv, since an earlier version finished it: write its result anew with "
            f"nslora replay {quoted(folder)}, and export that."
        )
    if file := targets.gguf or targets.ollama:
        refuse_no_llama_cpp(file)


def check_exports(folder: Path, targets: Targets, questions: int = CHECKED) -> Iterator[str]:
    """Ask exports the first test questions, as a client that sends them alone, and say how the replies compare.

    The run's own replies stand in `test.csv` of its result, or of its merged prompt. Scores are those of the task's
    reward.

    Raises:
        DamagedError: If the run has no test.csv.
        ExportError: If an export does not answer, or other than the run: none of its replies is the run's own.
    """
    run, result, name = taken(folder)
    rows = read_table(result / "test.csv")[:questions]
    dialogues = [_asked(row) for row in rows]
    graded, length = _grading(run, rows)
    wanted = [row["result_reply"].strip() for row in rows]
    yield f"run      {_scored(graded(wanted))}"
    asks: dict[str, Callable[[], list[str]]] = {}
    if targets.merged:
        asks[targets.merged.name] = partial(ask_folder, targets.merged, dialogues, max_new_tokens=length)
        if command_of("vllm"):
            asks[f"{targets.merged.name} behind vLLM"] = partial(_by_vllm, targets.merged, dialogues, length)
    file = targets.gguf or (targets.ollama and targets.ollama / targets.gguf_in(name))
    if file:
        asks[file.name] = partial(_by_llama_cpp, file, dialogues, length)
    for place, ask in asks.items():
        replies = ask()
        same = sum(reply == each for reply, each in zip(replies, wanted, strict=True))
        yield f"{place}: {same} of {len(rows)} replies are the run's own; {_scored(graded(replies))}"
        if not same:
            raise ExportError(
                f"{place} gives none of the run's replies, such as {replies[0]!r} in the place of {wanted[0]!r}: it is "
                "served otherwise than the run was measured."
            )


def _asked(row: Mapping[str, str]) -> list[dict[str, str]]:
    """The dialogue of a row of test.csv, without any prompt."""
    history = json.loads(row["history"]) if row.get("history") else []
    return [*({"role": role, "content": text} for role, text in history), {"role": "user", "content": row["question"]}]


def _grading(folder: Path, rows: Sequence[Mapping[str, str]]) -> tuple[Callable[[list[str]], float | None], int]:
    """How replies are scored, and how long they may be; a task that was made of Python objects scores nothing."""
    try:
        task = open_workspace(folder, needs_editor=False).task
    except RunError:
        return (lambda _: None), UNKNOWN_LENGTH
    by_id = {row.id: row for row in task.test}
    examples = [by_id[row["id"]] for row in rows]
    return (
        lambda replies: mean([float(each.score.passed) for each in grade(task.reward, examples, replies)])
    ), task.max_new_tokens


def _scored(share: float | None) -> str:
    return "not scored, since the task is a Python object" if share is None else f"all checks {share:.2f}"


def _by_vllm(folder: Path, dialogues: list[list[dict[str, str]]], length: int) -> list[str]:
    server = started("vllm", folder, folder.name)
    try:
        return ask_server(server.base_url, dialogues, max_new_tokens=length)
    finally:
        server.stop()


def _by_llama_cpp(file: Path, dialogues: list[list[dict[str, str]]], length: int) -> list[str]:
    refuse_no_llama_cpp(file)
    server = LlamaCppServer(file)
    try:
        return ask_server(server.base_url, dialogues, max_new_tokens=length)
    finally:
        server.stop()
