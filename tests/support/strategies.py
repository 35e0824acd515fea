"""Hypothesis strategies for anything that a msgspec record can hold."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect as types

__all__ = ["records"]

_ITEMS_MAX = 3
"""Tuples are kept short: their bounds are tested by examples."""
_BYTES_MAX = 48


@cache
def records(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Instances of ``kind`` within the bounds that its fields declare."""
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    return st.builds(kind, **{field.name: _values(field.type) for field in info.fields})


def _values(info: types.Type) -> st.SearchStrategy[Any]:
    match info:
        case types.StructType():
            return records(info.cls)
        case types.IntType(ge=low, gt=above, le=high, lt=below):
            assert above is None
            return st.integers(low, high if below is None else below - 1)
        case types.BoolType():
            return st.booleans()
        case types.BytesType(min_length=low, max_length=high):
            return st.binary(min_size=low or 0, max_size=min(high or _BYTES_MAX, max(low or 0, _BYTES_MAX)))
        case types.StrType(pattern=pattern) if pattern is not None:
            return st.from_regex(pattern, fullmatch=True)
        case types.StrType(min_length=low, max_length=high):
            return st.text(min_size=low or 0, max_size=min(high or _BYTES_MAX, _BYTES_MAX))
        case types.VarTupleType(item_type=item, min_length=low, max_length=high):
            size = min(high if high is not None else _ITEMS_MAX, max(low or 0, _ITEMS_MAX))
            return st.lists(_values(item), min_size=low or 0, max_size=size).map(tuple)
        case types.TupleType(item_types=items):
            return st.tuples(*(_values(item) for item in items))
    raise TypeError(f"no strategy for {info}")
