"""One prompt edit by each editor: what it earns, what it costs, and how many of its documents can be used.

    make bench-editor                 (about six hours on two cores; an interrupted benchmark continues)

A cell is one edit: a task, a policy, an editor and a sample. The edit is an ordinary run with the strategy "textgrad"
and one round; the run is left after its evaluation, so that the test split stays unread. `random rows` and GEPA's
reflection prompt are no editors of this project: their prompt is the start prompt of a run without rounds. An edit sees
train rows only, so its validation reward is a fair estimate. Base replies are the same in all cells of a task and a
policy, and are generated once. Finished cells lie in records/editor.jsonl.

A document is usable if it parses, differs from the prompt in force and contradicts nothing that the reward said about
the rows shown. Rewards of two editors are compared question by question, each question's mean over the samples;
intervals are 95 % bootstraps over questions.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fetch_models import fetch, model_file
from form import README, Figure, commit, figure, in_readme, machine, publish
from validation_runs import EMBEDDED, Measured, measured, task_of

from nslora.tools.editor.call_log import CHECK
from nslora.tools.editor.llama_cpp import LlamaCppChat, llama_cpp_chat
from nslora.tools.evaluation.paired_tests import bootstrap_interval, mean
from nslora.tools.evaluation.rollouts import grade
from nslora.tools.files import append_jsonl, read_jsonl
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.rewards.score import Graded
from nslora.tools.tasks.task import Task

FOLDER, RECORDS = Path("build/bench/editor"), Path(__file__).parent / "records" / "editor.jsonl"
SAMPLES = 3
TASKS = ("handbook-label", "banking12", "restaurant8k")
POLICIES = (EMBEDDED, "qwen-0.5b")
EDITOR_MODEL = "qwen-1.5b"
RULES, REFLECT, OWN, TWO_STAGES = "rules", "1.5B, reflect", "the policy, reflect", "1.5B, textgrad"
RANDOM_ROWS, GEPA = "two random rows", "1.5B, GEPA's prompt"
EDITORS = (RULES, RANDOM_ROWS, REFLECT, OWN, GEPA, TWO_STAGES)
TIMEOUT_S = 1800.0  # of a request, while other work is on
GEPA_ROWS = 3  # of one reflection, GEPA's own default


@dataclass(frozen=True)
class Cell:
    """One edit."""

    task: str
    policy: str
    editor: str
    sample: int

    @property
    def folder(self) -> Path:
        """Where its run lies, for `nslora show`."""
        name = "".join(each if each.isalnum() or each in ".-" else "-" for each in self.editor)
        return FOLDER / self.task / self.policy / f"{name}-{self.sample}"


def cells() -> Iterator[Cell]:
    """All cells; the samples of an editor follow each other, since llama.cpp reads an equal request once."""
    for policy in POLICIES:
        for task in TASKS:
            for editor in EDITORS:
                yield from (Cell(task, policy, editor, sample) for sample in range(SAMPLES))


def finished() -> dict[Cell, dict[str, Any]]:
    return {Cell(each["task"], each["policy"], each["editor"], each["sample"]): each for each in read_jsonl(RECORDS)}


def run_cell(cell: Cell) -> dict[str, Any]:
    """Make the edit of a cell, measure it on validation, and record it."""
    task = task_of(cell.task)
    base = measured(replace(cell, editor="base").folder, task, cell.policy, max_rounds=0, seed=cell.sample)
    began = time.monotonic()
    if cell.editor in (RANDOM_ROWS, GEPA):
        prompt, spent = (random_rows if cell.editor == RANDOM_ROWS else reflected_by_gepa)(cell, base)
        spent["seconds"] = time.monotonic() - began
        shown = replace(task, prompt=prompt) if prompt else task
        after = measured(cell.folder, shown, cell.policy, max_rounds=0, seed=cell.sample) if prompt else None
    else:
        after, prompt, spent = edited(cell, task)
    policy = base.run.workspace.policy
    added = [
        policy.count_tokens(prompt.messages(row.question)) - policy.count_tokens(task.prompt.messages(row.question))
        for row in (task.train if prompt else ())
    ]
    return {
        **asdict(cell),
        "base": base.rewards,
        "rewards": (after or base).rewards,
        "usable": int(prompt is not None),
        **spent,
        "added_tokens": round(mean(added), 1) if added else 0.0,
        "processor": machine()["processor"],
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def chat_of(cell: Cell) -> LlamaCppChat:
    """The editor of `gguf:`; each sample has a seed of its own, and its server stays for the next cell."""
    return llama_cpp_chat(str(model_file(EDITOR_MODEL)), timeout_s=TIMEOUT_S, seed=cell.sample)


def edited(cell: Cell, task: Task) -> tuple[Measured | None, Prompt | None, dict[str, Any]]:
    """One round of the strategy "textgrad", without remade data."""
    after = measured(
        cell.folder,
        task,
        cell.policy,
        max_rounds=1,
        seed=cell.sample,
        strategy="textgrad",
        remade_per_row=0,
        editor={RULES: "rules", OWN: "policy"}.get(cell.editor) or chat_of(cell),
        editing={"protocol": "textgrad" if cell.editor == TWO_STAGES else "reflect", "timeout_s": TIMEOUT_S},
    )
    state = after.run.state()
    assert state is not None
    (round_one,) = state["rounds"]
    calls = [each for each in read_jsonl(after.run.folder / "editor.jsonl") if each["purpose"] != CHECK]
    spent = {
        "calls": len(calls),
        "replies": sum(not each["purpose"].startswith("critique") for each in calls),
        "input_tokens": sum(each["input_tokens"] for each in calls),
        "output_tokens": sum(each["output_tokens"] for each in calls),
        "seconds": sum(each["seconds"] for each in calls),
        "error": round_one["error"],
    }
    if round_one["candidate"] is None:
        return None, None, spent
    return after, after.run.workspace.prompts.get(round_one["candidate"]["prompt"]), spent


def failures(cell: Cell, base: Measured) -> list[Graded]:
    """Train failures of the base, drawn by the cell's sample."""
    task = base.run.workspace.task
    failed = {each.id: each.reply for each in base.evaluation.failed("train")}
    drawn = random.Random(cell.sample).sample(sorted(failed), len(failed))
    return grade(task.reward, [base.run.workspace.examples[i] for i in drawn], [failed[i] for i in drawn])


def random_rows(cell: Cell, base: Measured) -> tuple[Prompt | None, dict[str, Any]]:
    """Two train rows at random, each with a right reply: what costs no thought."""
    right = [(each.example.question, each.score.suggestion) for each in failures(cell, base)]
    shown = tuple(Demonstration(question, reply) for question, reply in right if reply)[:2]
    none = {"calls": 0, "replies": 0, "input_tokens": 0, "output_tokens": 0, "error": None}
    return replace(base.run.workspace.task.prompt, demonstrations=shown), none


def reflected_by_gepa(cell: Cell, base: Measured) -> tuple[Prompt | None, dict[str, Any]]:
    """GEPA's reflection on three failing rows, by its own code; the instruction becomes the system turn."""
    from gepa.strategies.instruction_proposal import InstructionProposalSignature

    prompt = base.run.workspace.task.prompt
    examples = [
        {"Inputs": each.example.question, "Generated Outputs": each.reply, "Feedback": each.score.feedback}
        for each in failures(cell, base)[:GEPA_ROWS]
    ]
    request = InstructionProposalSignature.prompt_renderer(
        {"current_instruction_doc": prompt.system or "Answer the question.", "dataset_with_feedback": examples}
    )
    reply = chat_of(cell).invoke(str(request))
    found = InstructionProposalSignature.output_extractor(str(reply.text))["new_instruction"]
    usage = reply.usage_metadata or {}
    spent = {
        "calls": 1,
        "replies": 1,
        "input_tokens": usage.get("input_tokens", 0),
        "output_tokens": usage.get("output_tokens", 0),
        "error": None if found else "The reply has no instruction.",
    }
    return (replace(prompt, system=found) if found and found != prompt.system else None), spent


# The table


def of(records: Sequence[Mapping[str, Any]], task: str, policy: str, editor: str) -> list[Mapping[str, Any]]:
    return [r for r in records if (r["task"], r["policy"], r["editor"]) == (task, policy, editor)]


def by_question(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Mean reward of each question over the samples, in the order of the questions' ids."""
    return [mean([each["rewards"][name] for each in records]) for name in sorted(records[0]["rewards"])]


def difference(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Mean difference in reward with its paired 95 % interval; both sides take the samples that both have."""
    both = {each["sample"] for each in ours} & {each["sample"] for each in theirs}
    a, b = (by_question([each for each in side if each["sample"] in both]) for side in (ours, theirs))
    gains = [x - y for x, y in zip(a, b, strict=True)]
    return (mean(gains), *bootstrap_interval(gains))


def table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| task | policy | editor | edits | reward | less rules | 95 % | usable | calls | tokens in + out | seconds "
        "| tokens added to each row |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task in TASKS:
        for policy in POLICIES:
            rules = of(records, task, policy, RULES)
            for editor in EDITORS:
                if not (rows := of(records, task, policy, editor)):
                    continue
                average = {
                    name: mean([float(each[name]) for each in rows])
                    for name in ("calls", "input_tokens", "output_tokens", "seconds", "added_tokens")
                }
                gain, low, high = difference(rows, rules) if rules and editor != RULES else (0.0, 0.0, 0.0)
                beside = f"{gain:+.3f} | [{low:+.3f}, {high:+.3f}]" if rules and editor != RULES else " | "
                replies = sum(max(1, each["replies"]) for each in rows)
                lines.append(
                    f"| {task} | {policy} | {editor} | {len(rows)} | {mean(by_question(rows)):.3f} | {beside} "
                    f"| {sum(each['usable'] for each in rows)} of {replies} | {average['calls']:.1f} "
                    f"| {average['input_tokens']:.0f} + {average['output_tokens']:.0f} | {average['seconds']:.0f} "
                    f"| {average['added_tokens']:+.0f} |"
                )
    return lines


def figures(records: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """The goals of the small editor."""
    found = []
    small = [each for each in records if each["editor"] == REFLECT]
    usable = sum(each["usable"] for each in small) / max(1, sum(max(1, each["replies"]) for each in small))
    found.append(figure("usable replies of 1.5B, reflect", usable, at_least=0.9))
    for task in TASKS:
        for policy in POLICIES:
            ours = of(records, task, policy, REFLECT)
            for other in (RULES, RANDOM_ROWS, GEPA):
                if not ours or not (theirs := of(records, task, policy, other)):
                    continue
                gain, low, high = difference(ours, theirs)
                ahead = task == "banking12" and other != GEPA
                name = f"{task}, {policy}: 1.5B, reflect, less {other} [{low:+.3f}, {high:+.3f}]"
                goal, holds = ("interval above 0", low > 0) if ahead else ("interval not below 0", high >= 0)
                found.append(Figure(name, gain, "reward", goal, holds))
    both = [
        mean([each["input_tokens"] + each["output_tokens"] for each in records if each["editor"] == editor] or [0.0])
        for editor in (REFLECT, TWO_STAGES)
    ]
    if all(both):
        found.append(figure("tokens of an edit: reflect / textgrad", both[0] / both[1], at_most=0.5))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="run nothing: write the tables from the records")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="stop after so many samples of each cell")
    parser.add_argument("--policy", choices=POLICIES, action="append", help="only this policy")
    parser.add_argument("--task", choices=TASKS, action="append", help="only this task")
    parser.add_argument("--editor", choices=EDITORS, action="append", help="only this editor")
    options = parser.parse_args()
    wanted = [
        cell
        for cell in cells()
        if cell.sample < options.samples
        and cell.policy in (options.policy or POLICIES)
        and cell.task in (options.task or TASKS)
        and cell.editor in (options.editor or EDITORS)
    ]
    left = [] if options.table else [cell for cell in wanted if cell not in finished()]
    for name in {EDITOR_MODEL, *(cell.policy for cell in left)} - {EMBEDDED} if left else ():
        fetch(name)
    for number, cell in enumerate(left, 1):
        began = time.monotonic()
        record = run_cell(cell)
        append_jsonl(RECORDS, record)
        print(
            f"{number} of {len(left)}: {cell.task}, {cell.policy}, {cell.editor}, sample {cell.sample}: "
            f"{mean(list(record['base'].values())):.3f} -> {mean(list(record['rewards'].values())):.3f} "
            f"({time.monotonic() - began:.0f} s){' ' + record['error'] if record['error'] else ''}",
            flush=True,
        )
    records = list(finished().values())
    README.write_text(in_readme("bench-editor", table(records)), encoding="utf-8")
    sys.exit(0 if publish("editor", figures(records), "one edit by each editor") else 1)


if __name__ == "__main__":
    main()
