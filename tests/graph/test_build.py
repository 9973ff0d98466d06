"""The loop, over a policy without a model and scripted or rule-based editors."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakePolicy, ObedientPolicy
from langgraph.cache.memory import InMemoryCache
from langgraph.types import CachePolicy

from nslora.graph.build import build_graph, build_workflow
from nslora.graph.lock import is_locked
from nslora.graph.runs.run import Run
from nslora.graph.runs.view import look
from nslora.tools.errors import SettingsError, TooLongError
from nslora.tools.policy import Generated
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.rewards.score import Score
from nslora.tools.schema import Dialogue
from nslora.tools.tasks.task import Task, task_from_rows
from nslora.tools.testing.scripted_chat import ScriptedChat
from nslora.tools.workspace.tables import read_table

THINGS = [
    "mill",
    "bridge",
    "harbour",
    "tower",
    "market",
    "school",
    "library",
    "well",
    "orchard",
    "chapel",
    "inn",
    "forge",
    "quarry",
    "ferry",
    "bakery",
    "garden",
    "stable",
    "cellar",
    "attic",
    "gate",
]
FACTS = [
    "Orla",
    "Bram",
    "Ciro",
    "Dana",
    "Edda",
    "Finn",
    "Gisa",
    "Hugo",
    "Ines",
    "Jorn",
    "Kaya",
    "Lumo",
    "Mara",
    "Nilo",
    "Oren",
    "Pia",
    "Quin",
    "Rosa",
    "Sven",
    "Tova",
]


def rows(ask: str) -> list[dict[str, str]]:
    return [{"question": f"{ask} {thing}", "reference": fact} for thing, fact in zip(THINGS, FACTS, strict=True)]


def make_task(style: bool = True, combine: str = "mean", **options: Any) -> Task:
    checks: list[Any] = [{"name": "fact", "check": "contains"}]
    if style:
        checks.append(
            {
                "name": "style",
                "check": "regex",
                "pattern": "<[^<>]+>",
                "form": "<{reply}>",
                "wanted": "the answer in angle brackets",
            }
        )
    return task_from_rows(
        train=[*rows("Who keeps the"), *rows("Name the keeper of the")],
        validation=rows("By whom is kept the"),
        test=rows("Tell me who looks after the"),
        reward=checks,
        combine=combine,
        max_new_tokens=8,
        **options,
    )


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., Run]:
    def run(name: str = "run", task: Task | None = None, policy: FakePolicy | None = None, **settings: Any) -> Run:
        return Run.create(
            tmp_path / name,
            task=task or make_task(),
            model=policy or FakePolicy(tmp_path / name / "adapters"),
            **{"reuse_replies": False, **settings},
        )

    return run


def test_the_loop_uses_both_kinds_where_fact_and_style_are_missing(begin: Callable[..., Run]) -> None:
    report = begin().adapt().report
    assert [record["action"] for record in report["rounds"]][:2] == ["textgrad", "lora"]
    assert report["test"]["base"]["all_checks"] == 0
    assert report["test"]["result"]["all_checks"] == 1
    assert report["stop"].startswith("target reached")


def test_weights_keep_the_form_that_the_start_prompt_brings_where_references_lack_it(begin: Callable[..., Run]) -> None:
    shown = Prompt(demonstrations=(Demonstration("Who keeps the gap", "<nobody>"),))
    run = begin(task=make_task(prompt=shown), strategy="lora", max_rounds=1)
    report = run.adapt().report
    assert report["test"]["base"]["checks"] == {"fact": 0.0, "style": 1.0}
    assert report["rounds"][0]["kept"]
    assert report["test"]["result"]["all_checks"] == 1
    assert {row.origin for row in look(run.folder).round(1).training_rows} == {"remade"}


def test_replies_that_the_length_limit_cut_are_not_taught(begin: Callable[..., Run], tmp_path: Path) -> None:
    class SplitShares(FakePolicy):
        def generate(self, dialogues: Sequence[Dialogue], **options: Any) -> Generated:
            return replace(super().generate(dialogues, **options), truncated=frozenset(range(len(dialogues))))

    shown = Prompt(demonstrations=(Demonstration("Who keeps the gap", "<nobody>"),))
    run = begin(
        task=make_task(prompt=shown), policy=SplitShares(tmp_path / "run" / "adapters"), strategy="lora", max_rounds=1
    )
    run.adapt()
    assert {row.origin for row in look(run.folder).round(1).training_rows} == {"reference"}


def test_without_remade_data_plain_references_are_learnt(begin: Callable[..., Run]) -> None:
    shown = Prompt(demonstrations=(Demonstration("Who keeps the gap", "<nobody>"),))
    run = begin(task=make_task(prompt=shown), strategy="lora", max_rounds=1, remade_per_row=0)
    run.adapt()
    assert {row.origin for row in look(run.folder).round(1).training_rows} == {"reference"}


@pytest.mark.parametrize("strategy", ["lora", "textgrad"])
def test_a_single_kind_gets_nowhere_where_both_are_missing(begin: Callable[..., Run], strategy: str) -> None:
    report = begin(strategy=strategy).adapt().report
    assert {record["action"] for record in report["rounds"]} == {strategy}
    assert report["test"]["result"]["all_checks"] <= 0.1  # the facts that demonstrations tell


def test_weights_first_gets_through_by_remade_data(begin: Callable[..., Run]) -> None:
    run = begin(strategy="lora -> textgrad -> lora", signal={"lora_patience": 1, "textgrad_patience": 1})
    report = run.adapt().report
    assert report["test"]["result"]["all_checks"] == 1


def test_all_or_nothing_rewards_get_through_by_potential(begin: Callable[..., Run]) -> None:
    report = begin(task=make_task(combine="all")).adapt().report
    assert report["rounds"][0]["kept"]
    assert "potential" in report["rounds"][0]["verdict"]
    assert report["test"]["result"]["all_checks"] == 1


def test_weights_that_change_no_reply_gain_no_potential(begin: Callable[..., Run], tmp_path: Path) -> None:
    class HalfOfThem(FakePolicy):
        """Every second reply in the style that is wanted, whatever its weights."""

        def _reply(self, dialogue: Dialogue, adapter: str | None) -> str:
            question = dialogue[-1]["content"]
            row = next(row for row in (*task.train, *task.validation, *task.test) if row.question == question)
            return f"<{row.reference}>" if len(question) % 2 else str(row.reference)

    task = make_task(combine="all")
    report = (
        begin(task=task, policy=HalfOfThem(tmp_path / "run" / "adapters", learns=False), strategy="lora").adapt().report
    )
    assert [(each["kept"], each["numbers"]["potential_gain"]) for each in report["rounds"]] == [(False, 0.0)] * 2
    assert report["result"] == report["start"]


def test_the_test_split_is_looked_at_once_and_never_learnt_from(begin: Callable[..., Run], tmp_path: Path) -> None:
    policy = FakePolicy(tmp_path / "run" / "adapters")
    run = begin(policy=policy)
    run.adapt()
    task = run.workspace.task
    for row in task.test:
        assert len([1 for question, _ in policy.asked if question == row.question]) == 2  # base and result
    held_out = {row.question for row in (*task.validation, *task.test)}
    taught = {row.dialogue[-1]["content"] for job in policy.jobs for row in job.rows}
    assert not taught & held_out
    edits = (run.folder / "editor.jsonl").read_text()
    prompts = "".join(path.read_text() for path in (run.folder / "prompts").iterdir())
    remade = (run.folder / "result" / "remade.jsonl").read_text()
    for question in held_out:
        assert question not in edits + prompts + remade


def test_an_update_that_lowers_the_reward_is_not_kept(begin: Callable[..., Run], tmp_path: Path) -> None:
    class WorseWhenTuned(FakePolicy):
        def _reply(self, dialogue: Dialogue, adapter: str | None) -> str:
            return "rubbish" if adapter else "Orla, Bram or Ciro"

    report = (
        begin(task=make_task(style=False), policy=WorseWhenTuned(tmp_path / "run" / "adapters"), strategy="lora")
        .adapt()
        .report
    )
    first = report["rounds"][0]
    assert first["reward_before"] > first["reward_after"] == 0
    assert not first["kept"]
    assert report["result"] == report["start"]


def test_nothing_is_kept_from_a_policy_that_does_not_learn(begin: Callable[..., Run], tmp_path: Path) -> None:
    run = begin(
        task=make_task(style=False), policy=FakePolicy(tmp_path / "run" / "adapters", learns=False), strategy="lora"
    )
    report = run.adapt().report
    assert not any(record["kept"] for record in report["rounds"])
    assert report["result"]["adapter"] is None
    assert not (run.folder / "result" / "adapter").exists()
    assert "saturated" in report["stop"]


def test_nothing_to_gain_changes_nothing(begin: Callable[..., Run]) -> None:
    task = task_from_rows(
        train=rows("a"), validation=rows("b"), test=rows("c"), reward=lambda question, reference, reply: 1.0
    )
    report = begin(task=task).adapt().report
    assert report["rounds"] == []
    assert report["result"] == report["start"]
    assert report["test"]["gain"]["all_checks"] == 0


def test_an_editor_that_gives_nothing_usable_is_recorded_and_the_run_goes_on(begin: Callable[..., Run]) -> None:
    report = begin(editor=ScriptedChat(replies=["no tags here"], repeat=True)).adapt().report
    edits = [record for record in report["rounds"] if record["action"] == "textgrad"]
    assert edits
    assert all(not record["kept"] and record["error"] for record in edits)
    assert report["result"]["prompt"] == report["start"]["prompt"]
    assert {record["action"] for record in report["rounds"]} == {"textgrad", "lora"}


def test_the_same_seed_decides_alike_and_ends_with_the_same_hashes(begin: Callable[..., Run]) -> None:
    once, again = begin("one", seed=4).adapt().report, begin("two", seed=4).adapt().report
    for report in (once, again):
        for record in report["rounds"]:
            record.pop("wall_s")
            record["editor"].pop("seconds", None)
    assert once["rounds"] == again["rounds"]
    assert once["result"] == again["result"]


def test_the_result_folder_holds_what_others_rely_on(begin: Callable[..., Run]) -> None:
    run = begin()
    report = run.adapt().report
    result = run.folder / "result"
    names = {"adapter", "prompt.md", "remade.jsonl", "decisions.jsonl", "decisions.csv", "test.csv", "report.json"}
    assert names <= {path.name for path in result.iterdir()}
    assert {"wall_s", "peak_rss_mb", "seed", "adapter_sha256", "versions", "task", "cost"} <= report.keys()
    assert len(report["adapter_sha256"]) == 64
    assert {"all_checks", "interval"} <= report["test"]["result"].keys()
    assert all({"action", "kept", "reason"} <= record.keys() for record in report["rounds"])
    remade = [json.loads(line) for line in (result / "remade.jsonl").read_text().splitlines()]
    assert remade
    assert all(row["prompt"][-1]["role"] == "user" and row["completion"][0]["role"] == "assistant" for row in remade)
    assert not any("The answer is" in json.dumps(row) for row in remade)
    test = read_table(result / "test.csv")
    assert [row["question"] for row in test] == [row.question for row in run.workspace.task.test]
    passed = [all(float(row[f"result_{name}"]) >= 1 for name in report["test"]["base"]["checks"]) for row in test]
    assert sum(passed) / len(passed) == report["test"]["result"]["all_checks"]
    assert {row["base_reply"] for row in test} != {row["result_reply"] for row in test}
    decisions = read_table(result / "decisions.csv")
    wanted = [(str(each["round"]), each["action"], str(int(each["kept"]))) for each in report["rounds"]]
    assert [(row["round"], row["action"], row["kept"]) for row in decisions] == wanted


def test_the_drawing_shows_every_node_and_every_edge() -> None:
    drawn = build_graph().get_graph()
    edges = {(edge.source, edge.target) for edge in drawn.edges}
    assert {
        ("__start__", "evaluate"),
        ("evaluate", "monitor"),
        ("monitor", "finish"),
        ("monitor", "classify"),
        ("classify", "lora_update"),
        ("classify", "textgrad_edit"),
        ("lora_update", "evaluate"),
        ("textgrad_edit", "evaluate"),
        ("finish", "__end__"),
    } <= edges


def test_importing_does_no_work(tmp_path: Path) -> None:
    code = (
        "import sys, nslora.graph.build, nslora.graph.runs.run, nslora.graph.cli.app\n"
        "print([name for name in ('torch', 'transformers', 'trl', 'peft', 'textgrad', 'datasets') if name in "
        "sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert not list(tmp_path.iterdir())


def test_a_reward_may_name_other_checks_for_each_row(begin: Callable[..., Run]) -> None:
    def judge(question: str, reference: str, reply: str) -> Score:
        name = f"about {question.split()[-1]}"
        return Score(float(reference in reply), {name: float(reference in reply)}, "")

    task = task_from_rows(
        train=rows("Who keeps the"),
        validation=rows("By whom is kept the"),
        test=rows("Tell me:"),
        reward=judge,
        max_new_tokens=8,
    )
    report = begin(task=task, strategy="lora", max_rounds=1).adapt().report
    assert len(report["test"]["result"]["checks"]) == len(THINGS)


def test_an_evaluation_beyond_the_context_is_a_failed_update(begin: Callable[..., Run], tmp_path: Path) -> None:
    class Small(FakePolicy):
        def generate(self, dialogues: Sequence[Dialogue], *, adapter: str | None, **options: Any) -> Generated:
            if adapter is not None:
                raise TooLongError("A question with its prompt and reply takes 9 tokens, the context holds 8.")
            return super().generate(dialogues, adapter=adapter, **options)

    report = begin(policy=Small(tmp_path / "run" / "adapters"), strategy="lora", max_rounds=1).adapt().report
    assert "takes 9 tokens" in report["rounds"][0]["error"]
    assert not report["rounds"][0]["kept"]


def test_a_stream_that_is_read_in_several_threads_gives_its_lock_back(begin: Callable[..., Run]) -> None:
    stream = begin(max_rounds=1).stream()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        for turn in itertools.count():
            if (one, two)[turn % 2].submit(next, stream, None).result() is None:
                break
    assert not is_locked(begin("other").folder.with_name("run"))


def test_the_graph_has_json_schemas_for_what_a_server_shows_as_a_form() -> None:
    graph = build_graph()
    state, folder = graph.get_input_jsonschema(), graph.get_context_jsonschema()
    assert state["properties"].keys() == graph.get_output_jsonschema()["properties"].keys() > {"kept", "rounds"}
    assert "required" not in state  # the input may be {}
    assert folder is not None
    assert folder["properties"] == {"folder": {"default": "", "title": "Folder", "type": "string"}}
    assert graph.get_config_jsonschema()["properties"]
    for schema in (state, folder, graph.get_config_jsonschema()):
        json.dumps(schema)


def test_a_cache_policy_over_nodes_with_effects_is_refused_at_build(keepers: Task, tmp_path: Path) -> None:
    cached = build_workflow().set_node_defaults(cache_policy=CachePolicy())
    one = build_workflow()
    one.nodes["classify"].cache_policy = CachePolicy()
    for workflow, named in ((cached, "evaluate, monitor"), (one, "classify:")):
        with pytest.raises(SettingsError, match=f"A CachePolicy is set for {named}"):
            workflow.compile()
        with pytest.raises(SettingsError, match="A CachePolicy is set for"):
            Run.create(tmp_path / "run", task=keepers, model=ObedientPolicy(), graph=workflow)
    compiled = build_graph(cache=InMemoryCache())
    compiled.cache_policy = CachePolicy()  # a default for all nodes, after compile
    with pytest.raises(SettingsError, match="A CachePolicy is set for evaluate, monitor"):
        Run.create(tmp_path / "run", task=keepers, model=ObedientPolicy(), graph=compiled)
    own = build_workflow()
    own.add_node("mine", lambda state: {}, cache_policy=CachePolicy())
    assert own.compile(cache=InMemoryCache()).get_graph().nodes["mine"]
