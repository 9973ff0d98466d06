"""A result's prompt is trained into its weights, and that is kept only if nothing is lost."""

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import begin_tiny_run
from fakes import ObedientPolicy
from langchain_core.messages import HumanMessage
from rich.console import Console
from scripted_runs import BULLETS, begun, edits
from typer.testing import CliRunner

from nslora.graph.cli.app import app
from nslora.graph.cli.progress import show_result
from nslora.graph.runs.export import pair_of
from nslora.graph.runs.page.content import RunPage
from nslora.graph.runs.result import result_of
from nslora.graph.runs.run import Run
from nslora.tools.errors import DivergedError, RunError, SettingsError
from nslora.tools.evaluation.acceptance import nothing_lost, smallest_loss_ruled_out
from nslora.tools.files import quoted
from nslora.tools.policy import OnProgress, TrainingJob, TrainingResult, no_progress
from nslora.tools.prompt import Prompt
from nslora.tools.rewards.score import Score
from nslora.tools.schema import Dialogue
from nslora.tools.tasks.agent import Agent, AgentSpec
from nslora.tools.tasks.task import Task, load_task, task_from_rows
from nslora.tools.testing.tiny_task import KEEPERS, PLACES, write_tiny_task
from nslora.tools.training.adapters import CONFIG, WEIGHTS, AdapterStore
from nslora.tools.workspace.tables import read_table

ROWS = 24  # the fewest with which validation can rule out the usual margin is 23


@dataclass
class TeachablePolicy(ObedientPolicy):
    """Writes dashes without being told to, with an adapter that was trained on replies with a dash.

    forgets: the share of the places that it answers without a dash even so. diverges: training fails.
    """

    folder: Path = Path()
    forgets: int = 0
    diverges: bool = False
    jobs: list[TrainingJob] = field(default_factory=list)

    def train(self, job: TrainingJob, on_progress: OnProgress = no_progress) -> TrainingResult:
        self.jobs.append(job)
        if self.diverges:
            raise DivergedError("The loss was nan at step 1.")
        scratch = self.folder / ".scratch"
        scratch.mkdir(parents=True)
        (scratch / WEIGHTS).write_text(json.dumps([row.completion for row in job.rows]))
        (scratch / CONFIG).write_text(json.dumps({"r": 1, "lora_alpha": 1, "target_modules": ["memory"]}))
        return TrainingResult(AdapterStore(self.folder).add(scratch), 3, 3, 30, (1.0,), (1.0,), 0.0, "fake")

    def reply(self, dialogue: Dialogue, adapter: str | None) -> str:
        told = super().reply(dialogue, None)
        if adapter is None or any(place in dialogue[-1]["content"] for place in PLACES[: self.forgets]):
            return told
        return f"- {told.removeprefix('- ')}"


def dashed(question: str, reference: str, reply: str) -> Score:
    checks = {"fact": float(reference in reply), "style": float(reply.startswith("- "))}
    return Score(sum(checks.values()) / 2, checks, "Begin with a dash.")


def task_of(rows: int = ROWS, reward: Any = dashed) -> Task:
    asked = {"train": "Who keeps the {}, {}?", "validation": "The {} is kept by whom, {}?", "test": "{}'s keeper, {}?"}
    return task_from_rows(
        **{
            split: [
                {"question": words.format(PLACES[i % 12], i), "reference": KEEPERS[i % 12 % 3]} for i in range(rows)
            ]
            for split, words in asked.items()
        },
        reward=reward,
        name="keepers",
    )


def finished_run(tmp_path: Path, task: Task | None = None, prompt: Prompt = BULLETS, **policy: Any) -> Run:
    model = TeachablePolicy(folder=tmp_path / "run" / "adapters", **policy)
    run = begun(tmp_path, task or task_of(), edits(prompt), model=model, max_rounds=1)
    run.adapt()
    return run


def test_verified_replies_are_learnt_without_the_prompt_and_the_pair_is_needed_no_more(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    before = run.report()
    merged = run.merge_prompt()
    assert merged.kept, merged.reason
    assert merged.saved_tokens == before["prompt_tokens"]["result"] > 0
    policy: Any = run.workspace.policy
    (job,) = policy.jobs
    assert {len(row.dialogue) for row in job.rows} == {1}
    assert {row.completion for row in job.rows} == {f"- {each}" for each in KEEPERS}
    assert run.report() == before
    assert {row["result_reply"] for row in read_table(merged.folder / "test.csv")} <= {f"- {each}" for each in KEEPERS}
    assert merged.report["test"]["result"]["all_checks"] == merged.report["test"]["pair"]["all_checks"] == 1.0
    assert merged.report["test"]["base"]["all_checks"] == 0.0
    trained_on = [json.loads(line) for line in (merged.folder / "remade.jsonl").read_text().splitlines()]
    assert trained_on[0]["prompt"] == [{"role": "user", "content": "Who keeps the mill, 0?"}]
    pair = pair_of(merged.folder)
    assert (pair.name, pair.prompt, pair.adapter_name) == (
        "run-merged-prompt",
        Prompt(),
        merged.report["result"]["adapter"],
    )
    chat = result_of(run.folder, before).chat_model(merged_prompt=True)
    assert [turn["role"] for turn in chat.sent([HumanMessage("Who?")])] == ["user"]

    policy.sent.clear()
    assert run.merge_prompt() == merged
    assert (policy.sent, len(policy.jobs)) == ([], 1)
    assert run.merge_prompt(margin=0.5).kept
    assert len(policy.jobs) == 1  # another margin decides anew, and trains nothing


def test_the_report_offers_it_if_the_prompt_is_long(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    report = run.report()
    assert 0.5 < report["prompt_share"] < 1
    offered = f"nslora merge-prompt {quoted(run.folder)}"
    assert offered in [each.line for each in RunPage(run.folder, run.workspace).commands]
    for share, offers in ((report["prompt_share"], True), (0.4, False)):
        console = Console(file=io.StringIO(), width=200)
        show_result(console, run.folder, {**report, "prompt_share": share})
        assert (offered in console.file.getvalue()) == offers  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("policy", "why"), [({"forgets": 4}, r"8 lost\), a loss at level"), ({"diverges": True}, "The loss was nan")]
)
def test_what_loses_something_is_dropped_and_the_pair_stays(tmp_path: Path, policy: Any, why: str) -> None:
    run = finished_run(tmp_path, **policy)
    before = (run.folder / "result" / "report.json").read_bytes()
    merged = run.merge_prompt()
    assert not merged.kept
    assert (run.folder / "result" / "report.json").read_bytes() == before
    assert merged.report["test"] is None
    assert not any("'s keeper" in dialogue[-1]["content"] and len(dialogue) == 1 for dialogue in asked_since(run))
    with pytest.raises(RunError, match=r"holds nothing to take away \(Dropped.*take the pair of the run itself"):
        pair_of(merged.folder)


def asked_since(run: Run) -> Sequence[Dialogue]:
    """What the model was asked after the first evaluation of the test split, which ends the run."""
    policy: Any = run.workspace.policy
    last = max(i for i, each in enumerate(policy.sent) if len(each) > 1 and "'s keeper" in each[-1]["content"])
    return list(policy.sent[last + 1 :])


def test_what_cannot_be_merged_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    with pytest.raises(SettingsError, match=r"24 validation rows cannot rule out a loss of 0\.1,.*margin of 0\.15"):
        run.merge_prompt(margin=0.1)
    with pytest.raises(SettingsError, match=r"The margin is 0: wanted"):
        run.merge_prompt(margin=0)
    with pytest.raises(RunError, match=r"There is no .*merged_prompt: make it with nslora merge-prompt"):
        pair_of(run.folder / "result" / "merged_prompt")
    with pytest.raises(RunError, match=r"has no prompt: its model is asked with questions alone"):
        finished_run(tmp_path / "none", prompt=Prompt("Be worse.")).merge_prompt()
    half = task_of(reward=lambda question, reference, reply: 0.5 * reply.startswith("- "))
    with pytest.raises(RunError, match=r"No reply of .* to its 24 train questions earns full reward"):
        finished_run(tmp_path / "half", half).merge_prompt()
    run.workspace.task = replace(run.workspace.task, agent=Agent(AgentSpec(make="unused"), print))
    with pytest.raises(RunError, match=r"has an agent, whose nodes read their prompts"):
        run.merge_prompt()
    unfinished = begun(tmp_path, task_of(), edits(BULLETS), "unfinished", model=TeachablePolicy(folder=tmp_path))
    with pytest.raises(RunError, match=r"has no result yet: let it finish"):
        unfinished.merge_prompt()
    assert not (run.folder / "result" / "merged_prompt").exists()


def test_stopped_half_way_nothing_is_written_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(tmp_path)
    whole = sorted(path.name for path in (run.folder / "result").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("nslora.graph.runs.merge_prompt.write_table", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.merge_prompt()
    assert sorted(path.name for path in (run.folder / "result").iterdir()) == whole
    policy: Any = run.workspace.policy
    asked = len(policy.sent)
    assert run.merge_prompt().kept
    assert (len(policy.sent), len(policy.jobs)) == (asked, 1)


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("new", "kept"),
    [
        ([1.0] * 30, True),
        ([0.0] + [1.0] * 29, True),
        ([0.0] * 2 + [1.0] * 28, False),  # the rows are too few to rule out 0.15
        ([1.0] * 22, False),
        ([0.0] * 3 + [1.0] * 97, True),
        ([0.0] * 4 + [1.0] * 96, False),  # a loss at level 0.1, however many rows there are
    ],
)
def test_a_loss_is_seen_or_cannot_be_ruled_out(new: list[float], kept: bool) -> None:
    assert nothing_lost([1.0] * len(new), new).kept == kept
    assert (smallest_loss_ruled_out(len(new)) <= 0.15) == (len(new) >= 23)


def test_the_regression_set_may_lose_nothing() -> None:
    found = nothing_lost([1.0] * 30, [1.0] * 30, regression_old=[1.0, 1.0], regression_new=[1.0, 0.5])
    assert not found.kept
    assert "anchor set" in found.reason


BRIEF = """name: brief
data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}
prompt: "# System\n\nBe brief.\n\n# Question template\n\n{question}"
max_new_tokens: 8
reward: {checks: [{name: fact, check: contains}]}
"""


@pytest.mark.engines
def test_the_tiny_models_merged_prompt_answers_in_the_place_of_the_run(
    own_cache: Path, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_tiny_task(tmp_path / "task", rows=6)
    for split in folder.glob("*.jsonl"):
        split.write_text(re.sub('"(no|ab)"', '"ok"', split.read_text()))
    (folder / "task.yaml").write_text(BRIEF)
    lora = {"epochs": 6, "batch_size": 2, "learning_rate": 1e-2, "rank": 4, "top_blocks": 4}
    run = begin_tiny_run(tmp_path / "run", load_task(folder), tiny_folder(), max_rounds=1, strategy="lora", lora=lora)
    run.adapt()
    done = CliRunner().invoke(app, ["merge-prompt", str(run.folder), "--margin", "0.5"])
    assert done.exit_code == 0, done.output
    assert re.search(r"saves    \d+ of \d+ tokens", done.output)
    merged, out = run.folder / "result" / "merged_prompt", tmp_path / "replies.csv"
    questions = ["answer", str(merged), str(folder / "test.jsonl"), "--out", str(out)]
    assert CliRunner().invoke(app, questions, catch_exceptions=False).exit_code == 0
    own = [row["result_reply"] for row in read_table(merged / "test.csv")]
    assert [row["reply"] for row in read_table(out)] == own
