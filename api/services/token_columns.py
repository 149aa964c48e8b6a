"""The per-token part of an answer: offsets in the unit that was asked for, numbers as JSON or base64."""

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from api.schemas_inputs import Completion, Item
from api.schemas_tokens import EncodingFormat, Offsets
from jobs.scoring_wire import ItemScores, TopTerms
from rlhf_core.attribution import kl_of_others

Int32Array = npt.NDArray[np.int32]


def token_columns(
    item: Item,
    answer: ItemScores,
    quantities: Sequence[str],
    *,
    offsets: Offsets,
    encoding: EncodingFormat,
) -> dict[str, Any]:
    """The values of schemas_tokens.TokenColumns."""
    ints, floats = _encoders(encoding)
    columns: dict[str, Any] = {"ids": ints(answer.token_ids), "text": text_pieces(item, answer)}
    if offsets != "none":
        start, end = in_unit(_text_of(item, answer), answer.start, answer.end, offsets)
        columns |= {"start": ints(start), "end": ints(end)}
    return columns | {
        "scored": answer.scored,
        **{name: floats(answer.quantities[name]) for name in quantities},
    }


def text_pieces(item: Item, answer: ItemScores) -> list[str]:
    """The text of each token; U+FFFD stands for a part of a character."""
    raw = _text_of(item, answer)
    spans = zip(answer.start.tolist(), answer.end.tolist(), strict=True)
    return [raw[start:end].decode("utf-8", "replace") for start, end in spans]


def top_columns(
    top: TopTerms,
    kl: npt.NDArray[np.float32],
    scored: npt.NDArray[np.bool_],
    pieces: Mapping[int, str],
    *,
    k: int,
    encoding: EncodingFormat,
) -> dict[str, Any]:
    """The values of schemas_tokens.TopColumns: the first k of those that the scorer sent; `kl` of each token."""
    ids = top.ids[:, :k]
    terms = {
        "policy_logprob": top.policy_logprob[:, :k],
        "reference_logprob": top.reference_logprob[:, :k],
        "kl_term": top.kl_term[:, :k],
    }
    text = [
        [pieces[token_id] for token_id in row] if is_scored else None
        for row, is_scored in zip(ids.tolist(), scored.tolist(), strict=True)
    ]
    ints, floats = _encoders(encoding)
    rest = floats(kl_of_others(kl, terms["kl_term"]))
    columns: dict[str, Any] = {"k": ids.shape[1], "text": text, "kl_rest": rest}
    if encoding == "base64":
        hidden = ~scored[:, None]
        return columns | {
            "ids": ints(np.where(hidden, np.int32(-1), ids)),
            **{name: floats(np.where(hidden, np.float32(np.nan), values)) for name, values in terms.items()},
        }
    return columns | {name: _rows(values, scored) for name, values in (("ids", ids), *terms.items())}


def in_unit(raw: bytes, start: Int32Array, end: Int32Array, unit: Offsets) -> tuple[Int32Array, Int32Array]:
    """Byte spans of UTF-8 as spans of code points or of UTF-16 units.

    A token that holds a part of a character spans the whole of it, so tokens that share one overlap. A byte that
    is no UTF-8 (token ids can spell any) counts as one character.
    """
    if unit == "byte" or raw.isascii():
        return start, end
    text = raw.decode("utf-8", "surrogateescape")
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    escaped = (points >= 0xDC80) & (points <= 0xDCFF)  # how surrogateescape writes such a byte
    bytes_each = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    units_each = 1 + (points >= 0x10000) if unit == "utf16" else np.ones(len(points), dtype=np.int64)
    byte_at = np.append(0, np.cumsum(np.where(escaped, 1, bytes_each)))
    unit_at = np.append(0, np.cumsum(units_each)).astype(np.int32)
    first = unit_at[np.searchsorted(byte_at, start, side="right") - 1]
    last = unit_at[np.searchsorted(byte_at, end, side="left")]
    return first, np.where(start == end, first, last)


def _text_of(item: Item, answer: ItemScores) -> bytes:
    if answer.text is not None:
        return answer.text
    if isinstance(item, str):
        return item.encode()
    assert isinstance(item, Completion), "a scorer sends the text of what is no text"
    return (item.prompt + item.completion).encode()


def _rows(values: npt.NDArray[Any], scored: npt.NDArray[np.bool_]) -> list[npt.NDArray[Any] | None]:
    values = np.ascontiguousarray(values)  # orjson reads no other
    return [row if is_scored else None for row, is_scored in zip(values, scored.tolist(), strict=True)]


def _encoders(
    encoding: EncodingFormat,
) -> tuple[Callable[[npt.NDArray[Any]], Any], Callable[[npt.NDArray[Any]], Any]]:
    """How integers and how quantities are written."""
    if encoding == "float":
        return np.ascontiguousarray, np.ascontiguousarray
    return lambda values: _base64(values, "<i4"), lambda values: _base64(values, "<f4")


def _base64(values: npt.NDArray[Any], dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode()
