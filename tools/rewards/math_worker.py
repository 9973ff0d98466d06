"""Fractions, LaTeX and other arithmetic: math-verify, in a subprocess.

math-verify's timeout is an alarm signal, which Python allows in the main thread only, but LangGraph runs nodes in other
threads; and it counts seconds of the clock, so that a busy machine would grade other than an idle one. In the
subprocess, timers of CPU time end a request. sympy can stay inside one large integer operation, where no signal handler
runs: a second timer then ends the subprocess, and the reply counts as one without a number.

`multiprocessing` and pools built on it (pebble 5.2) do not fit: with "spawn" they import the user's script again, which
fails if the script has no `if __name__ == "__main__"`, and a forked child that exits terminates its parent's worker.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import Any

from nslora.tools.errors import RewardError
from nslora.tools.prompt import MINUS

_WAIT_S = 600.0  # of the clock: the import of sympy on a busy machine, or a subprocess that was stopped
KILL_S = 20.0  # of CPU time, for one request; a third of it interrupts what can be interrupted
_LONGEST_CHARS = 4000  # of a longer reply, only the end is read: the result is there


def is_number(text: str) -> bool:
    """Whether math-verify finds a number or an expression in the text. Raises RewardError like `same_expression`."""
    return _WORKER.ask(text)


def same_expression(expected: str, reply: str, tolerance: float) -> bool:
    """Whether two texts hold the same number or the same expression.

    If a number is expected, an unevaluated sum, product or power ("12 * 17" for 204) is not the same, because it may
    only repeat the question. Fractions, percentages and irrational roots are results.

    Args:
        expected: The reference.
        reply: The reply.
        tolerance: Largest absolute difference of two numbers.

    Raises:
        RewardError: If the math-verify process does not start.
    """
    return _WORKER.ask(expected, reply, tolerance)


class _Worker:
    """The subprocess: starts at the first request, and again after it was killed or this process was forked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0  # PID that started the process
        atexit.register(self._end)

    def ask(self, *request: str | float) -> bool:
        with self._lock:
            process = self._process
            if process is None or self._owner != os.getpid() or process.poll() is not None:
                self._end()
                process = self._start()
            answer = _answer(process, json.dumps(request))
            if not answer:
                status = process.wait()
                self._end()
                if status >= 0:  # a negative status: killed, by the timer or by the system (memory)
                    raise RewardError(f"The math-verify process ended with status {status}: {_see()}.")
            return answer == "true\n"

    def _start(self) -> subprocess.Popen[str]:
        # start_new_session: Ctrl-C goes to the run only. The subprocess ends when its input ends.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __spec__.name, str(KILL_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._process, self._owner = process, os.getpid()
        if _answer(process, '["0"]') != "true\n":
            raise RewardError(f"The math-verify process does not start: {_see()}.")
        return process

    def _end(self) -> None:
        """Kill the process, unless a parent of this process started it, and close its pipes."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        with suppress(OSError), process:  # waits and closes; OSError: input that was not sent
            pass


def _answer(process: subprocess.Popen[str], line: str) -> str:
    """Send a line and read one; "" if the process ended or was killed."""
    assert process.stdin is not None
    assert process.stdout is not None
    timer = threading.Timer(_WAIT_S, process.kill)
    timer.start()
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    except BrokenPipeError:
        return ""
    finally:
        timer.cancel()


_WORKER = _Worker()


def _see() -> str:
    return f"see the output of `echo '[\"0\"]' | {sys.executable} -m {__spec__.name} {KILL_S}`"


def _parsed(text: str) -> list[Any]:
    """Parse with math-verify: [] or [sympy expression, its text]."""
    from math_verify import parse

    return list(parse(text[-_LONGEST_CHARS:].translate(MINUS), parsing_timeout=None, fallback_mode="no_fallback"))


def _same(expected: str, reply: str, tolerance: float) -> bool:
    from math_verify import verify

    gold, given = _parsed(expected), _parsed(reply)
    if not gold or not given:
        return False
    if getattr(gold[0], "is_Number", False) and not _worked_out(given[0]):
        return False
    if "%" in expected + reply:  # "50%" equals 0.5, and 50 if the question asks for per cent
        return bool(verify(gold, given, timeout_seconds=None))
    wanted, got = _value(gold), _value(given)
    if isinstance(wanted, Fraction) and isinstance(got, Fraction):
        return abs(wanted - got) <= Fraction(tolerance)
    if wanted is not None and got is not None:
        return math.isclose(wanted, got, rel_tol=1e-12, abs_tol=tolerance)  # math-verify would round to six places
    return bool(verify(gold, given, timeout_seconds=None))


def _worked_out(expression: Any) -> bool:
    """Whether a sympy expression is a result, not an unevaluated sum, product or power."""
    from sympy import Add, Mul, Pow

    if isinstance(expression, Add):
        return False
    if isinstance(expression, Pow):
        return bool(expression.base == 10 or not expression.doit().is_Integer)
    if isinstance(expression, Mul):
        powers = [each for each in expression.args if isinstance(each, Pow)]
        quotients = [each for each in powers if each.exp == -1]
        factors = [each for each in expression.args if each.is_Number and abs(each) != 1]
        if len(factors) > 1 or len(quotients) > 1:
            return False
        return all(_worked_out(each) for each in expression.args if each not in quotients)
    return True


def _value(parsed: list[Any]) -> Fraction | float | None:
    """Evaluate: a Fraction if the number is rational; None if it is not a finite number."""
    try:
        exact = parsed[0].doit()
        if exact.is_Rational:
            return Fraction(int(exact.p), int(exact.q))
        value = float(exact)
    except (TypeError, ValueError, OverflowError, AttributeError):
        return None
    return value if math.isfinite(value) else None


@contextmanager
def _limited(cpu_s: float) -> Iterator[None]:
    """Raise TimeoutError at a third of the CPU time, and each second after; end this process at the whole."""

    def interrupt(number: int, frame: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)  # SIGPROF: without a handler it ends the process
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s / 3, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Answer each line of stdin, `[text]` or `[expected, reply, tolerance]` in JSON, with true or false."""
    import math_verify  # noqa: F401 -- its import takes seconds, which no request pays

    answers, sys.stdout = sys.stdout, sys.stderr  # so that a library's print is not read as an answer
    logging.disable()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            with _limited(float(sys.argv[1])):
                found = bool(_parsed(*request)) if len(request) == 1 else _same(*request)
        except Exception:  # math-verify cannot parse this text; `_start` checks that it works at all
            found = False
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
