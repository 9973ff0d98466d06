"""A person may accept, reject or rewrite an update before it is measured, at once or a day later."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from langgraph.types import Command
from typer.testing import CliRunner

from nslora.graph.build import build_graph
from nslora.graph.cli.app import app
from nslora.graph.runs.run import Run
from nslora.nodes.approve import read_answer
from nslora.tools.errors import PromptError, RunError
from nslora.tools.files import write_json
from nslora.tools.inference.flops import TERA
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.policy import Generated
from nslora.tools.prompt import Prompt
from nslora.tools.workspace.record import QUESTION_FILE
from nslora.tools.workspace.task_clock import CLOCK_FILE
from nslora.tools.workspace.workspace import Workspace, register

Begin = Callable[..., Run]


def asked(begin: Begin, **settings: Any) -> tuple[Run, dict[str, Any]]:
    run = begin(**{"approve": "edits", "strategy": "textgrad", "max_rounds": 1, **settings})
    with pytest.raises(RunError, match="waits for a person"):
        run.adapt()
    question = run.question()
    assert question is not None
    return run, question


def in_another_process(run: Run) -> Run:
    """The run as a process that knows only its folder finds it."""
    register(Workspace(run.folder.resolve(), run.workspace.settings, run.workspace.task))
    return Run.open(run.folder)


def test_the_question_shows_the_diff_and_a_screening_and_an_accepted_edit_is_measured(begin: Begin) -> None:
    run, question = asked(begin)
    assert question["kind"] == "textgrad"
    assert "+# Demonstration 1" in question["diff"]
    assert question["screening"]["rows"] == 6
    assert 0 <= question["screening"]["proposed"] <= 1
    clock = json.loads((run.folder / CLOCK_FILE).read_text())
    write_json(run.folder / CLOCK_FILE, {**clock, "seconds": 1000})
    report = in_another_process(run).resume({"answer": "accept"}).report
    assert report["rounds"][0]["wall_s"] > 1000  # asking is work of the run, and counts
    assert report["rounds"][0]["reward_after"] is not None
    assert run.question() is None


def test_what_a_person_is_shown_counts_as_compute_and_is_reserved_under_a_cap(begin: Begin) -> None:
    run, question = asked(begin)
    assert question["screening"]["flop"] > 0
    report = run.resume({"answer": "accept"}).report
    unasked = begin("unasked", strategy="textgrad", max_rounds=1).adapt().report
    asking_tflop = report["cost"]["tflop"] - unasked["cost"]["tflop"]
    assert asking_tflop == pytest.approx(question["screening"]["flop"] / TERA)
    # Room for the edit alone, not for the screening beside it.
    cap = unasked["cost"]["tflop"] + asking_tflop / 2
    capped = begin("capped", approve="edits", strategy="textgrad", max_rounds=1, max_tflop=cap)
    try:
        capped.adapt()
    except RunError:
        capped.resume({"answer": "accept"})
    assert capped.report()["cost"]["tflop"] <= cap


def test_a_rejected_edit_is_not_measured_and_its_rows_are_not_trained_on(begin: Begin) -> None:
    run, _ = asked(begin)
    report = in_another_process(run).resume({"answer": "reject"}).report
    assert report["rounds"][0]["error"] == "rejected by a person"
    assert report["rounds"][0]["reward_after"] is None
    state = run.state()
    assert state is not None
    assert not (state["remade"] or {}).get("waiting")


def test_a_persons_own_prompt_takes_the_place_of_the_editors(begin: Begin) -> None:
    run, _ = asked(begin)
    own = Prompt(system="Answer with a dash first.")
    with pytest.raises(RunError, match="waits"):
        run.resume({"answer": "rewrite", "prompt": "# no such section\nx"})
    question = run.question()
    assert question is not None
    assert question["problem"]
    report = run.resume({"answer": "rewrite", "prompt": own.render()}).report
    assert report["rounds"][0]["candidate"]["prompt"] == own.hash
    assert "by a person" in report["rounds"][0]["note"]


def test_a_stop_during_a_rewrite_keeps_the_answer(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = asked(begin)
    control, generate = RunControl(), LocalPolicy.generate

    def stopped(self: LocalPolicy, *dialogues: Any, **options: Any) -> Generated:
        control.request_drain("test")
        return generate(self, *dialogues, **options)

    monkeypatch.setattr(LocalPolicy, "generate", stopped)
    monkeypatch.setattr("nslora.tools.evaluation.rollouts.STORED_REPLIES", 1)
    own = Prompt(system="Answer with two dashes first.")
    with pytest.raises(GraphDrained):
        list(run.stream(control=control, answer={"answer": "rewrite", "prompt": own.render()}))
    monkeypatch.undo()
    assert run.question() is None
    assert run.resume().report["rounds"][0]["candidate"]["prompt"] == own.hash


def test_the_shell_asks_and_takes_the_answer(begin: Begin, tmp_path: Path) -> None:
    run, _ = asked(begin, strategy="lora", approve="updates")
    shell = CliRunner()
    shown = shell.invoke(app, ["resume", str(run.folder)])
    assert "--accept" in shown.output
    assert "screening on 6 train rows" in shown.output
    answered = shell.invoke(app, ["resume", str(run.folder), "--accept"])
    assert answered.exit_code == 0, answered.output
    assert run.report()["rounds"][0]["action"] == "lora"


def test_a_run_that_is_begun_in_the_shell_ends_with_its_question(
    begin: Begin, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    task = begin("settled", max_rounds=0).workspace.task
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(
        app,
        [
            "run",
            task.source,
            "--model",
            str(tiny_folder()),
            "--folder",
            str(tmp_path / "my run"),
            "--strategy",
            "textgrad",
            "--max-rounds",
            "1",
            "--approve",
            "edits",
            "--set",
            "device.device=cpu",
        ],
    )
    assert shown.exit_code == 3, shown.output
    assert f"nslora resume '{tmp_path / 'my run'}' --accept" in shown.output


def test_rows_that_were_remade_under_a_replaced_prompt_are_set_aside(begin: Begin) -> None:
    run, _ = asked(begin)
    before = run.state()
    assert before is not None
    assert before["proposal"]
    assert before["proposal"]["new_rows"]
    proposed = before["proposal"]["candidate"]
    assert proposed
    run.resume({"answer": "rewrite", "prompt": Prompt(system="Say nothing of use.").render()})
    after = run.state()
    assert after is not None
    assert after["remade"] is None or after["remade"]["prompt"] != proposed["prompt"]


def test_an_answer_that_nothing_waits_for_is_refused(finished: Run) -> None:
    answered = CliRunner().invoke(app, ["resume", str(finished.folder), "--accept"])
    assert "waits for no answer" in str(answered.exception)


@pytest.mark.parametrize("when", ["finished", "new", "on its way"])
def test_no_answer_is_lost_without_a_word(begin: Begin, finished: Run, when: str) -> None:
    run = finished if when == "finished" else begin(approve="edits", strategy="lora", max_rounds=1)
    if when == "on its way":
        stream = run.stream()
        next(stream)
        stream.close()
    with pytest.raises(RunError, match="waits for no answer"):
        run.resume({"answer": "reject"})
    with pytest.raises(RunError, match="waits for no answer"):
        list(run.stream(answer={"answer": "accept"}))


def test_a_run_that_another_checkpointer_holds_is_not_begun_anew(begin: Begin) -> None:
    run, saver = begin(approve="edits", strategy="textgrad", max_rounds=2), InMemorySaver()
    graph = build_graph(checkpointer=saver)
    graph.invoke(run.first_state(), run.config, context=run.context)
    question = (run.folder / QUESTION_FILE).read_text()
    for other in (run, Run.open(run.folder, checkpoints=InMemorySaver())):
        for answer in (None, {"answer": "accept"}):
            with pytest.raises(RunError, match=r"begun under another checkpointer .*question.json is there"):
                other.resume(answer)
    shown = CliRunner().invoke(app, ["resume", str(run.folder), "--accept"])
    assert "begun under another checkpointer" in str(shown.exception)
    assert (run.folder / QUESTION_FILE).read_text() == question
    graph.invoke(Command(resume={"answer": "accept"}), run.config, context=run.context)
    with pytest.raises(RunError, match=r"question.json is there.*question.json and decisions.jsonl away"):
        run.adapt()  # the second round's question
    assert (
        Run.open(run.folder, checkpoints=saver).resume({"answer": "accept"}).report["rounds"][1]["action"] == "textgrad"
    )


@pytest.mark.parametrize("given", [True, False])
def test_a_run_whose_checkpoints_are_lost_begins_again_as_it_is_told(begin: Begin, given: bool) -> None:
    saver = InMemorySaver() if given else None
    run = begin(max_rounds=2, checkpoints=saver)
    for _, update in run.stream(("updates",)):
        if (update.get("monitor") or {}).get("round"):
            break
    if given:
        run = Run.open(run.folder, checkpoints=InMemorySaver())
        with pytest.raises(RunError, match=r"move decisions\.jsonl away"):
            run.adapt()
        (run.folder / "decisions.jsonl").unlink()
    else:
        for file in run.folder.glob("checkpoints.sqlite*"):
            file.unlink()
    assert len(run.adapt().report["rounds"]) == 2


def test_an_answer_of_another_form_is_told_which_one_is_wanted() -> None:
    call = {"name": "approve", "args": {"answer": "accept"}, "id": "1", "type": "tool_call"}
    agents = ({"decisions": [{"type": "approve"}]}, [{"type": "accept", "args": None}], call, [call])
    halves = ({"answer": "rewrite"}, {"answer": "accept", "prompt": Prompt("Be brief.").render()}, {"prompt": "x"})
    for answer in (*agents, *halves, "ACCEPT", "", None, True, 7, ["accept"], {"answer": ["accept"]}):
        with pytest.raises(PromptError, match=r"^The answer was .*: wanted \{'answer': 'accept'\}, .* 'reject'"):
            read_answer(answer, None)  # type: ignore[arg-type]


def test_an_answer_that_cannot_be_used_is_told_and_a_prompt_may_be_given_as_one(begin: Begin) -> None:
    run, _ = asked(begin)
    with pytest.raises(RunError, match=r"The answer was {'answer': 'yes'}: wanted .* The run .* waits for a person"):
        run.resume({"answer": "yes"})
    with pytest.raises(RunError, match="The answer cannot be kept"):
        run.resume({"answer": "rewrite", "prompt": lambda: "x"})
    for prompt, problem in (
        ("# System\n\nBe \ud83d\n\n# Question template\n\n{question}\n", "cannot be kept"),
        (7, "The prompt was a int"),
        (Prompt("Be \x1b[31mred."), "control characters"),
    ):
        with pytest.raises(RunError, match=problem):
            run.resume({"answer": "rewrite", "prompt": prompt})
    mine = Prompt("Reply between < and >.")
    (only,) = run.resume({"answer": "rewrite", "prompt": mine}).report["rounds"]
    assert only["person"] == {"answer": "rewrite", "prompt": mine.hash}
