"""Ctrl-C and SIGTERM: the first ends the run after the current step, the second at once; both can be resumed."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from langgraph.runtime import RunControl

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopper:
    """Asks a run to stop when a signal comes. signal: the first that came, or None.

    at_once: what is still said when the process ends at once.
    """

    def __init__(self, control: RunControl, say: Callable[[str], None], at_once: Callable[[], None]) -> None:
        self.control, self.say, self.at_once = control, say, at_once
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            self.control.request_drain(signal.Signals(number).name)
            self.say("Stopping after the current step, which is then saved (once more: stop at once).")
            return
        try:
            self.at_once()
        finally:
            # Waiting for the node's thread would not be "at once". Every file is whole or absent, so nothing is lost.
            os._exit(128 + number)

    @property
    def exit_status(self) -> int:
        """As shells expect it of a process that a signal ended."""
        return 128 + (self.signal or signal.SIGINT)


@contextmanager
def stopping(
    control: RunControl, say: Callable[[str], None], at_once: Callable[[], None] = lambda: None
) -> Iterator[Stopper]:
    """Handle signals as long as the block lasts; only the main thread can, elsewhere nothing is done."""
    stopper = Stopper(control, say, at_once)
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stopper) for number in SIGNALS}
    try:
        yield stopper
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def report_when_stopped(say: Callable[[str], None], words: str) -> Iterator[None]:
    """Of a command that keeps nothing: on Ctrl-C say so, and end as shells expect it."""
    try:
        yield
    except KeyboardInterrupt:
        say(words)
        raise SystemExit(128 + signal.SIGINT) from None
