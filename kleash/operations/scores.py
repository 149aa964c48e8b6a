"""/v1/scores, /v1/tokenize and /v1/divergences: numbers for what is sent along, at once."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

from kleash.calls import Call, document, given, new_key
from kleash.documents import Document, Job, Scores
from kleash.score_options import Item, ScoreOptions

Offsets = Literal["byte", "codepoint", "utf16", "none"]


def create(items: Item | Sequence[Item], **options: Unpack[ScoreOptions]) -> Call[Scores]:
    """Per-token KL(policy ‖ reference) in nats, of one item or several.

    An item is a text, `{"prompt", "completion"}`, a list of token ids, `{"token_ids", "score_from"}`, or
    `{"messages"}`, of which the last, the assistant's, is scored. Without `policy` and `reference` the
    service's default pair answers; what is None is left to the service.
    """
    body = given(input=items, **options)
    return Call("scores_create", "POST", "/v1/scores", document, body=body, repeatable=True)


def create_job(
    items: Item | Sequence[Item], *, idempotency_key: str | None = None, **options: Unpack[ScoreOptions]
) -> Call[Job]:
    """A score job of the same request, whose results are there later."""
    headers = new_key(idempotency_key) | {"prefer": "respond-async"}
    body = given(input=items, **options)
    return Call("scores_create", "POST", "/v1/scores", document, headers=headers, body=body, repeatable=True)


def stream(items: Item | Sequence[Item], **options: Unpack[ScoreOptions]) -> Call[None]:
    """As `create`, a document for each item as soon as it is known, and a summary at the end."""
    body = given(input=items, **options)
    return Call(
        "scores_stream",
        "POST",
        "/v1/scores/stream",
        lambda _: None,
        body=body,
        repeatable=True,
        streamed=True,
    )


def tokenize(
    input: str | Sequence[str],
    *,
    model: str | None = None,
    add_special_tokens: bool | None = None,
    offsets: Offsets | None = None,
) -> Call[Document]:
    """The ids that scores are of, with each token's text and offsets."""
    body = given(input=input, model=model, add_special_tokens=add_special_tokens, offsets=offsets)
    return Call("tokens_encode", "POST", "/v1/tokenize", document, body=body, repeatable=True)


def detokenize(
    input: Sequence[int] | Sequence[Sequence[int]],
    *,
    model: str | None = None,
    offsets: Offsets | None = None,
) -> Call[Document]:
    """The text of ids."""
    body = given(input=input, model=model, offsets=offsets)
    return Call("tokens_decode", "POST", "/v1/detokenize", document, body=body, repeatable=True)


def divergences(request: Mapping[str, Any]) -> Call[Document]:
    """KL and its kin of given distributions or log-probabilities."""
    return Call("divergences_create", "POST", "/v1/divergences", document, body=request, repeatable=True)
