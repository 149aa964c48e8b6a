"""Between the wire and the core: a request's items as token ids, and what was scored as the wire's arrays."""

from jobs.scoring_wire import ItemError, ItemScores, ScoreItem, ScoreRequest, TopTerms
from rlhf_core.errors import EmptyInput, InputTooLong
from rlhf_core.scoring import ScoredText
from rlhf_core.tokenization import TokenizedText, tokenize
from worker.scorer.pairs import LoadedPair


def tokenized(pair: LoadedPair, item: ScoreItem) -> TokenizedText | ItemError:
    """The item's token ids, or why it cannot be scored."""
    try:
        return tokenize(pair.models.tokenizer, item.text or "", item.prompt, context=pair.capacity.context)
    except (EmptyInput, InputTooLong) as error:
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
    )


def _largest(scored: ScoredText, k: int) -> TopTerms | None:
    """The first k columns: a batch is scored with the largest k of its requests."""
    if scored.top is None or k == 0:
        return None
    return TopTerms(**{name: values[:, :k] for name, values in scored.top._asdict().items()})
