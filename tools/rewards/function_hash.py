"""What a function is, as text that is the same in every process: its source, and what its source does not say."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import functools
import hashlib
import inspect
import numbers
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import PurePath
from types import CodeType, FunctionType, ModuleType
from typing import Any

from pydantic import BaseModel

from nslora.tools.files import as_text

PLAIN = (str, bytes, numbers.Number, type(None), datetime.date, datetime.time, datetime.timedelta, PurePath)
BARE_REPR: Any = object.__repr__
Seen = frozenset[int]  # ids of what is being told further out: a function may hold itself
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


_KNOWN: dict[tuple[int, str, bool], tuple[Any, str]] = {}


def first_text_of(function: Callable[..., Any], *, whole: bool = False) -> str:
    """What `text_of` said when this very function, or this object's method, was first asked about in this process.

    A reward that counts its calls or remembers its answers would become another one by being used.
    """
    held = getattr(function, "__self__", function)  # a bound method is made anew each time it is named
    key = (id(held), getattr(function, "__name__", ""), whole)
    if key not in _KNOWN:
        _KNOWN[key] = (held, text_of(function, whole=whole))  # which keeps it, and its id its own
    return _KNOWN[key][1]


def text_of(function: Callable[..., Any], *, whole: bool = False, seen: Seen = frozenset()) -> str:
    """The source of a function, or of its whole module; of an object, that of its class.

    What a partial binds stands before it; behind it stands what the source leaves open: values that it closes over,
    defaults that are no literals, what an object holds, and the compiled code where no source is that function's alone.
    """
    seen |= {id(function)}
    bound = ""
    while isinstance(function, functools.partial):
        bound += described([function.args, function.keywords], seen)
        function = function.func
    known = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    source = _source(known)
    text = source if not whole else _source(inspect.getmodule(known)) or source
    return bound + "".join((text, *(f"\n{each}" for each in _left_open(function, source, seen))))


def described(value: Any, seen: Seen = frozenset()) -> str:
    """A value as text, like its repr but without addresses, sets in order and functions by what they are."""
    if id(value) in seen:
        return "..."
    if isinstance(value, PLAIN):
        return repr(value)
    inner = seen | {id(value)}
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{described(key, inner)}: {described(each, inner)}" for key, each in value.items()) + "}"
        )
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(described(each, inner) for each in value)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(described(each, inner) for each in value) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(described(each, inner) for each in value) + (",)" if len(value) == 1 else ")")
    if isinstance(value, functools.partial) or inspect.isroutine(value) or inspect.isclass(value):
        return f"{getattr(value, '__qualname__', '')}: {text_of(value, seen=seen)}"
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, BaseModel):
        return (
            f"{type(value).__qualname__}({', '.join(f'{k}={described(v, inner)}' for k, v in value.__repr_args__())})"
        )
    if dataclasses.is_dataclass(value):
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.repr}
        return f"{type(value).__qualname__}({', '.join(f'{k}={described(v, inner)}' for k, v in fields.items())})"
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):  # an array, whose repr leaves out its middle
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if type(value).__repr__ is not BARE_REPR:
        with suppress(Exception):  # that of a user's class may need what is not there yet
            return as_text(repr(value))
    # One that holds plain values alone is known by them; a client or a lock is not, and differs in each process.
    held = object.__getstate__(value)
    return f"<{type(value).__module__}.{type(value).__qualname__} object>" + (
        described(held, inner) if held and _is_plain(held) else ""
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return _is_plain([*value.keys(), *value.values()])
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)


def _source(known: Any) -> str:
    try:
        return inspect.getsource(known)
    except (OSError, TypeError):
        return ""


def _left_open(function: Any, source: str, seen: Seen) -> Iterator[str]:
    """What the source of a function, or of an object's class, does not say."""
    if inspect.isclass(function):
        return
    if inspect.ismethod(function):
        owner: Any = function.__self__
        yield "..." if id(owner) in seen else text_of(owner, seen=seen)
        function = function.__func__
    elif not isinstance(function, FunctionType) and hasattr(function, "__wrapped__"):  # functools.cache
        function = inspect.unwrap(function)
    if isinstance(function, FunctionType):
        yield from _left_open_by_definition(function, source, seen)
    elif inspect.isroutine(function):
        yield as_text(repr(function))
    elif held := function.__getstate__():  # by which a class can leave out a clock or a client
        yield described(held, seen)


def _left_open_by_definition(function: FunctionType, source: str, seen: Seen) -> Iterator[str]:
    definition = _definition(function, source)
    if definition is None:
        yield _compiled(function.__code__)
    if (function.__defaults__ or function.__kwdefaults__) and not (definition and _literal_defaults(definition)):
        yield described([function.__defaults__, function.__kwdefaults__], seen)
    closed_over = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # nothing was assigned to it yet
            closed_over[name] = cell.cell_contents
    if closed_over:
        yield described(closed_over, seen)


def _definition(function: FunctionType, source: str) -> Definition | None:
    """Where the source defines the function; None where it does not, or may mean another one just as well."""
    try:
        tree = ast.parse(textwrap.dedent(source))
    except SyntaxError:  # a line of an expression, say
        return None
    kinds = ast.Lambda if function.__name__ == "<lambda>" else (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [each for each in ast.walk(tree) if isinstance(each, kinds)]
    if not found or (len(found) > 1 and isinstance(found[0], ast.Lambda)):
        return None
    return found[0]  # `walk` gives an outer function before those inside


def _literal_defaults(definition: Definition) -> bool:
    try:
        for each in (*definition.args.defaults, *definition.args.kw_defaults):
            ast.literal_eval(each or "None")
    except ValueError:
        return False
    return True


def _compiled(code: CodeType) -> str:
    consts = [_compiled(each) if isinstance(each, CodeType) else described(each) for each in code.co_consts]
    return repr((code.co_code, code.co_names, code.co_varnames, consts))
