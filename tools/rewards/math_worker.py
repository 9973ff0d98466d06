"""Fractions, LaTeX and other arithmetic: what math-verify says, asked in a process of its own.

math-verify ends what takes too long through an alarm signal, which only a main thread may set, and LangGraph runs nodes
in other threads; sympy moreover may stay inside one large integer for longer than any alarm waits. Here the alarm
works, and where it does not the process is killed: the reply holds no number then.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import subprocess
import sys
import threading
from contextlib import suppress
from fractions import Fraction
from typing import Any

from nslora.tools.errors import RewardError
from nslora.tools.prompt import MINUS

ALARM_S = 5  # for each of two parses and a comparison
KILL_S = 20.0
LONGEST_CHARS = 4000  # the end of a long reply holds its result


def is_number(text: str) -> bool:
    """Whether math-verify reads a number or an expression in the text. Raises RewardError as `same_expression` does."""
    return _WORKER.ask(text)


def same_expression(expected: str, reply: str, tolerance: float) -> bool:
    """Whether two texts hold the same number (within the absolute tolerance) or the same expression.

    Where a number is expected, a sum, a product or a power that is left to be worked out ("12 * 17" for 204) is not the
    same: it may be no more than the question again. Fractions, percentages and roots that stay roots are results.

    Raises RewardError where math-verify's process cannot be started.
    """
    return _WORKER.ask(expected, reply, tolerance)


class _Worker:
    """The other process: started when it is first asked, again after it was killed, and anew after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        atexit.register(self._end)

    def ask(self, *request: str | float) -> bool:
        with self._lock:
            process = self._process
            if process is None or self._owner != os.getpid() or process.poll() is not None:
                self._end()
                process, self._owner = self._started(), os.getpid()
                self._process = process
            answer = self._answer(process, json.dumps(request), KILL_S)
            if not answer:
                status = process.wait()
                self._end()
                if status >= 0:  # it was not killed, by the clock or by the system for what this text took
                    raise RewardError(f"math-verify's process ended with status {status}: {_see()}.")
            return answer == "true\n"

    def _end(self) -> None:
        """End the process, unless it is that of a parent, and let go of its pipes."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()  # does nothing to one that has ended
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what was not sent yet
                pipe.close()  # type: ignore[union-attr]

    def _started(self) -> subprocess.Popen[str]:
        # In a session of its own: Ctrl-C is for the run, whose end is the end of this process's input.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __spec__.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        if self._answer(process, '["0"]', None) != "true\n":
            raise RewardError(f"math-verify's process cannot be started: {_see()}.")
        return process

    @staticmethod
    def _answer(process: subprocess.Popen[str], line: str, limit_s: float | None) -> str:
        """The process's next line; "" where it has ended, or was killed for taking longer than the limit."""
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(limit_s, process.kill) if limit_s is not None else None
        if timer is not None:
            timer.start()
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            return process.stdout.readline()
        except BrokenPipeError:
            return ""
        finally:
            if timer is not None:
                timer.cancel()


_WORKER = _Worker()


def _see() -> str:
    return f"see what `echo '[\"0\"]' | {sys.executable} -m {__spec__.name}` says"


def _parsed(text: str) -> list[Any]:
    """What math-verify reads: [] or [sympy expression, its text]."""
    from math_verify import parse

    return list(parse(text[-LONGEST_CHARS:].translate(MINUS), parsing_timeout=ALARM_S, fallback_mode="no_fallback"))


def _same(expected: str, reply: str, tolerance: float) -> bool:
    from math_verify import verify

    gold, given = _parsed(expected), _parsed(reply)
    if not gold or not given:
        return False
    if getattr(gold[0], "is_Number", False) and not _worked_out(given[0]):
        return False
    if "%" in expected + reply:  # "50%" is 0.5, and 50 where per cent are asked for
        return bool(verify(gold, given, timeout_seconds=ALARM_S))
    wanted, got = _value(gold), _value(given)
    if isinstance(wanted, Fraction) and isinstance(got, Fraction):
        return abs(wanted - got) <= Fraction(tolerance)
    if wanted is not None and got is not None:
        return math.isclose(wanted, got, rel_tol=1e-12, abs_tol=tolerance)  # verify would round to six places
    return bool(verify(gold, given, timeout_seconds=ALARM_S))


def _worked_out(expression: Any) -> bool:
    """Whether a sympy expression is a result, and not a sum, a product or a power still to be worked out."""
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
    """Exact where the number is rational; None where there is no finite number."""
    try:
        exact = parsed[0].doit()
        if exact.is_Rational:
            return Fraction(int(exact.p), int(exact.q))
        value = float(exact)
    except (TypeError, ValueError, OverflowError, AttributeError):
        return None
    return value if math.isfinite(value) else None


def main() -> None:
    """Answer each line, a JSON list of one text or of two with a tolerance, with true or false, until none comes."""
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing that a library prints is taken for an answer
    logging.disable()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            found = bool(_parsed(*request)) if len(request) == 1 else _same(*request)
        except Exception:  # math-verify cannot read this text; that it can read any is asked when the process starts
            found = False
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
