"""Equality of records that may hold tensors, arrays and lists, which dataclasses compare and hash with an error."""

from dataclasses import fields
from typing import Any


class ByValue:
    """A base of dataclasses (with ``eq=False``): equal if they are of one type and all compared fields are equal.

    Tensors and arrays are equal if type, shape and all values are; NaN is equal to nothing.
    """

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(getattr(self, name), getattr(other, name)) for name in _names(self))

    def __hash__(self) -> int:
        return hash((type(self), *(_key(getattr(self, name)) for name in _names(self))))


def _names(record: Any) -> list[str]:
    return [field.name for field in fields(record) if field.compare]


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return not (_is_array(a) or _is_array(b)) and bool(a == b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if _is_array(a):
        same_kind = (a.shape, a.dtype, getattr(a, "device", None)) == (b.shape, b.dtype, getattr(b, "device", None))
        return same_kind and bool((a == b).all())
    return bool(a == b)


def _key(value: Any) -> Any:
    """Equal for equal values."""
    if _is_array(value):
        return tuple(value.shape)
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    try:
        return hash(value)
    except TypeError:
        return type(value)
