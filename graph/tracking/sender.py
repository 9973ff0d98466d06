"""One thread per tracker: reads the journal, and hands it on. What a tracker does can neither stop nor slow the run."""

import contextlib
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from nslora.graph.tracking.journal import Journal, Reader
from nslora.graph.tracking.tracker import THREAD, Entry, Started, Status, TrackedRun, Tracker
from nslora.tools.editor.redaction import publishable
from nslora.tools.errors import first_line
from nslora.tools.files import quoted, read_json, write_json
from nslora.tools.training.adapters import CONFIG, WEIGHTS

LOG = logging.getLogger("nslora.tracking")
MOST = 500  # entries in one call
LONGEST_PAUSE_S = 60.0  # between tries
TEXT = {".md", ".json", ".jsonl", ".html"}


class Sender:
    """Hands a run's journal to one tracker, from behind the last entry that this tracker has.

    Args:
        name: The tracker's name.
        tracker: The tracker; None and `problem` if it could not be made.
        journal: The run's journal.
        run: What the tracker is told of the run.
        secrets: Texts that must not leave.
        timeout_s: Seconds after which a call counts as hanging, and most seconds that the end waits.
        notify: Called with a line for the user when the tracker has begun.
    """

    def __init__(
        self,
        name: str,
        tracker: Tracker,
        journal: Journal,
        run: TrackedRun,
        *,
        secrets: tuple[str, ...],
        timeout_s: float,
        notify: Callable[[str], None],
    ) -> None:
        self.name, self.tracker, self.journal, self.run = name, tracker, journal, run
        self.secrets, self.timeout_s, self.notify = secrets, timeout_s, notify
        self.path = run.folder / f"{name.replace(':', '.')}.json"
        self.sent, self.named = 0, False
        self._status: Status | None = None
        self._woken = threading.Event()
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, name=f"{THREAD}{name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is more to send. Names the tracker if its last call hangs."""
        self._woken.set()
        since = self._busy_since
        if since is not None and time.monotonic() - since > self.timeout_s:
            self.name_problem(f"has not answered for {self.timeout_s:g} s")

    def end(self, status: Status) -> None:
        """Nothing more comes."""
        self._status = status
        self._woken.set()

    def wait(self, until: float) -> None:
        """Wait for the rest to be sent, at most until time.monotonic() is `until`."""
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self.name_problem(f"has not taken everything within {self.timeout_s:g} s")

    def name_problem(self, problem: str) -> None:
        """Say once what is wrong."""
        if not self.named:
            self.named = True
            LOG.warning(
                "The tracker %s %s. The run does not wait for it: what it lacks is kept, and is sent with: nslora "
                "resume %s",
                self.name,
                publishable(problem, self.secrets),
                quoted(self.journal.folder),
            )

    def _work(self) -> None:
        pause = 1.0
        while True:
            last = self._status is not None
            try:
                self._send()
                return
            except Exception as error:
                self.name_problem(f"fails ({type(error).__name__}: {first_line(error)})")
            finally:
                self._busy_since = None
            if last:
                return
            deadline = time.monotonic() + pause
            while self._status is None and time.monotonic() < deadline:  # the end is worth one more try at once
                self._woken.wait(deadline - time.monotonic())
                self._woken.clear()
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _send(self) -> None:
        """Start the tracker, and send until the run has ended."""
        self._busy_since = time.monotonic()
        started = self.tracker.start(self._as_known())
        told = self._told()
        sent = told.get("sent", 0) if told.get("run") == started.id else 0
        self.sent = sent if started.sent is None else started.sent
        self._remember(started)
        self.notify(f"track    {self.name}: {publishable(started.where, self.secrets)}")
        with contextlib.closing(Reader(self.journal, self.sent)) as reader:
            while True:
                self._woken.clear()
                status = self._status  # read before the entries: what comes behind the end is not missed
                self._busy_since = time.monotonic()
                while entries := reader.more(MOST):
                    self._hand_over(entries, started)
                    self._busy_since = time.monotonic()
                if status is not None:
                    self.tracker.finish(status)
                    return
                self._busy_since = None
                self._woken.wait()

    def _hand_over(self, entries: list[Entry], started: Started) -> None:
        """Send entries, each kind by its own call, and remember how far they came."""
        while entries:
            if entries[0].artifact is not None:
                taken, entries = entries[:1], entries[1:]
                with self._copy(taken[0]) as copied:
                    if copied is not None:
                        self.tracker.store(copied)
            else:
                much = next((i for i, each in enumerate(entries) if each.artifact is not None), len(entries))
                taken, entries = entries[:much], entries[much:]
                self.tracker.log(taken)
            self.sent = taken[-1].number
            self._remember(started)

    @contextlib.contextmanager
    def _copy(self, entry: Entry) -> Iterator[Entry | None]:
        """The entry with a copy of its artifact, without secrets; None if the file is gone."""
        artifact = entry.artifact
        assert artifact is not None
        with tempfile.TemporaryDirectory(prefix="nslora-") as scratch:
            target = Path(scratch) / artifact.path.name
            if artifact.path.is_dir():
                target.mkdir()
                for file in (WEIGHTS, CONFIG):  # without the optimizer's state
                    if (artifact.path / file).is_file():
                        self._copy_file(artifact.path / file, target / file)
            elif artifact.path.is_file():
                self._copy_file(artifact.path, target)
            yield replace(entry, artifact=replace(artifact, path=target)) if target.exists() else None

    def _copy_file(self, source: Path, target: Path) -> None:
        if source.suffix not in TEXT:
            shutil.copyfile(source, target)
            return
        text = source.read_bytes().decode("utf-8", "replace")
        target.write_text(publishable(text, self.secrets), encoding="utf-8", newline="")

    def _told(self) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.path) if self.path.is_file() else {}
        return found

    def _as_known(self) -> TrackedRun:
        told = self._told()
        return replace(self.run, known=told.get("run"), place=told.get("place"))

    def _remember(self, started: Started) -> None:
        write_json(self.path, {"run": started.id, "place": started.place, "sent": self.sent})
