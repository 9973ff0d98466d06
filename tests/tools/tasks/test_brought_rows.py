"""Rows, files and templates as people of this field bring them: read with the right value, or refused in a sentence."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nslora.tools.errors import NsloraError
from nslora.tools.tasks.check import check_task
from nslora.tools.tasks.task import Task, load_task, task_from_rows

ROWS = range(10)
CHOICES = ["red", "green", "blue", "grey"]


def template(text: str) -> str:
    return f"# Question template\n\n{text}"


def asked(task: Task) -> list[str]:
    return [turn["content"] for turn in task.prompt.dialogue(task.train[0])]


def task_of(row_of: Any, **options: Any) -> Task:
    rows = [row_of(n) for n in ROWS]
    return task_from_rows(train=rows[:-4], validation=rows[-4:-2], test=rows[-2:], **options)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


IN_CONTEXT = {"prompt": template("{context}\n{question}")}
WITH_CHOICES = {"prompt": template("{question}\n{choices}"), "reward": ["choice"]}
LETTERED = "Which, 0?\nA. red\nB. green\nC. blue\nD. grey"
# name: (row, options, all turns that are asked of the first row, its right answers)
TAKEN: dict[str, tuple[Any, dict[str, Any], list[str], tuple[str, ...]]] = {
    "SQuAD": (
        lambda n: {"id": f"s{n}", "context": f"It was {n}.", "question": f"What, {n}?",
                   "answers": {"text": [f"n{n}", f"the n{n}"], "answer_start": [7, 3]}},
        IN_CONTEXT, ["It was 0.\nWhat, 0?"], ("n0", "the n0"),
    ),
    "TriviaQA": (
        lambda n: {"question": f"Who, {n}?", "answer": {"value": f"N{n}", "normalized_value": "x", "aliases": ["A."],
                                                         "normalized_aliases": ["a"], "type": "WikipediaEntity"}},
        {}, ["Who, 0?"], ("N0", "A."),
    ),
    "HotpotQA": (
        lambda n: {"question": f"Who, {n}?", "answer": "Ada", "supporting_facts": {"title": ["a"], "sent_id": [0]},
                   "context": {"title": ["A", "B"], "sentences": [["One.", " Two."], ["Three."]]}},
        {"prompt": template("{context.sentences}\n{question}")}, ["One. Two.\nThree.\nWho, 0?"], ("Ada",),
    ),
    "DROP": (
        lambda n: {"passage": f"p{n}", "question": f"q{n}", "answers_spans": {"spans": ["a", "b"], "types": ["span"]}},
        {"prompt": template("{passage} {question}"), "fields": {"reference": "answers_spans.spans"}},
        ["p0 q0"], ("a", "b"),
    ),
    "MMLU, the answer is a number": (
        lambda n: {"question": f"Which, {n}?", "choices": CHOICES, "answer": n % 4}, WITH_CHOICES, [LETTERED], ("A",),
    ),
    "HellaSwag, the number is a text": (
        lambda n: {"question": f"Which, {n}?", "endings": CHOICES, "label": str(n % 4)},
        {"prompt": template("{question}\n{endings}"), "reward": ["choice"], "fields": {"reference": "label"}},
        [LETTERED], ("A",),
    ),
    "ARC": (
        lambda n: {"question": f"Which, {n}?", "choices": {"text": CHOICES, "label": ["A", "B", "C", "D"]},
                   "answerKey": "ABCD"[n % 4]},
        WITH_CHOICES | {"fields": {"reference": "answerKey"}}, [LETTERED], ("A",),
    ),
    "choices whose answer is a text": (
        lambda n: {"question": f"Which, {n}?", "choices": CHOICES, "answer": CHOICES[n % 4]},
        {"prompt": template("{question}\n{choices}")}, ["Which, 0?\nred\ngreen\nblue\ngrey"], ("red",),
    ),
    "GSM8K": (
        lambda n: {"question": f"{n + 1} and 2?", "answer": f"{n + 1}+2=<<{n + 1}+2={n + 3}>>{n + 3}\n#### {n + 3}"},
        {"reward": ["numeric"]}, ["1 and 2?"], ("1+2=<<1+2=3>>3\n#### 3",),
    ),
    "MATH": (
        lambda n: {"problem": f"Find $x^{{{n}}}$", "solution": f"It is \\boxed{{{n}}}"},
        {"prompt": template('Use \\textbf{care}: {problem}\nEnd with \\boxed{answer}. {"a": [1]}'),
         "fields": {"question": "problem", "reference": "solution"}, "reward": ["numeric"]},
        ['Use \\textbf{care}: Find $x^{0}$\nEnd with \\boxed{answer}. {"a": [1]}'], ("It is \\boxed{0}",),
    ),
    "BoolQ": (
        lambda n: {"question": f"is it {n}", "context": f"It is {n}.", "answer": bool(n % 2)},
        IN_CONTEXT | {"reward": ["label"]}, ["It is 0.\nis it 0"], ("false",),
    ),
    "Dolly": (
        lambda n: {"instruction": f"Sum up {n}.", "context": "Long.", "response": f"r{n}", "category": "qa"},
        {}, ["Sum up 0.\n\nLong."], ("r0",),
    ),
    "LLaMA-Factory with history": (
        lambda n: {"system": "S", "instruction": f"q{n}", "input": "", "output": f"n{n}", "history": [["a", "b"]]},
        {}, ["S", "a", "b", "q0"], ("n0",),
    ),
    "DPO": (lambda n: {"prompt": f"p{n}", "chosen": f"c{n}", "rejected": f"r{n}"}, {}, ["p0"], ("c0",)),
    "UltraFeedback": (
        lambda n: {"prompt": f"p{n}", "chosen": [user(f"p{n}"), said(f"c{n}")], "rejected": [user(f"p{n}"), said("r")],
                   "score_chosen": 8.0},
        {}, ["p0"], ("c0",),
    ),
    "KTO, good rows": (
        lambda n: {"prompt": f"p{n}", "completion": f"c{n}", "label": True}, {}, ["p0"], ("c0",),
    ),
    "verl": (
        lambda n: {"data_source": "gsm8k", "prompt": [user(f"q{n}")], "ability": "math",
                   "reward_model": {"style": "rule", "ground_truth": str(n)}, "extra_info": {"index": n}},
        {"fields": {"reference": "reward_model.ground_truth"}}, ["q0"], ("0",),
    ),
    "OpenAI fine-tuning": (
        lambda n: {"messages": [{"role": "developer", "content": "S"}, user(f"q{n}"), said("a", weight=0), user("And?"),
                                said(f"n{n}", weight=1)]},
        {}, ["S", "q0", "a", "And?"], ("n0",),
    ),
    "messages as JSON in a text": (
        lambda n: {"messages": json.dumps([user(f"q{n}"), said(f"n{n}")])}, {}, ["q0"], ("n0",),
    ),
    "line ends of Windows": (
        lambda n: {"question": f"q{n}\r\nb", "reference": "x\r\ny"}, {}, ["q0\nb"], ("x\ny",),
    ),
    "line ends of Windows in messages": (
        lambda n: {"messages": [user("a\r\nb"), said("c\rd"), user(f"q{n}\r\n"), said("x\r\ny")]},
        {}, ["a\nb", "c\nd", "q0\n"], ("x\ny",),
    ),
    "an empty column beside the answers": (
        lambda n: {"question": f"q{n}", "answers": None, "answer": f"n{n}"}, {}, ["q0"], ("n0",),
    ),
    "answers in an object in an object": (
        lambda n: {"question": f"q{n}", "reference": {"answer": {"value": f"n{n}", "aliases": ["z"]}}},
        {}, ["q0"], ("n0", "z"),
    ),
    "values of NumPy": (
        lambda n: {"question": np.str_(f"q{n}"), "reference": np.array([f"n{n}"])}, {}, ["q0"], ("n0",),
    ),
    "objects under json_equal": (
        lambda n: {"question": f"q{n}", "reference": {"text": "é", "n": n, "in": {"none": None, "list": [1]}}},
        {"reward": ["json_equal"]}, ["q0"], ('{"text": "é", "n": 0, "in": {"none": null, "list": [1]}}',),
    ),
    "a prompt without headings": (
        lambda n: {"text": f"t{n}", "reference": "x"},
        {"prompt": "### Text\n{text}\n### JSON such as {\"a\": 1}", "fields": {"question": "text"}},
        ['### Text\nt0\n### JSON such as {"a": 1}'], ("x",),
    ),
    "a system turn without headings": (
        lambda n: {"question": f"q{n}", "reference": "x"}, {"prompt": 'Say {"a": 1}.'}, ['Say {"a": 1}.', "q0"], ("x",),
    ),
    "a number of 31 digits": (
        lambda n: {"question": f"q{n}", "reference": 10**30 + n}, {"reward": ["numeric"]}, ["q0"], ("1" + "0" * 30,),
    ),
    "code and sets in the prompt": (
        lambda n: {"question": f"q{n}", "reference": "x", "n": n},
        {"prompt": template("int main() { return 0; } {a, b} {1} \\frac{n!}{2} ${n}$ {question}")},
        ["int main() { return 0; } {a, b} {1} \\frac{n!}{2} $0$ q0"], ("x",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_rows_of_public_data_are_read_with_the_right_value(name: str) -> None:
    row_of, options, turns, answers = TAKEN[name]
    task = task_of(row_of, **options)
    row = task.train[0]
    assert (asked(task), row.answers or (row.reference,)) == (turns, answers)
    assert not any("does not see the columns" in note for note in check_task(task).notes)
    assert all(task.reward(row, answer).passed for answer in answers)


PLAIN = {"question": "Who?", "reference": "x"}
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "SQuAD 2.0 without an answer": (
        lambda n: {"question": f"q{n}", "answers": {"text": ["a"] if n else [], "answer_start": []}}, {},
        "train row 1: the reference is empty",
    ),
    "numbers of choices that are not asked": (
        lambda n: {"question": f"Which, {n}?", "choices": CHOICES, "answer": n % 4}, {},
        "the reference is the number of one of the choices, which are not asked: put {choices} into",
    ),
    "KTO, a bad row": (
        lambda n: {"prompt": f"p{n}", "completion": "c", "label": bool(n % 2)}, {},
        "train row 1: the completion is labelled false",
    ),
    "OpenAssistant's trees": (
        lambda n: {"message_tree_id": f"m{n}", "prompt": {"text": "hi", "role": "prompter", "replies": []}}, {},
        "no field 'question' (found: message_tree_id, prompt)",
    ),
    "Natural Questions": (
        lambda n: {"question": {"text": f"q{n}"}, "reference": "x"}, {}, "has the type dict, but text is needed",
    ),
    "a whole object in the prompt": (
        lambda n: {**PLAIN, "context": {"sentences": [f"{n}"]}}, IN_CONTEXT, "by its path, as in {context.sentences}.",
    ),
    "a list under json_equal": (
        lambda n: {**PLAIN, "reference": [1, 2]}, {"reward": ["json_equal"]},
        "train row 1: the reference is a list, which may be one JSON value or several right answers",
    ),
    "infinity": (lambda n: {**PLAIN, "reference": float("inf")}, {}, "train row 1: the reference is inf"),
    "a date": (lambda n: {**PLAIN, "reference": datetime.date(2020, 1, 1)}, {}, "has the type date, but"),
    "bytes": (lambda n: {**PLAIN, "reference": b"x"}, {}, "has the type bytes, but text is needed"),
    "messages that are no JSON": (lambda n: {"messages": "[{]"}, {}, "train row 1: the messages are invalid JSON"),
    "a column in other capitals": (
        lambda n: {**PLAIN, "Context": "c"}, IN_CONTEXT, "uses {context}, which is no column (columns: question,",
    ),
    **{
        f"the template {text}": (lambda n: {**PLAIN, "ctx": "c", "n": [n]},
                                 {"prompt": template(f"{text} {{question}}")},
                                 "which is not filled in: write a column as {name} alone")
        for text in ("{% if ctx %}c{% endif %}", "{{ ctx | upper }}", "{n:>5}", "{n[0]}", "{ctx!r}", "%(ctx)s", "$ctx")
    },
    "an expression in the system turn": (
        lambda n: {**PLAIN, "ctx": "c"}, {"prompt": "# System\n\n{{ ctx|upper }}\n\n# Question template\n\n{question}"},
        "The prompt has {{ ctx|upper }}, which is not filled in",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_right_value_is_refused_in_a_sentence(name: str) -> None:
    row_of, options, part = REFUSED[name]
    with pytest.raises(NsloraError) as caught:
        task_of(row_of, **options)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


RECORDS = [{"question": f"Who, {n}?", "answer": f"n{n}"} for n in ROWS]
LINES = "\n".join(map(json.dumps, RECORDS))
TABLE = [("question", "answer"), *((f'"Who, {n}?"', f"n{n}") for n in ROWS)]
QUOTED = "question,answer\r\n" + "\r\n".join(f'"Who, {n}?","n{n}"' for n in ROWS)
# name: (file, content, what the refusal says; None: the rows are RECORDS)
FILES: dict[str, tuple[str, str | bytes, str | None]] = {
    **{
        f"CSV with {name}": ("r.csv", "\n".join(mark.join(row) for row in TABLE), None)
        for name, mark in (("commas", ","), ("semicolons", ";"), ("tabs", "\t"), ("bars", "|"), ("spaces", ", "))
    },
    "CSV of Windows with a mark": ("r.csv", b"\xef\xbb\xbf" + QUOTED.encode(), None),
    "CSV of old Macs": ("r.csv", QUOTED.replace("\r\n", "\r"), None),
    "CSV with empty lines": ("r.csv", QUOTED.replace("\r\n", "\n\n"), None),
    "CSV with a comma in a header": (
        "r.csv", "\n".join(";".join((*row, "1")) for row in TABLE).replace("1", '"a, b"', 1), None
    ),
    "CSV in Latin-1": ("r.csv", QUOTED.replace("Who", "Wér").encode("latin-1"), "the file is not UTF-8"),
    "CSV in UTF-16": ("r.csv", QUOTED.encode("utf-16"), "the file is not UTF-8"),
    "CSV without a header": ("r.csv", QUOTED.partition("\r\n")[2], "no field 'question' (found: Who, 0?, n0)"),
    "CSV without rows": ("r.csv", "question,answer\n", "the split 'train' has no rows"),
    "JSON with a list in it": ("r.json", json.dumps({"version": "1", "data": RECORDS}), None),
    "JSON lines that are called JSON": ("r.json", LINES, None),
    "JSON lines with empty lines": ("r.jsonl", b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n\r\n").encode(), None),
    "JSON by columns": ("r.json", json.dumps({"question": ["a"], "answer": ["b"]}), "or an object with one such list"),
    "JSON that is called JSON lines": ("r.jsonl", json.dumps(RECORDS, indent=1), "write one JSON object per line"),
    "JSON lines with commas": ("r.jsonl", LINES.replace("\n", ",\n"), "r.jsonl:1: invalid JSON"),
    "JSON lines of lists": ("r.jsonl", '["a", "b"]\n', "got list, but a row is an object"),
    "a number out of range": ("r.jsonl", '{"question": "a", "answer": 1e400}\n' * 9, "r.jsonl:1: the reference is inf"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_whatever_wrote_them(tmp_path: Path, name: str) -> None:
    file, content, part = FILES[name]
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({"data": file, "split": {}}))
    if part is None:
        task = load_task(tmp_path)
        rows = [*task.train, *task.validation, *task.test]
        assert {(row.question, row.reference) for row in rows} == {
            (each["question"], each["answer"]) for each in RECORDS
        }
        return
    with pytest.raises(NsloraError) as caught:
        load_task(tmp_path)
    assert part in str(caught.value)


def test_thinking_beside_a_message_is_the_references_thinking() -> None:
    row = task_of(lambda n: {"messages": [user(f"q{n}"), said("7", reasoning_content="It may be 7.")]}).train[0]
    assert (row.reference, row.thinking) == ("7", "<think>\nIt may be 7.\n</think>\n\n")


def test_solutions_under_exact_match_are_noted() -> None:
    task = task_of(TAKEN["GSM8K"][0])
    assert any("`reward: [numeric]` judges the answer alone" in note for note in check_task(task).notes)
