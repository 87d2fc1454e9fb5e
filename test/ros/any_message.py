"""Messages with anything in any of their fields, made from what ROS tells of their types."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
from hypothesis import strategies as st
from rosidl_parser.definition import (
    AbstractGenericString,
    AbstractSequence,
    Array,
    BasicType,
    BoundedSequence,
    BoundedString,
    NamespacedType,
)

# Where a value is in a message: names of fields, and numbers in an array of messages.
Place: TypeAlias = tuple[str | int, ...]

_FLOATS = {'float': 32, 'double': 64}
_ODD_FLOATS = (
    *(0.0, -0.0, 1.0, -1.0, 0.1, 5.0, 1e-3, 1e5, np.nan, np.inf, -np.inf),
    *(1e-45, -1e-45, 1e-38, 1e-20, 1e20, -1e20, 3.4e38, -3.4e38),
)
_ODD_DOUBLES = (5e-324, 1e-308, 1e-300, 1e-150, 1e150, 1e300, -1e300, 1.79e308)
_ODD_TEXTS = (
    *('', ' ', '\n', 'a\nb', '\r[ERROR] forged', '\x1b[2J\x1b]0;title\x07', '\0', '\u202e\u2028'),
    *('{0.__class__}', '%s%n', '../../etc/passwd', '/dev/zero', '~', 'x' * 300, 'y\n' * 50_000),
)
_MANY = 8  # elements that an array of any length gets at most


def fields_of(kind: type) -> dict[str, Any]:
    """The type of each field, by name."""
    return dict(zip(kind.get_fields_and_field_types(), kind.SLOT_TYPES, strict=True))


def any_message(kind: type) -> st.SearchStrategy[Any]:
    """A message of a type, with anything in every field."""
    values = {name: any_value(slot) for name, slot in fields_of(kind).items()}
    return st.fixed_dictionaries(values).map(lambda chosen: kind(**chosen))


def any_value(slot: Any) -> st.SearchStrategy[Any]:
    """A value of what `SLOT_TYPES` says, with a liking for the ends of its range."""
    if isinstance(slot, BasicType):
        return _any_number(slot.typename)
    if isinstance(slot, AbstractGenericString):
        most = slot.maximum_size if isinstance(slot, BoundedString) else None
        odd = [text for text in _ODD_TEXTS if most is None or len(text) <= most]
        return st.sampled_from(odd) | st.text(st.characters(exclude_categories=['Cs']), max_size=9)
    if isinstance(slot, NamespacedType):
        return any_message(getattr(import_module('.'.join(slot.namespaces)), slot.name))
    if isinstance(slot, Array):
        return _elements(slot.value_type, slot.size, slot.size)
    assert isinstance(slot, AbstractSequence)
    most = slot.maximum_size if isinstance(slot, BoundedSequence) else _MANY
    return _elements(slot.value_type, 0, min(most, _MANY))


def _any_number(name: str) -> st.SearchStrategy[Any]:
    if name == 'boolean':
        return st.booleans()
    if name == 'octet':
        return st.binary(min_size=1, max_size=1)
    if name in _FLOATS:
        odd = _ODD_FLOATS + (_ODD_DOUBLES if name == 'double' else ())
        return st.sampled_from(odd) | st.floats(width=_FLOATS[name])
    low, high = _limits(name)
    odd = [n for n in (0, 1, 2, 3, 4, 7, 8, 16, low, high, high // 2, 2**31) if low <= n <= high]
    return st.sampled_from(odd) | st.integers(low, high)


def _limits(name: str) -> tuple[int, int]:
    """The least and the greatest number of an integer type."""
    bits = int(name.strip('uint'))
    return (0, 2**bits - 1) if name.startswith('u') else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _elements(kind: Any, least: int, most: int) -> st.SearchStrategy[Any]:
    if isinstance(kind, BasicType) and kind.typename == 'uint8':
        return st.binary(min_size=least, max_size=max(most, 64 if least == 0 else least))
    one = any_value(kind)
    same = one.map(lambda value: [value] * most)  # a matrix full of NaN
    return same | st.lists(one, min_size=least, max_size=most)


def places(message: Any) -> dict[Place, Any]:
    """Every field of a message and of what is nested in it, and its type."""
    found: dict[Place, Any] = {}
    for name, slot in fields_of(type(message)).items():
        found[name,] = slot
        value = getattr(message, name)
        nested: list[tuple[Place, Any]] = []
        if isinstance(slot, NamespacedType):
            nested = [((name,), value)]
        elif isinstance(getattr(slot, 'value_type', None), NamespacedType):
            nested = [((name, index), element) for index, element in enumerate(value)]
        for path, inner in nested:
            found |= {(*path, *rest): kind for rest, kind in places(inner).items()}
    return found


def _similar(value: Any, slot: Any) -> st.SearchStrategy[Any]:
    """What a field may hold besides anything: nearly what it held."""
    if isinstance(slot, BasicType) and slot.typename in _FLOATS:
        return st.sampled_from([0.5 * value, 2 * value, -value, value + 1e-3])
    if isinstance(slot, BasicType) and 'int' in slot.typename:
        low, high = _limits(slot.typename)
        return st.sampled_from([min(max(n, low), high) for n in (value - 1, value + 1, value * 2)])
    if isinstance(slot, (AbstractSequence, Array)) and isinstance(slot.value_type, BasicType):
        return _with_some_changed(value, slot)
    return st.just(value)


@st.composite
def _with_some_changed(draw: Any, value: Any, slot: Any) -> Any:
    """The same array, cut off, or with some elements that are something else."""
    elements = bytearray(value) if slot.value_type.typename == 'uint8' else list(value)
    if isinstance(slot, AbstractSequence) and draw(st.booleans()):
        elements = elements[: draw(st.integers(0, len(elements)))]
    for _ in range(draw(st.integers(0, 3)) if len(elements) else 0):
        index = draw(st.integers(0, len(elements) - 1))
        elements[index] = draw(any_value(slot.value_type))
    return bytes(elements) if isinstance(elements, bytearray) else elements


@st.composite
def changes(
    draw: Any, message: Any, words: Mapping[str, Sequence[Any]] | None = None
) -> dict[Place, Any]:
    """What up to four fields of a message, at any depth, hold instead.

    Args:
        draw: of hypothesis.
        message: a good one.
        words: values that mean something to the reader, by the name of a field.
    """
    slots = places(message)
    chosen = draw(st.lists(st.sampled_from(sorted(slots, key=str)), max_size=4, unique=True))
    found: dict[Place, Any] = {}
    for path in chosen:
        options = any_value(slots[path]) | _similar(value_at(message, path), slots[path])
        if words and path[-1] in words:
            options |= st.sampled_from(words[str(path[-1])])
        found[path] = draw(options)
    return found


def value_at(message: Any, path: Place) -> Any:
    """What is at a place."""
    for step in path:
        message = message[step] if isinstance(step, int) else getattr(message, step)
    return message


def changed(message: Any, changes: Mapping[Place, Any]) -> Any:
    """A copy of a message with these values at their places."""
    message = copy.deepcopy(message)
    # The innermost first, while they are there.
    for path, value in sorted(changes.items(), key=lambda item: -len(item[0])):
        setattr(value_at(message, path[:-1]), str(path[-1]), value)
    return message
