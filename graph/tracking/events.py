"""From what a run streams to the entries of its journal."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nslora.graph.tracking.journal import Journal
from nslora.tools.editor.redaction import publishable
from nslora.tools.files import read_json, read_jsonl, sha256_of_json, unless_changed
from nslora.tools.workspace.budget import spent_of
from nslora.tools.workspace.settings import TrackingSettings

STEP_NAMES = {"loss": "train/loss_nats", "grad_norm": "train/grad_norm", "learning_rate": "train/learning_rate"}
UNNAMEABLE = re.compile(r"[^\w. /-]")  # what no tracker takes in a metric's name
RESULT_FILES = ("prompt.md", "decisions.jsonl", "report.json", "report.html")
_jobs_in = unless_changed(read_jsonl)


class Events:
    """Writes a run's journal from its stream.

    Args:
        journal: The run's journal.
        state: The run's state as the stream begins.
        settings: What is to be sent.
        secrets: Texts that must not be.
    """

    def __init__(
        self, journal: Journal, state: Mapping[str, Any], settings: TrackingSettings, secrets: Sequence[str] = ()
    ) -> None:
        self.journal, self.settings, self.secrets = journal, settings, secrets
        self.rounds: list[Mapping[str, Any]] = []
        self.start: Mapping[str, Any] = {}
        self.start_measured: Mapping[str, Any] | None = None
        self.finished = False
        self._proposed, self._at_work = False, 0  # number of the round whose training steps come
        self.saw_update(state)

    def saw(self, mode: str, part: Any) -> None:
        """Take note of a part of the stream."""
        if mode == "custom" and isinstance(part, Mapping) and part.get("what") == "steps" and "values" in part:
            self._saw_step(part["done"], part["values"])
        elif mode == "updates":
            for changes in part.values():
                if isinstance(changes, Mapping):
                    self.saw_update(changes)

    def _saw_step(self, done: int, values: Mapping[str, float]) -> None:
        number = len(self.rounds) + 1
        if number != self._at_work and self.journal.has_round(number):  # taken back by `update_state`, or forked so
            self.journal.forget(number)
        self._at_work = number
        self.journal.add_step(number, done, {STEP_NAMES.get(name, name): value for name, value in values.items()})

    def saw_update(self, changes: Mapping[str, Any]) -> None:
        """Take note of what a node changed, or of a whole state: of what is known already, nothing is added."""
        self.start = changes.get("start") or self.start
        if changes.get("start_measured"):
            self.start_measured = changes["start_measured"]
            self._saw_evaluation(0, changes["start_measured"], self.start)
        rounds = changes.get("rounds")
        for record in rounds if isinstance(rounds, list) else ():
            self._saw_round(record)
        if "proposal" in changes:
            self._proposed = changes["proposal"] is not None
        if changes.get("measured"):
            candidate = (changes.get("proposal") or {}).get("candidate") or {}
            self._saw_evaluation(len(self.rounds) + self._proposed, changes["measured"], candidate)
        if "status" in changes:
            self.finished = changes["status"] == "finished"
            if self.finished:
                self._saw_end()

    def _saw_evaluation(self, number: int, measured: Mapping[str, Any], candidate: Mapping[str, Any]) -> None:
        metrics = {
            f"evaluation/{name}": measured[name]
            for name in ("reward", "all_checks", "loss_nats", "failures", "train_reward")
            if measured.get(name) is not None
        }
        metrics["evaluation/repairable_reward"] = measured["potential"]
        metrics |= {f"evaluation/checks/{name}": value for name, value in measured["checks"].items()}
        self._add(f"evaluation/{number}/{measured['key']}", number, metrics)
        self._keep_prompt(number, candidate)

    def _saw_round(self, record: Mapping[str, Any]) -> None:
        self.rounds = [*(each for each in self.rounds if each["round"] < record["round"]), record]
        number, candidate = record["round"], record["candidate"] or {}
        key = f"round/{number}/{sha256_of_json(record)[:16]}"
        if key not in self.journal.keys:
            self._fill_steps(record)
            texts = {f"round/{name}": record.get(name) for name in ("action", "reason", "verdict", "note", "error")}
            self._add(key, number, self._numbers_of(record), texts)
        self._keep_prompt(number, candidate)
        if record["kept"] and candidate.get("adapter") and self.settings.adapters:
            self._keep(number, f"adapters/{candidate['adapter']}", f"adapters/{candidate['adapter']}")

    def _numbers_of(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What a round decided and measured, and what the run has spent by its end."""
        found: dict[str, Any] = {
            "round/kept": float(record["kept"]),
            "round/lora": float(record["action"] == "lora"),
            "round/reward_before": record["reward_before"],
            "round/reward_after": record["reward_after"],
            "round/new_rows": record["new_rows"],
        }
        found |= {f"round/need/{name}": value for name, value in record["demand"].items()}
        found |= {f"round/signal/{kind}": signal["value"] for kind, signal in record["signal"].items()}
        found |= {f"round/test/{name}": value for name, value in record["numbers"].items()}
        return found | {f"cost/{name}": value for name, value in self._spent().items()}

    def _spent(self) -> dict[str, float]:
        """What the run has spent so far."""
        start: Mapping[str, Any] = self.start_measured or {"wall_s": 0.0, "flop": 0.0, "generated_tokens": 0}
        done = [start, *self.rounds]
        spent = spent_of(self.rounds, sum(each["wall_s"] for each in done), start["flop"])
        return {
            "wall_s": spent.seconds,
            "trained_tokens": spent.train_tokens,
            "generated_tokens": sum(each["generated_tokens"] for each in done),
            "tflop": spent.tflop,
            "editor_calls": spent.editor_calls,
            "editor_tokens": spent.editor_tokens,
            "editor_cost": spent.cost,
        }

    def _fill_steps(self, record: Mapping[str, Any]) -> None:
        """Add training steps of a round that no event told: its job was known, or a kill came between."""
        if not (adapter := (record["candidate"] or {}).get("adapter")) or record["action"] != "lora":
            return
        jobs = [job for job in _jobs_in(self.journal.folder / "bursts.jsonl") if job.get("adapter") == adapter]
        for done, values in enumerate(jobs[-1].get("log", ()) if jobs else (), 1):
            named = {STEP_NAMES.get(name, name): value for name, value in values.items()}
            self.journal.add_step(record["round"], done, named)

    def _saw_end(self) -> None:
        result = self.journal.folder / "result"
        if not (result / "report.json").is_file():  # somebody removed it
            return
        report = read_json(result / "report.json")
        number, key = len(self.rounds), f"{len(self.rounds)}-{report.get('test_looks', 1)}"
        numbers = {name: report[name] for name in ("test", "validation", "cost", "wall_s", "peak_rss_mb")}
        metrics = {f"result/{name}": value for name, value in _flat(numbers)}
        texts = {"result/stop": report["stop"], "result/prompt_diff": report["prompt_diff"]}
        self._add(f"end/{key}", number, metrics, texts)
        for name in RESULT_FILES:
            if (result / name).is_file():
                self._keep(number, f"result/{name}", f"result/{name}", f"end/{key}/{name}")
        if (result / "adapter").is_dir() and self.settings.adapters:
            self._keep(number, "result/adapter", "result/adapter", f"end/{key}/adapter")

    def _keep_prompt(self, number: int, candidate: Mapping[str, Any]) -> None:
        if prompt := candidate.get("prompt"):
            self._keep(number, f"prompts/{prompt}.md", f"prompts/{prompt}.md")

    def _keep(self, number: int, path: str, name: str, key: str = "") -> None:
        self.journal.add(f"artifact/{key or name}", "round", number, artifact=(path, name))

    def _add(self, key: str, number: int, metrics: Mapping[str, Any], texts: Mapping[str, Any] | None = None) -> None:
        plain = {
            UNNAMEABLE.sub("_", publishable(name, self.secrets)): float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        kept = {name: publishable(text, self.secrets) for name, text in (texts or {}).items() if text}
        self.journal.add(key, "round", number, plain, kept)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers of nested mappings and intervals, by names such as `test/gain/interval/low`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}/")
        elif isinstance(value, list) and len(value) == 2:
            yield from ((f"{before}{name}/{end}", each) for end, each in zip(("low", "high"), value, strict=True))
        else:
            yield f"{before}{name}", value
