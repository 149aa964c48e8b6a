"""Texts, token ids and conversations to token ids, each with the bytes of the text it stands for.

Byte-level BPE splits a character over several tokens, so spans are in UTF-8 bytes: they are in order and tile the
text, and `text.encode()[start:end]` of consecutive tokens always joins to the text again.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rlhf_core.chat import Message, render
from rlhf_core.errors import EmptyInput, InputTooLong, TokenIdOutOfRange
from rlhf_core.vocabulary import byte_vocabulary, in_sequence

Int32Array = npt.NDArray[np.int32]
Truncation = Literal["error", "left", "right"]


@runtime_checkable  # beartype asks
class _Item(Protocol):
    """What is to be scored, in one of three forms: jobs.scoring_wire.ScoreItem."""

    @property
    def text(self) -> str | None: ...
    @property
    def prompt(self) -> str | None: ...
    @property
    def token_ids(self) -> list[int] | None: ...
    @property
    def score_from(self) -> int: ...
    @property
    def messages(self) -> Sequence[Message] | None: ...
    @property
    def add_special_tokens(self) -> bool: ...
    @property
    def truncation(self) -> Truncation: ...


class TokenizedText(NamedTuple):
    """Token ids of prompt + text, their byte spans in its UTF-8, and how many lead without being scored."""

    ids: Int32Array
    start: Int32Array
    end: Int32Array
    first_scored: int
    text: bytes | None = None  # what the spans are of, where it is not the prompt + text that was given
    truncated: bool = False


class _Encoding(NamedTuple):
    ids: list[int]
    spans: list[tuple[int, int]]  # in characters; tokens of one character share its span


def tokenize_item(tokenizer: Any, item: _Item, *, context: int, vocab_size: int) -> TokenizedText:
    """Token ids of a text, of a prompt and its completion, of a conversation, or the ids that were given.

    Spans of given ids are into the bytes that they stand for, one after the other; those of a conversation are
    into what its template renders, and its last turn is what is scored.

    Raises:
        EmptyInput: no token is left to score.
        InputTooLong: more tokens than `context`, and `truncation` is `error`.
        TokenIdOutOfRange: an id is not below `vocab_size`.
        NoChatTemplate, ChatTemplateFailed, ChatTemplateMismatch: see rlhf_core/chat.py.
    """
    if item.token_ids is not None:
        return _given(tokenizer, item, context=context, vocab_size=vocab_size)
    if item.messages is not None:
        prompt, completion = render(tokenizer, item.messages)
        found = tokenize(
            tokenizer,
            completion,
            prompt,
            context=context,
            add_special_tokens=False,  # the template writes them
            truncation=item.truncation,
        )
        return _known(found._replace(text=(prompt + completion).encode()), vocab_size)
    found = tokenize(
        tokenizer,
        item.text or "",
        item.prompt,
        context=context,
        add_special_tokens=item.add_special_tokens,
        truncation=item.truncation,
    )
    return _known(found, vocab_size)


def _known(text: TokenizedText, vocab_size: int) -> TokenizedText:
    """A tokenizer may have added tokens (a [PAD]) for which the model has no row."""
    foreign = np.flatnonzero(text.ids >= vocab_size)
    if len(foreign):
        raise TokenIdOutOfRange(f"token {foreign[0]} of the text is none of the model's {vocab_size}")
    return text


def tokenize(
    tokenizer: Any,
    text: str,
    prompt: str | None = None,
    *,
    context: int,
    add_special_tokens: bool = True,
    truncation: Truncation = "error",
) -> TokenizedText:
    """Token ids of a text, or of a prompt and its completion.

    Prompt and completion are tokenised apart and joined as ids, as when the completion is generated: the special
    tokens that the tokenizer adds belong to the prompt (to the text, when there is no prompt). The first token has
    no context and is never scored. Truncation on the left spares the special tokens in front.

    Raises:
        EmptyInput: no token is left to score.
        InputTooLong: more tokens than `context`, and `truncation` is `error`.
    """
    if prompt is None:
        lead, body = _Encoding([], []), _encode(tokenizer, text, add_special_tokens=add_special_tokens)
    else:
        lead = _encode(tokenizer, prompt, add_special_tokens=add_special_tokens)
        body = _encode(tokenizer, text, add_special_tokens=False)
    first_scored = max(len(lead.ids), 1)
    _check(len(lead.ids) + len(body.ids), first_scored, context, truncation)
    shift = len((prompt or "").encode())
    ends = np.append(_ends(tokenizer, prompt or "", lead), shift + _ends(tokenizer, text, body))
    found = _spanned(np.array(lead.ids + body.ids, dtype=np.int32), ends, first_scored)
    front = lead.spans or body.spans
    special = next((n for n, (a, b) in enumerate(front) if a < b), len(front))
    return _fitted(found, context, truncation, spared=special)


def spelled(tokenizer: Any, text: str, *, add_special_tokens: bool = True) -> TokenizedText:
    """Token ids of a text of any length, also of none: for those who ask about tokens and not about scores."""
    encoding = _encode(tokenizer, text, add_special_tokens=add_special_tokens)
    ends = _ends(tokenizer, text, encoding)
    return _spanned(np.array(encoding.ids, dtype=np.int32), ends, first_scored=0)


def _given(tokenizer: Any, item: _Item, *, context: int, vocab_size: int) -> TokenizedText:
    try:
        ids = np.array(item.token_ids, dtype=np.int64)
    except OverflowError:
        raise TokenIdOutOfRange(f"token ids are from 0 to {vocab_size - 1}") from None
    foreign = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if len(foreign):
        raise TokenIdOutOfRange(f"token ids are from 0 to {vocab_size - 1}; the one at {foreign[0]} is not")
    _check(len(ids), item.score_from, context, item.truncation)
    text, ends = in_sequence(tokenizer, ids)
    found = _spanned(ids.astype(np.int32), ends, item.score_from)
    return _fitted(found, context, item.truncation)._replace(text=text)


def _check(n_tokens: int, first_scored: int, context: int, truncation: Truncation) -> None:
    kept = min(n_tokens, context) if truncation == "right" else n_tokens
    if kept <= first_scored:
        raise EmptyInput("no token is left to score: the first token of a sequence has no context")
    if n_tokens > context and truncation == "error":
        detail = f"{n_tokens} tokens are more than the model's context of {context}"
        raise InputTooLong(detail, {"limit": context, "actual": n_tokens})


def _spanned(ids: Int32Array, ends: npt.NDArray[np.int64], first_scored: int) -> TokenizedText:
    end = ends.astype(np.int32)
    return TokenizedText(ids, np.append(np.int32(0), end)[:-1], end, first_scored)


def _fitted(found: TokenizedText, context: int, truncation: Truncation, *, spared: int = 0) -> TokenizedText:
    """At most `context` tokens: without the last ones, or without the first ones after those that are spared."""
    excess = len(found.ids) - context
    if excess <= 0:
        return found
    spared = min(spared, context - 1)
    cut = slice(context, None) if truncation == "right" else slice(spared, spared + excess)
    first = found.first_scored
    if truncation == "left":
        first = max(first - excess, min(first, max(spared, 1)))
    ids, start, end = (np.delete(column, cut) for column in (found.ids, found.start, found.end))
    return TokenizedText(ids, start, end, first, truncated=True)


def _encode(tokenizer: Any, text: str, *, add_special_tokens: bool) -> _Encoding:
    encoded = tokenizer(
        text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False
    )
    return _Encoding(list(encoded["input_ids"]), [tuple(span) for span in encoded["offset_mapping"]])


def _ends(tokenizer: Any, text: str, encoding: _Encoding) -> npt.NDArray[np.int64]:
    """Where each token ends in the text's bytes; it starts where the one before it ends."""
    vocabulary = byte_vocabulary(tokenizer)
    if vocabulary is not None and encoding.ids:
        ids, spans = np.array(encoding.ids), np.array(encoding.spans)
        from_text = spans[:, 0] < spans[:, 1]  # the others were added by the tokenizer
        if vocabulary.join(ids[from_text]) == text.encode():
            return np.cumsum(np.where(from_text, vocabulary.widths_of(ids), 0))
    return np.array(ends_from_characters(text, encoding.spans), dtype=np.int64)


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
