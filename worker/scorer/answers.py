"""Between the wire and the core: a request's items as token ids, and what was scored as the wire's arrays."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from jobs.scoring_wire import ItemError, ItemScores, ScoreItem, ScoreReply, ScoreRequest, TopTerms
from rlhf_core.errors import UnusableInput
from rlhf_core.scoring import ScoredText
from rlhf_core.tokenization import TokenizedText, tokenize_item
from rlhf_core.vocabulary import alone
from worker.scorer.pairs import LoadedPair
from worker.scorer.tickets import Ticket


def tokenized(pair: LoadedPair, item: ScoreItem) -> TokenizedText | ItemError:
    """The item's token ids, or why it cannot be scored."""
    try:
        return tokenize_item(
            pair.models.tokenizer, item, context=pair.capacity.context, vocab_size=pair.capacity.vocab_size
        )
    except UnusableInput as error:
        return ItemError(code=error.code, detail=str(error))


def item_scores(text: TokenizedText, scored: ScoredText, request: ScoreRequest) -> ItemScores:
    """One item's answer with what was asked for; `scored` may be of another text with the same tokens."""
    return ItemScores(
        token_ids=text.ids,
        start=text.start,
        end=text.end,
        scored=scored.scored,
        quantities={name: values for name, values in scored.quantities.items() if name in request.quantities},
        top=_largest(scored, request.top_k),
        text=text.text,
        truncated=text.truncated,
    )


def _largest(scored: ScoredText, k: int) -> TopTerms | None:
    """The first k columns: a batch is scored with the largest k of its requests."""
    top = scored.top
    if top is None or k == 0:
        return None
    return TopTerms(
        ids=top.ids[:, :k],
        policy_logprob=top.policy_logprob[:, :k],
        reference_logprob=top.reference_logprob[:, :k],
        kl_term=top.kl_term[:, :k],
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


def timed_reply(ticket: Ticket, pair: LoadedPair, spent: dict[str, float]) -> ScoreReply:
    """The reply to a request whose items all have an answer."""
    return ScoreReply(
        items=[ticket.answers[item] for item in range(len(ticket.request.items))],
        tokenizer_sha256=pair.models.tokenizer_sha256,
        vocab_size=pair.capacity.vocab_size,
        weights_dtype=pair.models.weights_dtype,
        pieces=top_pieces(pair.models.tokenizer, ticket.answers.values()),
        spent=spent,
    )
