"""Stop strings, found while a completion grows, and what can be no stop at all."""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rlhf_core.errors import UnknownToken, UnusableStop

Decode = Callable[[list[int]], str]
INCOMPLETE = "\ufffd"  # what the bytes of a character decode to while some are missing


class StopStrings:
    """Stop strings, and the completions of one batch as far as a stop string may still begin in them.

    A token completes a stop string if the completion, decoded up to it, is the first to hold one. Of each
    completion the tokens since its last whole character are decoded again at every step, and a few before them.
    """

    def __init__(self, strings: Sequence[str], decode: Decode) -> None:
        self._strings, self._decode = strings, decode
        self._overlap = max(map(len, strings)) - 1
        self._completions: dict[int, _Tail] = {}

    def completed_by(
        self, rows: Int[Tensor, " unfinished"], tokens: Int[Tensor, " unfinished"]
    ) -> Bool[Tensor, " unfinished"]:
        """Add a token to each of these completions; True where it completes a stop string."""
        texts = (
            self._completions.setdefault(row, _Tail(self._decode, self._overlap)).append(token)
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True)
        )
        found = [any(map(text.__contains__, self._strings)) for text in texts]
        return torch.tensor(found, dtype=torch.bool, device=tokens.device)


class _Tail:
    """The end of a completion's text, decoded token by token.

    What a token adds depends on the tokens around it: bytes join to characters, and some tokenizers drop the
    space in front of the first word. So tokens are decoded behind those before them, and stay open until their
    last character is complete.
    """

    def __init__(self, decode: Decode, keep: int) -> None:
        self._decode, self._keep = decode, keep
        self._settled = ""  # the last `keep` characters that no later token changes
        self._before: list[int] = []  # the last tokens whose text is settled
        self._before_width = 0
        self._open: list[int] = []

    def append(self, token: int) -> str:
        """What this token adds, and any older text that a stop string ending in it may begin in."""
        self._open.append(token)
        added = self._decode(self._before + self._open)[self._before_width :]
        text = self._settled + added
        if added and not added.endswith(INCOMPLETE):
            self._settled = text[max(len(text) - self._keep, 0) :]
            self._before, self._open = self._open, []
            self._before_width = len(self._decode(self._before))
        elif not added and self._before:
            self._open.clear()  # special tokens, which have no text
        return text


def require_producible(
    strings: Iterable[str],
    token_ids: Iterable[int],
    *,
    vocab_size: int,
    encode: Callable[[str], list[int]],
    decode: Decode,
) -> None:
    """Refuse what would end no completion.

    Raises:
        UnknownToken: a stop token that the model does not have.
        UnusableStop: a stop string that is not decoded as it is encoded.
    """
    for token_id in token_ids:
        if token_id >= vocab_size:
            raise UnknownToken(
                f"rollout.stop_token_ids: {token_id} is none of the model's {vocab_size} tokens, "
                f"0 to {vocab_size - 1}"
            )
    for string in strings:
        if string not in decode(encode("." + string)):  # some tokenizers drop a space in front of all
            raise UnusableStop(
                f"rollout.stop: the model's tokenizer never writes {string!r}. Special tokens have no text: "
                "they belong in rollout.stop_token_ids"
            )
