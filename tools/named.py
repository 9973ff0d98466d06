"""Functions and classes of users, named as `package.module:name`, so that another process finds them again."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nslora.tools.errors import SettingsError


def object_named(kind: str, spec: str) -> Callable[..., Any]:
    """What `package.module:name` names; kind: what it is, for messages. Raises SettingsError."""
    module, _, attribute = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # behind all that is installed, which it therefore cannot hide
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise SettingsError(
            f"{kind.capitalize()} {spec!r} cannot be loaded ({type(error).__name__}: {error}); write "
            f"package.module:name, of a module that is installed or lies in {here}."
        ) from error
    if not callable(found):
        raise SettingsError(f"{kind.capitalize()} {spec!r} is a {type(found).__name__}, which cannot be called.")
    called: Callable[..., Any] = found
    return called


def name_of(kind: str, found: Callable[..., object]) -> str:
    """`module:name` of a function or a class. Raises SettingsError if another process would not find it so."""
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", "")
    if module in (None, "__main__") or getattr(sys.modules.get(module), name, None) is not found:
        raise SettingsError(
            f"{kind}={name or found!r} stands in no module, so that a resumed run would not find it: write it into a "
            f"module, on its first level, and give it or 'module:{name or 'name'}'."
        )
    return f"{module}:{name}"
