"""The end of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import begin_tiny_run
from scripted_runs import rows

from nslora.graph.cli.progress import cost_line
from nslora.graph.runs.run import Run
from nslora.tools.dataset.remade import RemadeRow
from nslora.tools.errors import RewardError, StoppedError
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.rewards import calling
from nslora.tools.rewards.score import Graded, Score
from nslora.tools.tasks.task import Task, task_from_rows
from nslora.tools.workspace.report import compare_on_test

Begin = Callable[..., Run]


def test_a_gain_in_reward_that_passes_no_further_reply_is_told() -> None:
    task = task_from_rows(
        **{split: [{"question": split, "reference": "x"}] for split in ("train", "validation", "test")}
    )
    base, result = ([Graded(task.test[0], "", Score(value, {"judge": value}, ""))] * 4 for value in (0.25, 0.75))
    test = compare_on_test(base, result, task.reward)
    assert test["gain"].items() >= {"all_checks": 0.0, "interval": [0.0, 0.0], "reward": 0.5}.items()
    assert test["gain"]["reward_interval"][1] == 0.5


def test_a_test_that_cannot_be_scored_says_where_the_choice_lies(
    begin: Begin, keepers: Task, tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    asked = {row.question for row in keepers.test[1:]}

    def reward(question: str, reference: str, reply: str) -> float:
        if question in asked:
            raise ValueError("no such row")
        return 0.5

    task = task_from_rows(
        train=rows(keepers, "train"),
        validation=rows(keepers, "validation"),
        test=rows(keepers, "test"),
        reward=reward,
        max_new_tokens=8,
    )
    run = Run.create(
        tmp_path / "run",
        task=task,
        model=str(tiny_folder()),
        strategy="lora",
        max_rounds=0,
        device={"threads": 1, "device": "cpu"},
    )
    with pytest.raises(RewardError, match=r"no such row.*begin a new run.*Untested, but kept: no adapter, the prompt"):
        run.adapt()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_judge_that_cannot_be_reached_stops_the_run_and_resume_goes_on(
    keepers: Task, tmp_path: Path, tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.setattr(calling.time, "sleep", lambda _: None)
    asked = {row.question for row in getattr(keepers, split)[1:]}
    out_of_order = True

    async def judge(question: str, reference: str, reply: str) -> dict[str, object]:
        if out_of_order and question in asked:
            raise TimeoutError("the judge is late")
        return {"score": 0.5, "reason": "half"}

    splits = {each: rows(keepers, each) for each in ("train", "validation", "test")}
    device = {"threads": 1, "device": "cpu"}
    run = Run.create(
        tmp_path / "run",
        task=task_from_rows(**splits, reward=judge, max_new_tokens=8),
        model=str(tiny_folder()),
        strategy="lora",
        max_rounds=0,
        device=device,
    )
    with pytest.raises(StoppedError, match=r"the judge is late.*6 tries.*nslora resume .*run") as caught:
        run.adapt()
    assert "begin a new run" not in str(caught.value)
    out_of_order = False
    assert run.resume().test.base == 0.0
    assert run.report()["test"]["base"]["reward"] == 0.5


def test_the_cost_counts_the_first_evaluation_and_the_test(
    keepers: Task, tmp_path: Path, tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NSLORA_CACHE", str(tmp_path / "cache"))
    model = str(tiny_folder())

    def report(name: str) -> dict[str, Any]:
        settings = {"strategy": "lora", "max_rounds": 0, "device": {"threads": 1, "device": "cpu"}}
        return Run.create(tmp_path / name, task=keepers, model=model, **settings).adapt().report  # type: ignore[arg-type]

    first, again = report("first"), report("again")
    cost = first["cost"]
    assert cost["start_generated_tokens"] > 0 < cost["test_generated_tokens"]
    assert cost["generated_tokens"] == cost["start_generated_tokens"] + cost["test_generated_tokens"]
    assert cost["test_tflop"] > 0 < cost["start_tflop"] == cost["tflop"]
    assert cost["cached_replies"] == 0
    assert f"{cost['generated_tokens']} generated tokens (" in cost_line(first)
    cached = again["cost"]["cached_replies"]
    assert cached >= len(keepers.validation) + len(keepers.test)
    assert again["cost"] == {
        **cost,
        **dict.fromkeys(("generated_tokens", "start_generated_tokens", "test_generated_tokens"), 0),
        "cached_replies": cached,
    }
    assert f"0 generated tokens and {cached} replies from the cache (" in cost_line(again)


def test_a_base_without_a_template_leaves_one_that_trl_trains_in(
    own_cache: Path, keepers: Task, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model = tiny_folder("gpt2", False)
    run = begin_tiny_run(tmp_path / "run", keepers, model, strategy="lora", max_rounds=1)
    result = run.adapt()
    policy = run.workspace.policy
    assert isinstance(policy, LocalPolicy)
    prompt, row = run.workspace.task.prompt, keepers.train[0]
    trl_row = RemadeRow(row.id, row.question, row.reference or "", prompt.hash, None, 1.0).as_trl(prompt)
    tokenizer = AutoTokenizer.from_pretrained(result.folder / "result" / "tokenizer")
    arguments = SFTConfig(tmp_path / "trl", use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[])
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        arguments,
        train_dataset=Dataset.from_list([trl_row]),
        processing_class=tokenizer,
    )
    asked, answered = policy.format.pair_ids(prompt.messages(row.question), row.reference or "")
    assert trainer.train_dataset[0]["input_ids"] == [*asked, *answered]
    assert trainer.train_dataset[0]["labels"] == [*[-100] * len(asked), *answered]
