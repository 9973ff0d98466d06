"""A run that adapts an agent: prompt and weights, a kill in the middle of trajectories, a replay without anybody."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import CALLED, AgentPolicy, write_agent_task
from scripted_runs import results

from nslora.graph.runs.replay import replay
from nslora.graph.runs.run import Run
from nslora.tools.errors import TaskError
from nslora.tools.files import read_jsonl
from nslora.tools.policy import Generated
from nslora.tools.tasks.task import load_task
from nslora.tools.trajectory import Trajectory


def begun(tmp_path: Path, name: str, policy: AgentPolicy, **settings: Any) -> Run:
    task = load_task(write_agent_task(tmp_path / "task"))
    values = {"max_rounds": 2, "reuse_replies": False, "strategy": "lora", **settings}
    return Run.create(tmp_path / name, task=task, model=policy, editor="rules", **values)


def policy_of(tmp_path: Path, name: str) -> AgentPolicy:
    return AgentPolicy(tmp_path / name / "adapters")


def test_weights_learn_the_calls_of_passing_trajectories(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, "run")
    run = begun(tmp_path, "run", policy)
    run.adapt()
    report = run.report()
    assert (report["test"]["base"]["all_checks"], report["test"]["result"]["all_checks"]) == (0.0, 1.0)
    (job, *_) = policy.jobs
    assert {row.dialogue[0]["role"] for row in job.rows} == {"tools"}  # calls, each after all that was sent
    assert {row.completion.split("\n")[0] for row in job.rows} == {"<tool_call>", "- ok", "- no", "- ab"}
    assert all(row.origin == "remade" for row in job.rows)
    assert report["rounds"][0]["generated_tokens"] > 0
    (before, *_) = sorted((run.folder / "evaluations").glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    failures = [line["failure"] for line in read_jsonl(before) if "failure" in line]
    (call,) = Trajectory.from_json(failures[0]["trajectory"]).calls
    assert "not valid JSON" in call.malformed
    (read,) = {path.name for path in (run.folder / "material").glob("*-rows.jsonl")}
    assert read == "1-rows.jsonl"


@pytest.mark.engines
def test_a_kill_among_trajectories_loses_none_and_a_replay_calls_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = begun(tmp_path, "whole", policy_of(tmp_path, "whole"), strategy="neurosymbolic")
    whole.adapt()
    killed = begun(tmp_path, "killed", policy_of(tmp_path, "killed"), strategy="neurosymbolic")
    if (child := os.fork()) == 0:
        policy, generate, calls = killed.workspace.policy, AgentPolicy.generate, []

        def dies(self: Any, *args: Any, **options: Any) -> Generated:
            calls.append(1)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return generate(self, *args, **options)

        type(policy).generate = dies  # type: ignore[method-assign]
        killed.adapt()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    CALLED.clear()
    killed.adapt()
    assert results(killed) == results(whole)

    def nobody(*_: object, **__: object) -> None:
        pytest.fail("a replay generated")

    monkeypatch.setattr(AgentPolicy, "generate", nobody)
    CALLED.clear()
    found = replay(killed, tmp_path / "replay")
    assert found.same, found.differences
    assert CALLED == []  # no tool was called either


@pytest.mark.engines
def test_trajectories_to_learn_from_stay_within_the_cap_of_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"model": "fake", "forward_flop_per_token": 1e9, "training_flop_per_token": 1e9}
    monkeypatch.setattr(AgentPolicy, "describe", lambda self: rates)
    for cap, learns in ((20.0, False), (1000.0, True)):
        policy = policy_of(tmp_path, f"run-{cap:g}")
        run = begun(tmp_path, f"run-{cap:g}", policy, max_tflop=cap)
        run.adapt()
        assert bool(policy.jobs) == learns
        assert run.report()["cost"]["tflop"] <= cap


@pytest.mark.engines
def test_an_edit_rewrites_what_an_agent_is_told(tmp_path: Path) -> None:
    run = begun(tmp_path, "run", policy_of(tmp_path, "run"), strategy="textgrad")
    run.adapt()
    edits = sorted((run.folder / "edits").glob("*.json"))
    assert edits
    assert json.loads(edits[0].read_text())["rows"]


def test_a_section_that_the_prompt_lacks_is_an_error_and_no_failed_row(tmp_path: Path) -> None:
    folder = write_agent_task(tmp_path / "task")
    path = folder / "task.yaml"
    path.write_text(path.read_text().replace("# Section researcher", "# Section other"))
    run = Run.create(tmp_path / "run", task=load_task(folder), model=policy_of(tmp_path, "run"), reuse_replies=False)
    with pytest.raises(TaskError, match="reads the section 'researcher', which the prompt lacks"):
        run.adapt()
