"""The page of a run says what its records say, and nothing in it can run but its own script."""

import re
import shutil
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hostile_run import LABELS, SCRIPT, hostile_run
from typer.testing import CliRunner

from nslora.graph.cli.app import app
from nslora.graph.runs.compare import compare
from nslora.graph.runs.page import writing
from nslora.graph.runs.page.commands import commands_of
from nslora.graph.runs.page.content import RunPage
from nslora.graph.runs.page.prompt_diff import side_by_side
from nslora.graph.runs.run import Run
from nslora.graph.sweep.sweep import write_sweep_page
from nslora.tools.errors import RunError
from nslora.tools.files import read_json, read_jsonl, write_json, write_jsonl
from nslora.tools.prompt import Prompt
from nslora.tools.workspace.record import read_run_file

Begin = Callable[..., Run]


class Page(HTMLParser):
    """Tags by number, attributes by name, and the text outside of script and style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.ids = Counter[str](), dict[str, list[str | None]](), Counter[str]()
        self.text, self._inside = "", ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._inside = tag
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)
            if name == "id":
                self.ids[str(value)] += 1

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Path:
    return shutil.copytree(finished.folder, tmp_path / "copied")


def test_the_page_of_a_finished_run_says_what_its_records_say(finished: Run, copied: Path) -> None:
    path = writing.write_page(copied, finished.workspace)
    assert path == copied / "result" / "report.html"
    assert "url=result/report.html" in (copied / "report.html").read_text()
    html, report = path.read_text(), read_json(copied / "result" / "report.json")
    page = Page(html)
    for name in ("result", "progress", "decisions", "prompt", "editor", "test", "cost"):
        assert page.ids[name] == 1
    for each in report["rounds"]:
        assert each["reason"] in page.text
        assert each["verdict"] in page.text
    assert page.text.count("reference") >= len(finished.workspace.task.test)
    assert all(row.question in page.text for row in finished.workspace.task.test)
    low, high = report["test"]["gain"]["interval"]
    assert f"[{low:.2f}, {high:.2f}]".replace("-", "−") in page.text
    assert page.tags["svg"] == 4  # reward twice, loss, splits
    assert page.ids.most_common(1)[0][1] == 1  # no id comes twice, of charts neither
    # Nothing is asked of a network: no address in any attribute or in the style.
    addresses = [
        str(value) for name in ("src", "href", "xlink:href", "action") for value in page.attributes.get(name, [])
    ]
    assert all(value.startswith(("#", "data:,")) for value in addresses)
    assert not re.search(r"@import|url\((?!#)", html)
    assert len(html) < 400_000


def test_the_points_of_the_chart_are_the_rewards_over_the_compute_that_the_report_counts(finished: Run) -> None:
    page = RunPage(finished.folder)
    assert [each.reward for each in page.points] == [0.0, *(each.reward_after for each in page.view.rounds)]
    assert page.points[-1].tflop == pytest.approx(page.report["cost"]["tflop"])
    live = RunPage(finished.folder)
    live.report = {}  # while it was at work there was no report
    assert [each.tflop for each in live.points] == pytest.approx([each.tflop for each in page.points])
    (job,) = [each for each in page.rounds if each.losses]
    (record,) = read_jsonl(finished.folder / "bursts.jsonl")
    assert len(job.losses) == record["steps"]


def test_nothing_that_a_row_a_prompt_an_editor_or_a_model_says_becomes_a_part_of_the_page(tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    run.adapt()
    (run.folder / "editor.jsonl").write_text(
        (run.folder / "editor.jsonl").read_text().replace("a dash", "sk-" + "k" * 20)
    )
    html = run.html().read_text()
    page = Page(html)
    assert (page.tags["script"], page.tags["img"], page.tags["svg"]) == (1, 0, 2)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert page.text.count(SCRIPT) > 24  # all of it is there to be read
    assert "sk-kkk" not in html
    tested = RunPage(run.folder, run.workspace).test
    assert tested is not None
    base, result = tested.confusions
    assert base.labels == tuple(sorted(LABELS))
    assert [sum(row) for row in base.counts] == [4, 4, 4]
    assert [row[base.labels.index(LABELS[0])] for row in base.counts] == [4, 4, 4]
    assert sum(result.counts[i][i] for i in range(3)) == 10


def test_a_page_needs_neither_task_nor_cache_and_shows_scores_alone_of_an_old_result(
    finished: Run, copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = read_json(copied / "run.json")
    write_json(copied / "run.json", {**record, "task": {**record["task"], "source": None}})
    monkeypatch.setenv("NSLORA_CACHE", str(tmp_path / "empty"))
    page = Page(writing.write_page(copied).read_text())
    assert all(row.question in page.text for row in finished.workspace.task.test)
    (copied / "result" / "test.csv").unlink()
    page = Page(writing.write_page(copied).read_text())
    assert "without test.csv" in page.text
    assert all(row.id in page.text for row in finished.workspace.task.test)


def test_a_page_while_the_run_is_at_work_reads_itself_anew_and_has_no_test_rows(finished: Run, copied: Path) -> None:
    shutil.rmtree(copied / "result")
    path = writing.write_page(copied, finished.workspace, at_work=True)
    html = path.read_text()
    assert path == copied / "report.html"
    assert 'http-equiv="refresh"' in html
    assert 'id="test"' not in html
    assert "data-live" not in re.sub(
        r"<script>.*</script>", "", writing.write_page(copied, at_work=False).read_text(), flags=re.S
    )


def test_a_run_writes_its_page_after_rounds_and_at_its_end(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSLORA_PAGE", "1")
    run, seen = begin(max_rounds=1, strategy="textgrad"), list[str]()
    for _ in run.stream():
        if (run.folder / "report.html").exists():
            seen.append((run.folder / "report.html").read_text())
    assert "The run is at work" in seen[0]
    assert (run.folder / "result" / "report.html").is_file()
    shell = CliRunner().invoke(app, ["html", str(run.folder)])
    assert shell.output.strip().endswith("result/report.html")


def test_a_page_that_cannot_be_written_is_named_once_and_stops_no_run(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setenv("NSLORA_PAGE", "1")
    monkeypatch.setattr(writing, "write_page", fails)
    said = list[str]()
    run = begin(max_rounds=1, strategy="textgrad", notify=said.append)
    assert run.adapt().rounds
    assert [line for line in said if "page" in line] == [
        "note     The page of the run could not be written (RuntimeError: no ink)."
    ]
    monkeypatch.setenv("NSLORA_PAGE", "0")
    assert begin("quiet", max_rounds=0, notify=said.append).adapt().stop
    assert len([line for line in said if "page" in line]) == 1


def test_changed_words_are_marked_and_the_rest_stands_side_by_side() -> None:
    old, new = Prompt("Be brief.\nUse JSON."), Prompt("Be very brief.\nUse JSON.\nNo prose.")
    lines = [each for each in side_by_side(old, new) if each.changed]
    assert [each.new for each in lines] == [
        ((False, "Be "), (True, "very "), (False, "brief.")),
        ((False, "No prose."),),
    ]
    assert lines[0].old == ((False, "Be "), (False, "brief."))
    assert lines[1].old is None


def test_the_command_that_reproduces_a_run_names_what_is_not_the_default(finished: Run) -> None:
    lines = {
        each.title: each.line for each in commands_of(finished.folder, read_run_file(finished.folder), 3, finished=True)
    }
    again = lines["Reproduce"]
    assert again.startswith(f"nslora run {finished.workspace.task.source} --model ")
    assert "--strategy 'textgrad -> lora' --max-rounds 3 --set lora.rank=4" in again
    assert "--set keep.level=0.45" in again
    assert "seed" not in again
    assert lines["Decide a round again"].endswith("--at 3")


def test_several_runs_stand_beside_each_other_with_paired_differences(
    finished: Run, copied: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(copied, tmp_path / "other <b>$x^$</b>")
    rows = read_jsonl(other / "result" / "test.jsonl")
    write_jsonl(other / "result" / "test.jsonl", [{**row, "passed": True, "reward": 1.0} for row in rows])
    writing.write_page(other, finished.workspace)
    to = tmp_path / "pages" / "both.html"
    shell = CliRunner().invoke(app, ["html", str(copied), str(other), "--to", str(to)])
    assert shell.exit_code == 0, shell.output
    page, gain = Page(to.read_text()), compare([copied, other]).gains[0]
    low, high = (f"{each:.2f}".replace("-", "−") for each in gain.reward[1:])
    assert f"[{low}, {high}]" in page.text
    assert page.tags["svg"] == 3  # both differences and the curves
    assert page.tags["b"] == 0
    assert page.text.count(other.name) >= 3
    assert "../other%20%3Cb%3E%24x%5E%24%3C/b%3E/result/report.html" in page.attributes["href"]
    reasons = [each["reason"] for each in finished.report()["rounds"]]
    assert page.text.count(reasons[0]) == 2 * reasons.count(reasons[0])
    assert Run.open(copied).html(other, to=to) == to  # a page may be replaced
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is no page of nslora"):
        writing.write_comparison({"": [copied, other]}, tmp_path / "notes.txt")


def test_a_sweep_ends_with_a_page_that_has_a_part_for_each_task(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NSLORA_PAGE", "1")
    row = {"status": "finished", "task": "keepers", "options": {}, "folder": copied.name}
    rows = [row, {**row, "options": {"combine": "all"}}, row, {**row, "status": "failed", "folder": "nowhere"}]
    said = list[str]()
    write_sweep_page(tmp_path, rows, said.append)
    page = Page((tmp_path / "report.html").read_text())
    assert (page.ids["runs-1"], page.ids["runs-2"], page.ids["runs-3"], said) == (1, 1, 0, [])
    assert "keepers all" in page.text
    assert page.ids.most_common(1)[0][1] == 1
    write_sweep_page(tmp_path, [{**row, "folder": "nowhere"}], said.append)
    assert "The page of the sweep could not be written (RunError" in said[0]
