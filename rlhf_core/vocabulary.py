"""What each token id stands for: bytes, for byte-level BPE splits a character over several tokens."""

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer[Any]]


class ByteVocabulary(NamedTuple):
    """The bytes of every id of a byte-level vocabulary; an id that only the model's head has stands for none."""

    raw: npt.NDArray[np.uint8]  # of all ids, one after the other
    starts: npt.NDArray[np.int64]  # where each id's begin, and one more: ids beyond the vocabulary
    widths: npt.NDArray[np.int64]

    def join(self, ids: Ids) -> bytes:
        """The bytes of a sequence of ids."""
        places = np.minimum(ids, len(self.starts) - 1)
        widths = self.widths[places]
        ends = np.cumsum(widths)
        shifts = np.repeat(self.starts[places] - (ends - widths), widths)
        gathered: npt.NDArray[np.uint8] = self.raw[np.arange(len(shifts)) + shifts]
        return gathered.tobytes()

    def widths_of(self, ids: Ids) -> npt.NDArray[np.int64]:
        """How many bytes each id stands for."""
        return self.widths[np.minimum(ids, len(self.starts) - 1)]


_KNOWN: WeakKeyDictionary[Any, ByteVocabulary | None] = WeakKeyDictionary()


def byte_vocabulary(tokenizer: Any) -> ByteVocabulary | None:
    """The bytes of a tokenizer's ids, or None if it is not byte-level. Made once per tokenizer: 0.1 s and more."""
    if tokenizer not in _KNOWN:
        decoder = tokenizer.backend_tokenizer.decoder
        byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()
        _KNOWN[tokenizer] = _read(tokenizer) if byte_level else None
    return _KNOWN[tokenizer]


def in_sequence(tokenizer: Any, ids: Ids) -> tuple[bytes, npt.NDArray[np.int64]]:
    """The bytes that a sequence of ids stands for, and where each id's end in them.

    Exact in a byte-level vocabulary, else each id as the tokenizer decodes it after the one before. An id that the
    tokenizer does not have stands for nothing.
    """
    vocabulary = byte_vocabulary(tokenizer)
    if vocabulary is not None:
        return vocabulary.join(ids), np.cumsum(vocabulary.widths_of(ids))
    listed = ids.tolist()
    parts = [_decoded_after(tokenizer, *pair) for pair in zip([None, *listed[:-1]], listed, strict=True)]
    return b"".join(parts), np.cumsum([len(part) for part in parts])


def alone(tokenizer: Any, ids: Ids) -> list[str]:
    """What each id stands for by itself; U+FFFD stands for a part of a character.

    Outside byte-level vocabularies this is the vocabulary's own spelling, with spaces for the mark of a space.
    """
    vocabulary = byte_vocabulary(tokenizer)
    if vocabulary is not None:
        return [vocabulary.join(ids[n : n + 1]).decode("utf-8", "replace") for n in range(len(ids))]
    return [(token or "").replace("\u2581", " ") for token in tokenizer.convert_ids_to_tokens(ids.tolist())]


def _decoded_after(tokenizer: Any, before: int | None, token_id: int) -> bytes:
    """Decoders drop or add a space at a word's edge, so what an id says depends on the one before it."""

    def decode(*some: int) -> str:
        return str(tokenizer.backend_tokenizer.decode(list(some), skip_special_tokens=False))

    if before is not None:
        context, both = decode(before), decode(before, token_id)
        if both.startswith(context):
            return both[len(context) :].encode()
    return decode(token_id).encode()


def _read(tokenizer: Any) -> ByteVocabulary:
    added = tokenizer.added_tokens_decoder
    spelled = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    texts = [
        added[token_id].content.encode() if token_id in added else _bytes_of(spelled.get(token_id, ""))
        for token_id in range(max(spelled, default=-1) + 1)
    ]
    widths = np.array([*map(len, texts), 0], dtype=np.int64)
    return ByteVocabulary(
        raw=np.frombuffer(b"".join(texts), dtype=np.uint8), starts=np.cumsum(widths) - widths, widths=widths
    )


def _bytes_of(token: str) -> bytes:
    """A token's bytes; one that is not spelled in the alphabet is taken as it is written."""
    if all(character in _BYTE_OF for character in token):
        return bytes(_BYTE_OF[character] for character in token)
    return token.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte (Radford et al. 2019), inverted."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + n): byte for n, byte in enumerate(moved)}


_BYTE_OF = _byte_level_alphabet()
