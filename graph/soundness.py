"""Is a state one that the nodes can work on? LangGraph takes whatever `update_state` is given."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_type_hints

from langgraph.errors import InvalidUpdateError
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from nslora.graph.state import AdaptationState
from nslora.tools.errors import RunError

E = TypeVar("E")


class WrongStateError(RunError, InvalidUpdateError):
    """The state holds a value that its key cannot have. LangGraph's server lets a client read an InvalidUpdateError."""


@functools.cache
def _schema() -> TypeAdapter[Any]:
    """The state's schema; a state of an earlier version lacks keys, and a graph of the user's own has more."""
    hints = get_type_hints(AdaptationState, include_extras=True)
    return TypeAdapter(TypedDict("State", hints, total=False))  # type: ignore[operator]


def refuse_wrong_values(state: Mapping[str, Any]) -> None:
    """Raise WrongStateError if a value of the state is none that its key can have."""
    try:
        _schema().validate_python(state, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        came = "" if first["type"] == "missing" else f" (came: {first['input']!r:.80})"
        raise WrongStateError(
            f"The state cannot be worked on: {place}: {first['msg']}{came}. Correct what gave it, update_state or a "
            "node of your own; nothing was changed."
        ) from None


def of_sound_states(edge: Callable[[AdaptationState], E]) -> Callable[[AdaptationState], E]:
    """A conditional edge that refuses wrong values: `update_state` asks it before anything is written.

    Records of rounds are left to the nodes, so that an edge takes as long in the last round as in the first.
    """

    @functools.wraps(edge)
    def checked(state: AdaptationState) -> E:
        refuse_wrong_values({name: value for name, value in state.items() if name != "rounds"})
        return edge(state)

    return checked
