"""Columns of tokens as numpy arrays, from both encodings."""

import base64
import math

import numpy as np

from kleash import arrays
from tests.kleash.scripted import a_score


def packed(values: list[float], kind: str) -> str:
    return base64.b64encode(np.array(values, kind).tobytes()).decode()


def test_columns_have_the_numbers_of_the_answer_and_nan_where_there_is_none() -> None:
    item = a_score() | {
        "top": {"k": 2, "ids": [None, [5, 6]], "text": [None, ["a", "b"]], "kl_rest": [None, 0.25]}
    }
    (columns,) = arrays({"data": [item]})
    assert columns["ids"].tolist() == [1, 2]
    assert math.isnan(columns["kl"][0])
    assert columns["kl"][1] == 0.5
    assert columns["kl"].dtype == np.float32
    assert columns["top.ids"].tolist() == [[-1, -1], [5, 6]]
    assert columns["top.kl_rest"][1] == 0.25
    assert "text" not in columns


def test_base64_columns_are_views_of_the_decoded_bytes() -> None:
    tokens = {"ids": packed([3, 4], "<i4"), "text": ["a", "b"], "kl": packed([math.nan, 0.25], "<f4")}
    top = {"k": 2, "ids": packed([-1, -1, 7, 8], "<i4"), "text": []}
    (columns,) = arrays({"data": [{"tokens": tokens | {"scored": [False, True]}, "top": top}]})
    assert columns["ids"].tolist() == [3, 4]
    assert columns["kl"][1] == 0.25
    assert columns["scored"].tolist() == [False, True]
    assert columns["top.ids"].tolist() == [[-1, -1], [7, 8]]
    assert not columns["kl"].flags.owndata
    assert not columns["kl"].flags.writeable


def test_what_could_not_be_scored_has_no_columns() -> None:
    assert arrays({"data": [{"index": 0, "error": {"code": "input_too_long", "detail": "long"}}]}) == [{}]
