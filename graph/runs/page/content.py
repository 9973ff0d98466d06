"""What a page says of a run, gathered from its folder. No model is loaded and nobody is called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nslora.graph.runs.page.charts import Interval, Point, loss_chart, reward_chart, splits_chart
from nslora.graph.runs.page.commands import Command, commands_of
from nslora.graph.runs.page.prompt_diff import DiffLine, side_by_side
from nslora.graph.runs.page.tested import TestedSplit, tested_split_of
from nslora.graph.runs.view import Round, RunView, look, report_of
from nslora.tools.editor.call_log import CHECK, EditorLog, RecordedCall
from nslora.tools.errors import DamagedError
from nslora.tools.evaluation.paired_tests import REWARDS, bootstrap_interval, mean
from nslora.tools.evaluation.records import read_evaluation
from nslora.tools.files import read_json, read_jsonl
from nslora.tools.inference.flops import TERA, FlopRates
from nslora.tools.prompt import Prompt
from nslora.tools.workspace.record import POLICY_FILE, QUESTION_FILE, read_run_file
from nslora.tools.workspace.report import has_long_prompt
from nslora.tools.workspace.workspace import Workspace


@dataclass(frozen=True)
class PageRound:
    """A round with what belongs to it. diff: of the prompt in force and the proposed one, of an edit alone."""

    round: Round
    diff: Sequence[DiffLine]
    losses: Sequence[float]
    calls: Sequence[RecordedCall]
    training_rows: Mapping[str, int]


class RunPage:
    """The content of one run's page.

    Args:
        folder: The run's folder.
        workspace: It knows the texts of the test split; None if its task cannot be had.
        problem: Why there is none.
        at_work: Whether this process is at work on the run; None asks the lock.

    Raises:
        RunError: If the folder holds no run. DamagedError: If a record of it is damaged.
    """

    def __init__(
        self, folder: Path, workspace: Workspace | None = None, problem: str = "", *, at_work: bool | None = None
    ) -> None:
        self.folder, self.workspace, self.problem = folder, workspace, problem
        self.record = read_run_file(folder)
        self.view: RunView = look(folder, at_work=at_work)
        self.report: Mapping[str, Any] = report_of(folder, read_jsonl(folder / "decisions.jsonl")) or {}
        self.written = datetime.now(UTC)
        question = folder / QUESTION_FILE
        self.question: Mapping[str, Any] = read_json(question) if self.view.status == "waiting" else {}

    @property
    def finished(self) -> bool:
        """Whether the run has a result."""
        return self.view.status == "finished"

    @cached_property
    def policy(self) -> Mapping[str, Any]:
        """Facts of the model; none before it was loaded for the first time."""
        path = self.folder / POLICY_FILE
        return read_json(path) if path.is_file() else {}

    @cached_property
    def start_evaluation(self) -> str | None:
        """Key of the evaluation before the first round."""
        found = sorted((self.folder / "material").glob("1-*.json"), key=lambda path: path.stat().st_mtime_ns)
        names = [path.stem.partition("-")[2] for path in found if path.stem != "1-rows"]
        if not names and not self.view.rounds:
            names = [path.stem for path in (self.folder / "evaluations").glob("*.jsonl")]
        return names[-1] if names else None

    @cached_property
    def points(self) -> list[Point]:
        """The start and each round, with the compute until its end; empty before the first evaluation."""
        if not self.view.rounds:
            return []
        spent = self.report["cost"]["start_tflop"] if "start_tflop" in self.report.get("cost", {}) else None
        if spent is None:
            tokens = read_evaluation(self._evaluation(self.start_evaluation)).cost.forward_tokens
            spent = FlopRates.of(self.policy).forward * tokens / TERA
        points = [Point(0, spent, self.view.rounds[0].reward_before, "", True)]
        for each in self.view.rounds:
            spent += each.flop / TERA
            points.append(Point(each.number, spent, each.reward_after, each.action, each.kept))
        return points

    @cached_property
    def rounds(self) -> list[PageRound]:
        """The rounds, each with its diff, losses, calls and rows."""
        jobs = {row.get("adapter"): row.get("log", ()) for row in read_jsonl(self.folder / "bursts.jsonl")}
        found, before = [], self.start_prompt
        for each in self.view.rounds:
            proposed = self.view.prompt(each.prompt) if each.prompt else before
            log = jobs.get(each.adapter, ()) if each.action == "lora" else ()
            origins = [row["origin"] for row in read_jsonl(self.folder / "material" / f"{each.number}-rows.jsonl")]
            found.append(
                PageRound(
                    each,
                    side_by_side(before, proposed) if proposed != before else (),
                    [step["loss"] for step in log if "loss" in step],
                    [call for call in self.calls if call.round == each.number],
                    {name: origins.count(name) for name in dict.fromkeys(origins)} if each.action == "lora" else {},
                )
            )
            before = proposed if each.kept else before
        return found

    @cached_property
    def calls(self) -> list[RecordedCall]:
        """The editor's calls, without the one that asked it for a token."""
        return [call for call in EditorLog(self.folder / "editor.jsonl").first() if call.purpose != CHECK]

    @cached_property
    def start_prompt(self) -> Prompt:
        """The task's own prompt."""
        return self.view.prompt(str(self.record["task"]["prompt"]))

    @cached_property
    def prompt(self) -> Prompt:
        """The prompt of the result or, before there is one, of the candidate in force."""
        if self.report:
            return self.view.prompt(self.report["result"]["prompt"])
        kept = [each.prompt for each in self.view.rounds if each.kept and each.prompt]
        return self.view.prompt(kept[-1]) if kept else self.start_prompt

    @cached_property
    def prompt_diff(self) -> Sequence[DiffLine]:
        """The start's prompt beside the result's; empty if they are the same."""
        return side_by_side(self.start_prompt, self.prompt) if self.prompt != self.start_prompt else ()

    @cached_property
    def test(self) -> TestedSplit | None:
        """The test split, of a finished run."""
        return tested_split_of(self.folder, self.report, self.workspace, self.problem) if self.report else None

    @cached_property
    def charts(self) -> list[tuple[str, str, Markup]]:
        """Title, caption and drawing of each chart that this run has the numbers for."""
        found = []
        if self.points:
            marks = "Filled marks were kept, hollow ones dropped; the line is the pair in force."
            if self.points[-1].tflop > 0:  # else the model does not say what its tokens cost
                drawing = reward_chart(self.points, over="tflop")
                found.append(("Reward over compute", f"{marks} Numbers are rounds.", drawing))
            found.append(("Reward over rounds", marks, reward_chart(self.points, over="round")))
        if jobs := [(each.round.number, each.losses) for each in self.rounds if each.losses]:
            steps = sum(len(losses) for _, losses in jobs)
            found.append(("Training loss", f"{steps} steps in {len(jobs)} training jobs.", loss_chart(jobs)))
        if self.test:
            gap = self.report.get("overfit_gap", {}).get("result")
            words = "" if gap is None else f" The result's gap, validation less test, is {gap:+.3f}."
            caption = "Bars are 95 % intervals." + words.replace("-", "\u2212")
            found.append(("Validation and test", caption, splits_chart(self._splits(self.test))))
        return found

    @cached_property
    def commands(self) -> list[Command]:
        """The commands that reproduce, replay, fork and show this run."""
        long = has_long_prompt(self.report)
        return commands_of(self.folder, self.record, len(self.view.rounds), finished=self.finished, long_prompt=long)

    def _splits(self, test: TestedSplit) -> list[tuple[str, Interval, Interval]]:
        keys = {(each.adapter, each.prompt): key for each, key in zip(self.view.rounds, self._keys(), strict=True)}
        start, result = ((each["adapter"], each["prompt"]) for each in (self.report["start"], self.report["result"]))
        keys |= {start: self.start_evaluation}
        rows = []
        for name, candidate in (("base", start), ("result", result)):
            values = [getattr(row, name).reward for row in test.rows]
            reward = self.report["validation"][name]["reward"]
            on_validation = Interval(reward if reward is not None else mean(values))
            if key := keys.get(candidate):
                validation = [row.value for row in read_evaluation(self._evaluation(key)).of("validation").values()]
                on_validation = Interval(mean(validation), *bootstrap_interval(validation, bounds=REWARDS))
            rows.append((name, on_validation, Interval(mean(values), *bootstrap_interval(values, bounds=REWARDS))))
        return rows

    def _keys(self) -> list[str | None]:
        return [each.get("evaluation") for each in read_jsonl(self.folder / "decisions.jsonl")]

    def _evaluation(self, key: str | None) -> Path:
        """Raises DamagedError if there is no such evaluation."""
        if key is None:
            raise DamagedError(f"{self.folder} has lost the record of its first evaluation.")
        return self.folder / "evaluations" / f"{key}.jsonl"
