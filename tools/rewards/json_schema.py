"""Check that the references of a JSON schema need no network."""

from typing import Any

from jsonschema_specifications import REGISTRY
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012


def refuse_open_references(shape: dict[str, Any]) -> None:
    """Raise ValueError if a reference points outside the schema and outside JSON Schema's own documents."""
    whole = DRAFT202012.create_resource(shape)
    address = (whole.id() or "").rstrip("#")
    waiting: list[tuple[Any, Any]] = [(whole, REGISTRY.with_resource(address, whole).crawl().resolver(address))]
    while waiting:
        part, resolver = waiting.pop()
        waiting += [(each, resolver.in_subresource(each)) for each in part.subresources()]
        for name in ("$ref", "$dynamicRef"):
            target = part.contents.get(name) if isinstance(part.contents, dict) else None
            try:
                if isinstance(target, str):
                    resolver.lookup(target)
            except (Unresolvable, ValueError) as error:
                raise ValueError(
                    f"{name} {target!r} points outside the schema: put the definition under $defs"
                ) from error
