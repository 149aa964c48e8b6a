"""Between the wire and the core: a request's items as token ids, and what was scored as the wire's arrays."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from jobs.scoring_wire import ItemError, ItemScores, ScoreItem, TopTerms
from rlhf_core.errors import UnusableInput
from rlhf_core.scoring import ScoredText
from rlhf_core.tokenization import TokenizedText, tokenize_item
from rlhf_core.vocabulary import alone
from worker.scorer.pairs import LoadedPair


def tokenized(pair: LoadedPair, item: ScoreItem) -> TokenizedText | ItemError:
    """The item's token ids, or why it cannot be scored."""
    try:
        return tokenize_item(
            pair.models.tokenizer, item, context=pair.capacity.context, vocab_size=pair.capacity.vocab_size
        )
    except UnusableInput as error:
        return ItemError(code=error.code, detail=str(error))


def item_scores(text: TokenizedText, scored: ScoredText, quantities: tuple[str, ...]) -> ItemScores:
    """One item's answer with the quantities that were asked for."""
    top: Any = getattr(scored, "top", None)
    return ItemScores(
        token_ids=scored.ids,
        start=scored.start,
        end=scored.end,
        scored=scored.scored,
        quantities={name: values for name, values in scored.quantities.items() if name in quantities},
        top=None
        if top is None
        else TopTerms(
            ids=top.ids,
            policy_logprob=top.policy_logprob,
            reference_logprob=top.reference_logprob,
            kl_term=top.kl_term,
        ),
        text=text.text,
        truncated=text.truncated,
    )


def top_pieces(tokenizer: Any, answers: Iterable[ItemScores | ItemError]) -> dict[int, str]:
    """What each id that occurs in a `top` stands for."""
    found = [
        np.unique(answer.top.ids[answer.scored])
        for answer in answers
        if isinstance(answer, ItemScores) and answer.top is not None
    ]
    if not found:
        return {}
    ids = np.unique(np.concatenate(found))
    return dict(zip(ids.tolist(), alone(tokenizer, ids), strict=True))
