"""What is told of runs in odd states: taken back, waiting, robbed of their results, or given the state of another."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nslora.graph.build import build_graph
from nslora.graph.cli.app import app
from nslora.graph.runs.compare import compare
from nslora.graph.runs.fork import fork
from nslora.graph.runs.history import checkpoint_before
from nslora.graph.runs.replay import replay
from nslora.graph.runs.run import Run
from nslora.graph.runs.view import look
from nslora.tools.classifier.verdict_memory import Verdict
from nslora.tools.errors import DamagedError, RunError, SettingsError
from nslora.tools.files import read_json, write_json
from nslora.tools.policies.local import LocalPolicy

Begin = Callable[..., Run]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.endswith((".lock", "-wal", "-shm"))}


def test_a_thread_is_not_run_in_another_runs_folder(begin: Begin) -> None:
    one, other = begin("one", max_rounds=1), begin("other", max_rounds=1)
    before = files_of(other.folder)
    with one.checkpointer() as saver, pytest.raises(RunError, match="is another run's than"):
        build_graph(saver).invoke(one.first_state(), one.config, context=other.context)
    assert files_of(other.folder) == before
    assert one.adapt()["stop"]          # nothing was lost


@pytest.mark.parametrize("thread", [
    "my-thread", "3f2b8c4e-1d2a-4b3c-8d9e-0123456789ab", "user-3f2b8c4e-1d2a-4b3c-8d9e-0123456789ab",
    "chat-deadbeef0123", "job-202611261015"])
def test_a_server_may_name_threads_as_it_likes(begin: Begin, thread: str) -> None:
    run = begin("one", max_rounds=0)
    with run.checkpointer() as saver:
        config: Any = {**run.config, "configurable": {"thread_id": thread}}
        assert build_graph(saver).invoke(run.first_state(), config, context=run.context)["status"] == "finished"


def test_a_run_that_was_taken_back_is_not_finished_until_it_ends_again(begin: Begin) -> None:
    run = begin("one", strategy="textgrad", max_rounds=2)
    first = run.adapt()
    with run.checkpointer() as saver:
        graph = build_graph(saver)
        earlier = checkpoint_before(graph, run.config, run.folder, 1).config
        graph.invoke(None, {**run.config, **earlier}, context=run.context, interrupt_after=["monitor"])
    view = look(run.folder)
    assert (view.status, view.stop, len(view.rounds)) == ("stopped", "", 1)
    with pytest.raises(RunError, match="has no result yet"):
        run.report()
    again = run.adapt()
    assert look(run.folder).status == "finished"
    assert [each["evaluation"] for each in again["rounds"]] == [each["evaluation"] for each in first["rounds"]]


def test_a_run_from_before_threads_had_names_is_no_place_for_another(begin: Begin) -> None:
    one, old = begin("one", max_rounds=1), begin("old", max_rounds=1)
    record = read_json(old.folder / "run.json")
    del record["thread"]
    write_json(old.folder / "run.json", record)
    with one.checkpointer() as saver, pytest.raises(RunError, match="whose thread is adaptation"):
        build_graph(saver).invoke(one.first_state(), one.config, context=old.context)


@pytest.mark.parametrize("gone", ["result", "result/report.json", "result/test.jsonl", "decisions.jsonl"])
def test_a_result_that_was_removed_is_made_again(begin: Begin, gone: str) -> None:
    run = begin("one", max_rounds=1)
    first = run.adapt()
    path = run.folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = Run.open(run.folder).adapt()
    assert path.exists()
    assert {key: again[key] for key in ("test", "result", "stop")} == {key: first[key] for key in (
        "test", "result", "stop")}


def test_a_result_that_cannot_be_made_again_is_told(begin: Begin) -> None:
    run = begin("one", max_rounds=0)
    with run.checkpointer() as saver:
        build_graph(saver).invoke(run.first_state(), run.config, context=run.context, durability="exit")
    shutil.rmtree(run.folder / "result")
    with pytest.raises(RunError, match="has lost its result, and the checkpoint"):
        run.adapt()


def test_a_run_that_was_taken_back_from_a_question_waits_no_more(begin: Begin) -> None:
    run = begin("waits", approve="edits", strategy="textgrad", max_rounds=1)
    with pytest.raises(RunError, match="waits for a person"):
        run.adapt()
    with run.checkpointer() as saver:
        graph = build_graph(saver)
        earlier = checkpoint_before(graph, run.config, run.folder, 1).config
        graph.invoke(None, {**run.config, **earlier}, context=run.context, interrupt_after=["classify"])
    assert look(run.folder).status == "stopped"


def test_a_run_that_waits_says_so_and_how_to_answer(begin: Begin) -> None:
    run = begin("waits", approve="edits", strategy="textgrad", max_rounds=1)
    with pytest.raises(RunError, match="waits for a person"):
        run.adapt()
    assert look(run.folder).status == "waiting"
    shell = CliRunner(env={"COLUMNS": "60"})
    shown = shell.invoke(app, ["show", str(run.folder)]).output
    assert f"answer   nslora resume {run.folder} --accept | --reject | --prompt FILE" in shown.splitlines()
    run.resume({"answer": "accept"})
    assert look(run.folder).status == "finished"
    assert not (run.folder / "question.json").exists()
    assert "answer" not in shell.invoke(app, ["show", str(run.folder)]).output


def test_a_list_of_runs_names_each_folder_whole_in_a_narrow_terminal(finished: Run, tmp_path: Path) -> None:
    names = [f"handbook-2026-11-26-{number}" for number in ("101500", "101501")]
    for name in names:
        (tmp_path / name).symlink_to(finished.folder.resolve())
    listed = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["runs", str(tmp_path)]).output
    column = "".join(line.split("│")[-2].strip() for line in listed.splitlines() if "│" in line)
    assert all(str(tmp_path / name) in column for name in names)


def test_a_round_that_never_was_cannot_be_replayed_from(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="never came to round 5: it has 3"):
        replay(finished, tmp_path / "again", begin_at=5)
    assert not (tmp_path / "again").exists()


def test_an_action_that_there_is_not_is_refused(finished: Run, begin: Begin, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="action='LoRA': wanted lora or textgrad"):
        fork(finished, tmp_path / "fork", at=1, action="LoRA")     # type: ignore[arg-type]
    assert not (tmp_path / "fork").exists()
    run = begin("by-hand", max_rounds=2)
    with run.checkpointer() as saver:
        graph = build_graph(saver)
        state = graph.invoke(run.first_state(), run.config, context=run.context, interrupt_after=["classify"])
        with pytest.raises(RunError, match="holds the action 'dance'"):
            graph.update_state(run.config, {"decision": {**state["decision"], "action": "dance"}}, as_node="classify")


@pytest.mark.parametrize("field", [("test", "base"), ("validation", "result"), ("cost", "tflop")])
def test_a_report_that_lacks_a_part_is_damaged(finished: Run, tmp_path: Path, field: tuple[str, str]) -> None:
    copy = shutil.copytree(finished.folder, tmp_path / "copy")
    report = read_json(copy / "result" / "report.json")
    report[field[0]][field[1]] = {}
    if field[1] == "tflop":
        del report["cost"]["tflop"]
    write_json(copy / "result" / "report.json", report)
    with pytest.raises(DamagedError, match=rf"report.json is damaged: it lacks .*{field[0]}\.{field[1]}"):
        look(copy)


@pytest.mark.parametrize("rounds", [[{}], [1], 3, None])
def test_a_report_whose_rounds_are_none_is_damaged(finished: Run, tmp_path: Path, rounds: object) -> None:
    copy = shutil.copytree(finished.folder, tmp_path / "copy")
    write_json(copy / "result" / "report.json", {**read_json(copy / "result" / "report.json"), "rounds": rounds})
    with pytest.raises(DamagedError, match=r"report\.json or"):
        look(copy)


@pytest.mark.parametrize("line", ["[1]", '{"candidate": "result"}', "3"])
def test_scores_and_rounds_that_are_none_are_damaged(finished: Run, tmp_path: Path, line: str) -> None:
    copy = shutil.copytree(finished.folder, tmp_path / "copy")
    (copy / "result" / "test.jsonl").write_text(f"{line}\n")
    with pytest.raises(DamagedError, match=r"test.jsonl is damaged"):
        compare([finished.folder, copy])
    (copy / "decisions.jsonl").write_text(f"{line}\n")
    with pytest.raises(DamagedError, match=r"decisions.jsonl is damaged"):
        look(copy)


def test_a_transcript_is_counted_as_it_goes_through_the_model(tiny_policy: Callable[..., LocalPolicy]) -> None:
    """By hand, in bytes: of the tiny tokenizer each byte and each mark of a turn is a token."""
    policy = tiny_policy()
    question = [{"role": "user", "content": "Who?"}]
    turn = 1 + len("user\nWho?") + 1 + len("\n")
    opening = 1 + len("assistant\n")
    assert policy.count_tokens(question) == turn + opening
    assert policy.count_tokens([*question, {"role": "assistant", "content": "Ada"}]) == turn + opening + 3 + 1


def test_a_run_charges_each_reply_once(begin: Begin) -> None:
    """The first evaluation by hand: every reply of two splits, and every reference of validation, with its prompt."""
    run = begin("one", max_rounds=0)
    report = run.adapt()
    policy, task, prompt = run.lab.policy, run.lab.task, run.lab.task.prompt
    tokens = 0
    for row in (*task.train, *task.validation):
        dialogue = prompt.messages(row.question)
        (reply,) = policy.generate([dialogue], adapter=None, max_new_tokens=task.max_new_tokens).replies
        tokens += len(policy.format.prompt_ids(dialogue)) + len(reply.encode()) + 1
        if row in task.validation:
            tokens += len(policy.format.prompt_ids(dialogue)) + len((row.reference or "").encode()) + 1
    assert report["cost"]["start_tflop"] * 1e12 == pytest.approx(
        tokens * policy.describe()["forward_flop_per_token"])


def test_verdicts_of_a_round_are_those_that_it_went_by(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if 30 edits had mended nothing of what the classifier had called form.
    monkeypatch.setattr("nslora.nodes.classify.remembered", lambda *_: [Verdict("form", 1.0, 0.08, False)] * 30)
    run = begin(max_rounds=1, strategy="lora")
    run.adapt()
    view = look(run.folder)
    verdicts = [each.attribution.verdict for each in view.round(1).failures if each.split == "validation"]
    assert set(verdicts) == {"content"}
    assert view.rounds[0].demand["content"] == 1.0


@pytest.mark.parametrize("broken", [
    {"content": None}, {"corrections": ["content"]}, {"corrections": {"content": {"scale": 1.0}}},
    {"corrections": {"content": {"scale": "a", "shift": 0.0, "verdicts": 3}}}, {"deficits": [1]},
    {"deficits": {"train-1": [0.5]}}])
def test_material_that_is_none_is_damaged(finished: Run, tmp_path: Path, broken: dict[str, object]) -> None:
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    file, = (folder / "material").glob("1-*.json")
    write_json(file, {**read_json(file), **broken})
    with pytest.raises(DamagedError, match=rf"{file.name} is damaged"):
        look(folder).round(1)
