"""Text to token ids, each with the bytes of the text it stands for.

Byte-level BPE splits a character over several tokens, so spans are in UTF-8 bytes: they are in order and tile the
text, and `text.encode()[start:end]` of consecutive tokens always joins to the text again.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rlhf_core.errors import EmptyInput, InputTooLong

Int32Array = npt.NDArray[np.int32]


class TokenizedText(NamedTuple):
    """Token ids of prompt + text, their byte spans in its UTF-8, and how many lead without being scored."""

    ids: Int32Array
    start: Int32Array
    end: Int32Array
    first_scored: int


class _Encoding(NamedTuple):
    ids: list[int]
    spans: list[tuple[int, int]]  # in characters; tokens of one character share its span


def tokenize(tokenizer: Any, text: str, prompt: str | None = None, *, context: int) -> TokenizedText:
    """Token ids of a text, or of a prompt and its completion.

    Prompt and completion are tokenised apart and joined as ids, as when the completion is generated: the special
    tokens that the tokenizer adds belong to the prompt (to the text, when there is no prompt). The first token has
    no context and is never scored.

    Raises:
        EmptyInput: no token is left to score.
        InputTooLong: more tokens than `context`.
    """
    if prompt is None:
        lead, body = _Encoding([], []), _encode(tokenizer, text, add_special_tokens=True)
    else:
        lead = _encode(tokenizer, prompt, add_special_tokens=True)
        body = _encode(tokenizer, text, add_special_tokens=False)
    n_tokens, first_scored = len(lead.ids) + len(body.ids), max(len(lead.ids), 1)
    if n_tokens <= first_scored:
        raise EmptyInput("no token is left to score: the first token of a sequence has no context")
    if n_tokens > context:
        raise InputTooLong(f"{n_tokens} tokens are more than the model's context of {context}")
    shift = len((prompt or "").encode())
    ends = _ends(tokenizer, prompt or "", lead) + [shift + end for end in _ends(tokenizer, text, body)]
    return TokenizedText(
        ids=np.array(lead.ids + body.ids, dtype=np.int32),
        start=np.array([0, *ends[:-1]], dtype=np.int32),
        end=np.array(ends, dtype=np.int32),
        first_scored=first_scored,
    )


def _encode(tokenizer: Any, text: str, *, add_special_tokens: bool) -> _Encoding:
    encoded = tokenizer(
        text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False
    )
    return _Encoding(list(encoded["input_ids"]), [tuple(span) for span in encoded["offset_mapping"]])


def _ends(tokenizer: Any, text: str, encoding: _Encoding) -> list[int]:
    """Where each token ends in the text's bytes; it starts where the one before it ends."""
    pieces = _pieces(tokenizer, encoding)
    if pieces is not None and b"".join(pieces) == text.encode():
        return list(accumulate(len(piece) for piece in pieces))
    return ends_from_characters(text, encoding.spans)


def _pieces(tokenizer: Any, encoding: _Encoding) -> list[bytes] | None:
    """The bytes each token stands for by a byte-level vocabulary, or None if it is no such vocabulary."""
    added = tokenizer.added_tokens_decoder
    pieces: list[bytes] = []
    tokens = tokenizer.convert_ids_to_tokens(encoding.ids)
    for token_id, token, (first, last) in zip(encoding.ids, tokens, encoding.spans, strict=True):
        if first == last:  # added by the tokenizer, not in the text
            pieces.append(b"")
        elif token_id in added:
            pieces.append(added[token_id].content.encode())
        elif all(character in _BYTE_OF for character in token):
            pieces.append(bytes(_BYTE_OF[character] for character in token))
        else:
            return None
    return pieces


def ends_from_characters(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Byte ends from character spans, for tokenizers that normalise or are not byte-level.

    Tokens that share a character share out its bytes; what lies between two tokens belongs to the later one, and
    what follows the last belongs to it.
    """
    byte_at = list(accumulate((len(character.encode()) for character in text), initial=0))
    ends: list[int] = []
    position = 0
    for index, (first, last) in enumerate(spans):
        if last > first:
            before = after = index
            while before > 0 and spans[before - 1] == (first, last):
                before -= 1
            while after + 1 < len(spans) and spans[after + 1] == (first, last):
                after += 1
            width = byte_at[last] - byte_at[first]
            share = width * (index - before + 1) // (after - before + 1)
            position = max(position, byte_at[first] + share)
        ends.append(position)
    with_text = [index for index, (first, last) in enumerate(spans) if last > first]
    for index in range(with_text[-1] if with_text else len(ends), len(ends)):
        ends[index] = byte_at[-1]
    return ends


def _byte_level_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte (Radford et al. 2019), inverted."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + n): byte for n, byte in enumerate(moved)}


_BYTE_OF = _byte_level_alphabet()
