"""What a model's tokenizer makes of texts and ids, without the model's weights: they need not be in memory."""

from collections import OrderedDict
from typing import Any

import numpy as np

from jobs.errors import ScoringRefused
from jobs.tokenizing_wire import Tokenized, TokenizeReply, TokenizeRequest
from rlhf_core.errors import RLHFError
from rlhf_core.models import WeightSource, tokenizer_of, tokenizer_sha256
from rlhf_core.tokenization import spelled
from rlhf_core.vocabulary import in_sequence
from worker.scorer.failures import failure_of

MAX_TOKENIZERS = 8  # some tens of megabytes each


class Tokenizers:
    """The tokenizers that were used last. Not for several threads at once."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[WeightSource, tuple[Any, str]] = OrderedDict()

    def answer(self, request: TokenizeRequest, source: WeightSource) -> TokenizeReply:
        """Texts to tokens, or ids to text. Raises ScoringRefused."""
        tokenizer, sha256 = self._get(source)
        if request.texts is not None:
            items = [
                _of_text(tokenizer, text, add_special_tokens=request.add_special_tokens)
                for text in request.texts
            ]
        else:
            items = [_of_ids(tokenizer, ids, item) for item, ids in enumerate(request.token_ids or [])]
        return TokenizeReply(items=items, tokenizer_sha256=sha256, vocab_size=len(tokenizer))

    def _get(self, source: WeightSource) -> tuple[Any, str]:
        if source not in self._loaded:
            try:
                tokenizer = tokenizer_of(source)
            except RLHFError as error:
                raise failure_of(error, requests=1) from None
            self._loaded[source] = tokenizer, tokenizer_sha256(tokenizer)
            if len(self._loaded) > MAX_TOKENIZERS:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(source)
        return self._loaded[source]


def _of_text(tokenizer: Any, text: str, *, add_special_tokens: bool) -> Tokenized:
    found = spelled(tokenizer, text, add_special_tokens=add_special_tokens)
    return Tokenized(
        token_ids=found.ids,
        start=found.start,
        end=found.end,
        special=_special(tokenizer, found.ids),
        text=text.encode(),
    )


def _of_ids(tokenizer: Any, ids: list[int], item: int) -> Tokenized:
    size = len(tokenizer)
    foreign = next((place for place, token_id in enumerate(ids) if not 0 <= token_id < size), None)
    if foreign is not None:
        raise ScoringRefused(
            "token_id_out_of_range",
            f"token ids are from 0 to {size - 1}; the one at {foreign} of item {item} is not",
        )
    array = np.array(ids, dtype=np.int32)
    text, ends = in_sequence(tokenizer, array)
    return Tokenized(
        token_ids=array,
        start=np.append(0, ends)[:-1].astype(np.int32),
        end=ends.astype(np.int32),
        special=_special(tokenizer, array),
        text=text,
    )


def _special(tokenizer: Any, ids: Any) -> Any:
    return np.isin(ids, np.array(tokenizer.all_special_ids, dtype=np.int64))
