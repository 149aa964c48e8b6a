"""Between the wire and the core: a request's items as token ids, and what was scored as the wire's arrays."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jobs.residents import Resident
from jobs.scoring_wire import ItemError, ItemScores, ScoreItem, ScoreReply, ScoreRequest, TopTerms, Weights
from rlhf_core.errors import UnusableInput
from rlhf_core.models import WeightSource
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
        return ItemError(code=error.code, detail=str(error), context=error.context)


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


def timed_reply(
    ticket: Ticket,
    pair: LoadedPair,
    spent: dict[str, float],
    resident: Mapping[WeightSource, Resident],
) -> ScoreReply:
    """The reply to a request whose items all have an answer."""
    policy, reference = ticket.key.pair
    return ScoreReply(
        items=[ticket.answers[item] for item in range(len(ticket.request.items))],
        tokenizer_sha256=pair.models.tokenizer_sha256,
        vocab_size=pair.capacity.vocab_size,
        vocab_sizes=pair.models.vocab_sizes,
        weights_dtype=pair.models.weights_dtype,
        models=(_weights(resident.get(policy)), _weights(resident.get(reference))),
        pieces=top_pieces(pair.models.tokenizer, ticket.answers.values()),
        spent=spent,
    )


def _weights(found: Resident | None) -> Weights:
    if found is None:
        return Weights()
    return Weights(revision=found.revision, weights_sha256=found.weights_sha256)
