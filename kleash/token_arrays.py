"""The token columns of scores as numpy arrays. numpy is needed here only; kleash does not depend on it."""

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

INTEGERS = frozenset({"ids", "start", "end", "policy_rank", "reference_rank"})
FEATURES = frozenset({"scored", "special"})  # true or false


def arrays(answer: Mapping[str, Any]) -> "list[dict[str, np.ndarray[Any, Any]]]":
    """The columns of each item of `client.scores.create(…)` by name, NaN where nothing is defined.

    Columns that came as base64 (`encoding_format="base64"`) are read-only views of the decoded bytes, without
    another copy. Columns of the `top_k` alternatives are `top.ids`, `top.policy_logprob`, …, of tokens × k;
    `top.kl_rest` has one number per token. An item that could not be scored has none. Raises ImportError where
    numpy is not installed.
    """
    return [_columns(item) for item in answer["data"]]


def _columns(item: Mapping[str, Any]) -> "dict[str, np.ndarray[Any, Any]]":
    found = {
        name: _column(name, values)
        for name, values in (item.get("tokens") or {}).items()
        if name != "text" and values is not None
    }
    top = item.get("top") or {}
    for name, values in top.items():
        if name not in ("k", "text"):
            per_token = name == "kl_rest"
            found[f"top.{name}"] = (
                _column(name, values) if per_token else _alternatives(name, values, top["k"])
            )
    return found


def _column(name: str, values: str | list[Any]) -> "np.ndarray[Any, Any]":
    import numpy as np

    integers = name in INTEGERS
    if isinstance(values, str):
        return np.frombuffer(base64.b64decode(values), "<i4" if integers else "<f4")
    if name in FEATURES:
        return np.array(values, bool)
    if integers:
        return np.array([-1 if value is None else value for value in values], np.int32)
    return np.array(values, np.float32)  # None becomes NaN


def _alternatives(name: str, values: str | list[Any], k: int) -> "np.ndarray[Any, Any]":
    if isinstance(values, str):
        return _column(name, values).reshape(-1, k)
    rows = [row if row is not None else [None] * k for row in values]
    return _column(name, [value for row in rows for value in row]).reshape(-1, k)
