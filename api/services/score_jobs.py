"""`Prefer: respond-async` on POST /v1/scores: the same request as a score job, with its items inline."""

from api.errors import UnsupportedOption
from api.schemas_scores import ScoresRequest
from api.services.scores import wire_item
from jobs.bulk import MAX_PER_TOKEN, BulkItem, ScoreConfig, ShardConfig
from jobs.spec import ScoreSpec

EVERY_ITEMS = ShardConfig().every_items


def as_job(request: ScoresRequest) -> ScoreSpec:
    """The job. Raises UnsupportedOption for what results of jobs do not have."""
    _refuse_what_no_job_does(request)
    return ScoreSpec(
        type="score",
        metadata=request.metadata,
        config=ScoreConfig(
            policy=request.policy,
            reference=request.reference,
            items=_items(request),
            quantities=tuple(dict.fromkeys(request.quantities)),
            temperature=request.temperature,
            sampled_from="policy" if request.sampled_from == "policy" else "unknown",
            per_token=request.per_token,
            top_k=request.top_k,
            numerics=request.numerics,
            vocab_mismatch=request.vocab_mismatch,
            checkpoint=ShardConfig(every_items=_every_items(request)),
        ),
    )


def _items(request: ScoresRequest) -> tuple[BulkItem, ...]:
    asked = [wire_item(item, request).model_dump(exclude_defaults=True) for item in request.items]
    return tuple(BulkItem.model_validate(item) for item in asked)


def _every_items(request: ScoresRequest) -> int:
    """A shard's numbers are in memory together."""
    return min(EVERY_ITEMS, MAX_PER_TOKEN // (1 + request.top_k)) if request.per_token else EVERY_ITEMS


def _refuse_what_no_job_does(request: ScoresRequest) -> None:
    for pointer, is_fine, detail in (
        ("/beta", request.beta is None, "a job adjusts no rewards: results have Σ k1 to do it with"),
        ("/sampled_from", request.sampled_from != "reference", "of a job it is policy or unknown"),
        ("/offsets", request.offsets == "byte", "results of a job have offsets in bytes"),
        ("/encoding_format", request.encoding_format == "float", "results of a job are JSON"),
        ("/attribution", not request.attribution, "a job has no attribution"),
        ("/top_k", request.per_token or not request.top_k, "in a job's results it needs per_token"),
        ("/request_timeout_s", request.request_timeout_s is None, "a job has none: cancel it"),
    ):
        if not is_fine:
            raise UnsupportedOption(pointer, f"{detail}; leave it out with Prefer: respond-async")
