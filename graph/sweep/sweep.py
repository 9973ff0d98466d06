"""A sweep: its folder, its one record, and the executor that runs what is not on record yet."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from langgraph.runtime import RunControl

from nslora.graph.lock import sole_writer
from nslora.graph.runs.folder import make_folder
from nslora.graph.runs.page.live import PAGE_FILE, SWITCH
from nslora.graph.sweep.cells import Cell, checked_cells, grid_cells, read_grid, run_settings
from nslora.graph.sweep.jobs import Event, Executor, Job, LocalExecutor, ended
from nslora.graph.sweep.ray_jobs import RayExecutor
from nslora.graph.sweep.table import Row, text_table, write_tables
from nslora.tools.errors import SettingsError
from nslora.tools.files import append_jsonl, read_jsonl, sha256_of_json
from nslora.tools.policies.ray_cluster import on_ray, refuse_missing_ray

RECORD = "sweep.jsonl"
FOLDER = Path("sweeps")
PLACES = ("local", "ray", "ray://HOST:10001")

Cells = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class SweepResult:
    """What is on record of the cells that were asked for.

    Attributes:
        folder: Of the sweep: the runs in `runs/`, the record, and the table as JSON and CSV.
        rows: One for each cell that ended: its coordinates, status, and what `record_of` keeps of its report.
        failed: A line for each cell that failed, with the reason.
        left: Cells that did not end, because the sweep was stopped.
        table: For people, means over seeds.
    """

    folder: Path
    rows: Sequence[Row]
    failed: Sequence[str]
    left: int
    table: str


def sweep(
    cells: Cells,
    *,
    folder: str | Path | None = None,
    jobs: int = 1,
    on: str | Executor = "local",
    share: bool = True,
    notify: Callable[[str], None] = lambda _: None,
    control: RunControl | None = None,
) -> SweepResult:
    """Run many runs. What is on record is not run again, and a run that was interrupted goes on where it was.

    Args:
        cells: A YAML file, a mapping with the lists of such a file (`tasks`, `models`, `editors`, `strategies`,
            `seeds`, `settings`, `variants`), or a list of cells: {"task": ..., "seed": 1, "lora": {"rank": 16}}. Paths
            are relative to the working directory.
        folder: Of the sweep. None: `sweeps/NAME` with the file's name, else `sweeps/sweep`.
        jobs: Runs at once.
        on: "local" for processes of this machine, "ray" or "ray://HOST:10001" for a Ray cluster, or an executor.
        share: Cells of the same task, model, editor and seed run one after the other and share their training jobs and
            replies. False: each cell computes everything itself.
        notify: Is called with a line for each cell that begins or ends.
        control: Its `request_drain()` lets the runs under way save the step that they are at, and starts no other.

    Raises:
        NsloraError: If a cell cannot be used. Nothing is written then.
        RunError: If another process works on the sweep.
    """
    values, name = _cells_of(cells)
    place = Path(folder) if folder is not None else FOLDER / name
    if jobs < 1:
        raise SettingsError(f"jobs={jobs}: wanted 1 or more.")
    executor = executor_of(on, jobs)
    wanted = checked_cells(values, place)
    make_folder(place)
    with sole_writer(place):
        known = records(place)
        todo = [cell for cell in wanted if known.get(cell.key, {}).get("status") != "finished"]
        notify(f"{len(wanted) - len(todo)} of {len(wanted)} cells are on record in {place}")
        by_name = {cell.folder: cell for cell in todo}
        events = executor.run(_groups(todo, place.absolute(), share), control or RunControl())
        for event in ended(events, len(todo), jobs, notify, _outcome):  # nobody else writes the record
            append_jsonl(place / RECORD, _row(by_name[event.job.log.stem], event))
        known = records(place)
        rows = [known[cell.key] for cell in wanted if cell.key in known]
        write_tables(place, rows)
        write_sweep_page(place, rows, notify)
    failed = [f"{row['name']}: {row['error']}" for row in rows if row["status"] == "failed"]
    return SweepResult(place, rows, failed, len(wanted) - len(rows), text_table(rows))


def write_sweep_page(folder: Path, rows: Sequence[Row], notify: Callable[[str], None]) -> None:
    """Write the page of the finished cells, those of a task beside each other. What goes wrong stops no sweep."""
    if os.environ.get(SWITCH) == "0":
        return
    groups: dict[str, list[Path]] = {}
    for row in rows:
        if row["status"] == "finished":
            title = " ".join([str(row["task"]), *map(str, row["options"].values())])
            groups.setdefault(title, []).append(folder / row["folder"])
    try:
        from nslora.graph.runs.page.writing import write_comparison

        if groups:
            write_comparison(groups, folder / PAGE_FILE)
    except Exception as error:
        notify(f"note     The page of the sweep could not be written ({type(error).__name__}: {error}).")


def executor_of(on: str | Executor, jobs: int) -> Executor:
    """The executor of that name. Raises SettingsError."""
    if not isinstance(on, str):
        return on
    if on == "local":
        return LocalExecutor(jobs)
    if on_ray(on):
        refuse_missing_ray("--on ray")
        return RayExecutor(jobs, on)
    raise SettingsError(f"on={on!r}: wanted {' or '.join(PLACES)}, or an executor.")


def _cells_of(cells: Cells) -> tuple[Sequence[Mapping[str, Any]], str]:
    """The cells, and a name for their folder."""
    if isinstance(cells, str | Path):
        return read_grid(Path(cells)), Path(cells).stem
    return (grid_cells(cells) if isinstance(cells, Mapping) else cells), "sweep"


def records(folder: Path) -> dict[str, Row]:
    """The newest line of each cell, by its key."""
    return {row["key"]: row for row in read_jsonl(folder / RECORD)}


def _groups(cells: Sequence[Cell], folder: Path, share: bool) -> list[list[Job]]:
    """The jobs, with those that share training jobs in one group: two at once would compute the same."""
    groups: dict[str, list[Job]] = {}
    for cell in cells:
        pool = str(folder / "shared" / sha256_of_json(cell.shared)[:12]) if share else ""
        arguments = {
            "folder": str(folder / "runs" / cell.folder),
            "pool": pool,
            "source": cell.source,
            "options": dict(cell.options),
            "settings": run_settings(cell),
        }
        job = Job(cell.name, "nslora.graph.sweep.run_cell:run_cell", arguments, folder / "logs" / f"{cell.folder}.txt")
        groups.setdefault(pool or cell.key, []).append(job)
    return list(groups.values())


def _outcome(event: Event) -> str:
    if event.status == "failed":
        return event.error
    return f"reward {event.result['base']['reward']:.3f} -> {event.result['result']['reward']:.3f} on test"


def _row(cell: Cell, event: Event) -> Row:
    """The line of the record."""
    return {
        **asdict(cell),
        "name": cell.name,
        "folder": str(Path("runs") / cell.folder),
        "status": event.status,
        **(event.result or {"error": event.error}),
        "wall_s": round(event.wall_s, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
