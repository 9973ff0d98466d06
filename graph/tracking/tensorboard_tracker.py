"""TensorBoard: event files in the run's folder, `tracking/tensorboard`; TensorBoard takes numbers and texts only."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch.utils.tensorboard import SummaryWriter

from nslora.graph.tracking.tracker import Entry, Started, Status, TrackedRun

SUMMARY = "nslora/sent"  # a scalar behind each entry: its number


class TensorboardTracker:
    """Numbers are scalars, texts and prompts are texts; adapters and reports stay in the run's folder.

    An entry is written at once, with its number behind it. What a killed process wrote of one without its number is
    left out by TensorBoard only where it was cut off, so a number is written in the same buffer as its entry.
    """

    def __init__(self) -> None:
        self.writer: SummaryWriter | None = None

    def start(self, run: TrackedRun) -> Started:
        """Open a new event file beside those of earlier processes."""
        folder = run.folder / "tensorboard"
        sent = int(max(_numbers(folder), default=0))
        if self.writer is None:
            # As many events as an entry may have: the writer's own thread never waits with a part of one.
            self.writer = SummaryWriter(str(folder), max_queue=1000, flush_secs=3600)
        if not sent:
            table = "\n".join(f"| {name} | {value} |" for name, value in run.params.items())
            self.writer.add_text("params", f"| name | value |\n| --- | --- |\n{table}", 0)
        return Started(str(folder), f"tensorboard --logdir {folder}", sent=sent)

    def log(self, entries: Sequence[Entry]) -> None:
        """Write scalars and texts at their steps."""
        assert self.writer is not None
        for entry in entries:
            for name, value in entry.metrics.items():
                self.writer.add_scalar(name, value, entry.step, entry.at)
            for name, text in entry.texts.items():
                self.writer.add_text(name, text, entry.step, entry.at)
            self._sent(entry)

    def store(self, entry: Entry) -> None:
        """Write a prompt as text."""
        assert self.writer is not None
        assert entry.artifact is not None
        if entry.artifact.path.suffix == ".md":
            text = entry.artifact.path.read_text(encoding="utf-8")
            self.writer.add_text(entry.artifact.name.removesuffix(".md"), text, entry.step, entry.at)
        self._sent(entry)

    def _sent(self, entry: Entry) -> None:
        assert self.writer is not None
        self.writer.add_scalar(SUMMARY, entry.number, entry.number, entry.at)
        self.writer.flush()

    def finish(self, status: Status) -> None:
        """Close the file."""
        assert self.writer is not None
        self.writer.close()


def _numbers(folder: Path) -> Iterator[float]:
    """The numbers of the entries that are there. A file that was cut off is read to its last whole event."""
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag == SUMMARY:
                    yield value.tensor.float_val[0] if value.tensor.float_val else value.simple_value
