"""The page of a run that is at work: written after each round, and at the end. What goes wrong with it stops no run."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nslora.tools.workspace.workspace import Workspace

PAGE_FILE = "report.html"
SWITCH = "NSLORA_PAGE"  # 0: no run writes a page by itself
LARGEST_SHARE = 0.05  # of a run's time for its page


class LivePage:
    """The page of a run that this process works on.

    Attributes:
        folder: The run's folder.
        workspace: The run's workspace; its `notify` hears once what went wrong.
    """

    def __init__(self, folder: Path, workspace: Workspace) -> None:
        self.folder, self.workspace = folder, workspace
        self._off = os.environ.get(SWITCH, "") == "0"
        self._rounds, self._not_before, self._complained = self._written_rounds(), 0.0, False

    def look_again(self) -> None:
        """Write the page if a round has ended since, unless pages would take more than their share of the time."""
        if self._off or time.monotonic() < self._not_before or (rounds := self._written_rounds()) == self._rounds:
            return
        began, self._rounds = time.monotonic(), rounds
        self._write(at_work=True)
        self._not_before = time.monotonic() + (time.monotonic() - began) / LARGEST_SHARE

    def end(self) -> None:
        """Write the page of a run that this process works on no longer."""
        if not self._off:
            self._write(at_work=False)

    def _write(self, *, at_work: bool) -> None:
        try:
            from nslora.graph.runs.page.writing import write_page

            write_page(self.folder, self.workspace, at_work=at_work)
        except Exception as error:
            if not self._complained:
                self._complained = True
                self.workspace.notify(
                    f"note     The page of the run could not be written ({type(error).__name__}: {error})."
                )

    def _written_rounds(self) -> tuple[int, int]:
        """What changes with each finished round: time and size of decisions.jsonl."""
        with suppress(OSError):
            found = (self.folder / "decisions.jsonl").stat()
            return found.st_mtime_ns, found.st_size
        return 0, 0


@contextmanager
def live_page(folder: Path, workspace: Workspace) -> Iterator[Callable[[], None]]:
    """Keep a run's page up to date: call what this gives after each part of the run's stream."""
    page = LivePage(folder, workspace)
    try:
        yield page.look_again
    finally:
        page.end()
