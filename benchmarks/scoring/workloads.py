"""What is scored: random words of one token each, so that a text sent over HTTP becomes the very same ids again.

Every round draws new words and keeps the lengths: the work is the same, and nobody can remember an answer.
"""

import math
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_core.tokenization import TokenizedText

PROMPT, COMPLETION, COMPLETIONS = 200, 40, 8


class Text(NamedTuple):
    """As it is sent, and as models read it."""

    string: str
    tokens: TokenizedText


Draw = Callable[[int], list[Text]]  # of a round's number


class Words:
    """Draws texts for a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        pieces = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        self._ids = np.array([i for i, piece in enumerate(pieces) if re.fullmatch(" [a-z]{2,}", piece)])
        probe = self.texts([2048])(0)[0]
        assert tokenizer(probe.string)["input_ids"] == probe.tokens.ids.tolist()

    def texts(self, lengths: Sequence[int]) -> Draw:
        """Texts of these lengths, in tokens."""

        def draw(number: int) -> list[Text]:
            rng = np.random.default_rng(number)
            return [self._text(rng.choice(self._ids, length)) for length in lengths]

        return draw

    def completions(self, number: int) -> list[Text]:
        """Completions of one prompt; only they are scored."""
        rng = np.random.default_rng(number)
        prompt = rng.choice(self._ids, PROMPT)
        return [
            self._text(np.concatenate([prompt, rng.choice(self._ids, COMPLETION)]), first_scored=PROMPT)
            for _ in range(COMPLETIONS)
        ]

    def _text(self, chosen: np.ndarray, first_scored: int = 1) -> Text:
        ids = chosen.astype(np.int32)
        # Nobody here asks which bytes a token stands for.
        tokens = TokenizedText(ids=ids, start=ids * 0, end=ids * 0, first_scored=first_scored)
        return Text(self._tokenizer.decode(ids), tokens)


def lognormal_lengths() -> list[int]:
    """64 lengths of mean 120, from 4 to 512."""
    draw = random.Random(0)
    return [min(512, max(4, round(draw.lognormvariate(math.log(120) - 0.32, 0.8)))) for _ in range(64)]
