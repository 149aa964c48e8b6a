"""Every choice that a configuration offers, read from its pydantic fields: literals, unions, booleans, null."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

Values = dict[str, Any]  # dotted path -> value


class Branch(NamedTuple):
    """One choice, with the choices around it that it stands in."""

    name: str  # path=choice; the choice is a value, the `kind` or class of a section, or a type
    values: Values
    enclosing: tuple[str, ...] = ()


def branches_of(section: type[BaseModel], path: str = "", within: Branch | None = None) -> Iterator[Branch]:
    """All of a section's branches, its subsections' included, in the order of the fields."""
    for name, field in section.model_fields.items():
        yield from _branches(field.annotation, f"{path}.{name}".removeprefix("."), within, chosen=False)


def _branches(annotation: Any, path: str, within: Branch | None, *, chosen: bool) -> Iterator[Branch]:
    """`chosen`: the annotation is one member of a union."""

    def branch(choice: object, value: Any) -> Branch:
        around = (*within.enclosing, within.name) if within else ()
        return Branch(f"{path}={choice}", {**(within.values if within else {}), path: value}, around)

    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _branches(arguments[0], path, within, chosen=chosen)
    elif origin in (Union, types.UnionType):
        for member in arguments:
            yield from _branches(member, path, within, chosen=True)
    elif origin is Literal:
        if len(arguments) > 1 or chosen:
            yield from (branch(value, value) for value in arguments)
    elif annotation is bool:
        yield from (branch(value, value) for value in (False, True))
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if chosen:
            kind = annotation.model_fields.get("kind")
            within = branch(
                annotation.__name__ if kind is None else kind.default,
                {} if kind is None else {"kind": kind.default},
            )
            yield within
        yield from branches_of(annotation, path, within)
    elif annotation is types.NoneType:
        yield branch("None", None)
    elif chosen:
        yield branch(getattr(origin or annotation, "__name__", str(annotation)), ...)


def sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model that can stand somewhere below an annotation, itself included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from sections_of(field.annotation)
    for argument in get_args(annotation):
        yield from sections_of(argument)


def with_values(document: dict[str, Any], values: Values) -> dict[str, Any]:
    """A copy of a document with other values at dotted paths; sections on the way are made."""
    changed = dict(document)
    for path, value in values.items():
        first, _, rest = path.partition(".")
        changed[first] = with_values(changed.get(first) or {}, {rest: value}) if rest else value
    return changed
