"""POST /v1/scores: names to folders, texts to the scorer, arrays back to a document."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import uuid_utils

from api.schemas import rfc3339
from api.schemas_scores import Completion, ScoresRequest
from api.services.models import ModelResolver
from jobs.errors import ScoringRefused
from jobs.ports import Scorer
from jobs.scoring_wire import ItemError, ItemScores, ScoreItem, ScoreReply, ScoreRequest
from jobs.settings import Settings

Array = npt.NDArray[np.float64]

NOTES = {
    "policy": "The texts are claimed to be sampled from the policy: means of k1 and k3 estimate KL(policy ‖ "
    "reference), if every token was drawn from the whole softmax at this temperature.",
    "unknown": "The texts are not claimed to be sampled from the policy: means of k1 and k3 describe these texts "
    "and do not estimate KL. kl is exact at every position.",
}


class ScoreService:
    """Scores texts under a pair of models."""

    def __init__(self, models: ModelResolver, scorer: Scorer, settings: Settings) -> None:
        self._models, self._scorer, self._settings = models, scorer, settings

    def score(self, request: ScoresRequest, owner: str) -> dict[str, Any]:
        """The answer's document, as values for JSON.

        Raises:
            UnknownModel, PathNotAllowed: a name that is no model.
            ScoringRefused: too many items, models that do not fit together, or no text that can be scored.
            ScorerUnavailable, ScorerOverloaded, DeadlineExceeded: the scorer gave no answer.
        """
        if len(request.items) > self._settings.max_items:
            raise ScoringRefused(
                "too_many_items", f"{len(request.items)} items are more than {self._settings.max_items}"
            )
        policy, reference = self._pair(request)
        wanted = list(dict.fromkeys(request.quantities))
        reply = self._scorer.score(
            ScoreRequest(
                policy=self._models.resolve(policy, owner),
                reference=self._models.resolve(reference, owner),
                items=[_wire_item(item) for item in request.items],
                temperature=request.temperature,
                quantities=(*wanted, *(["k1"] if request.beta is not None and "k1" not in wanted else [])),
                client=owner,
            ),
            timeout_s=self._settings.score_timeout_s,
        )
        failed = [answer for answer in reply.items if isinstance(answer, ItemError)]
        if len(failed) == len(reply.items):
            raise ScoringRefused(failed[0].code, failed[0].detail, failed[0].context)
        return {
            "object": "list",
            "id": f"score_{uuid_utils.uuid7().hex}",
            "created_at": rfc3339(time.time()),
            "policy": {"id": policy},
            "reference": {"id": reference},
            **_document(request, wanted, reply),
        }

    def _pair(self, request: ScoresRequest) -> tuple[str, str]:
        if request.policy is not None and request.reference is not None:
            return request.policy, request.reference
        policy, reference = self._models.default_pair()
        return request.policy or policy, request.reference or reference


def _wire_item(item: str | Completion) -> ScoreItem:
    if isinstance(item, str):
        return ScoreItem(text=item)
    return ScoreItem(prompt=item.prompt, text=item.completion)


def _document(request: ScoresRequest, wanted: Sequence[str], reply: ScoreReply) -> dict[str, Any]:
    scored = {i: answer for i, answer in enumerate(reply.items) if isinstance(answer, ItemScores)}
    prompts = {i: item.prompt for i, item in enumerate(request.items) if isinstance(item, Completion)}
    return {
        "tokenizer": {"sha256": reply.tokenizer_sha256, "vocab_size": reply.vocab_size},
        "numerics": {
            "weights_dtype": reply.weights_dtype,
            "logits_dtype": "float32",
            "temperature": request.temperature,
            "unit": "nats",
        },
        "partial": len(scored) < len(reply.items),
        "data": [
            _failure(index, answer)
            if isinstance(answer, ItemError)
            else _score(request, wanted, index, answer)
            for index, answer in enumerate(reply.items)
        ],
        "summary": summarise(
            list(scored.values()), wanted, clusters=[prompts.get(index, index) for index in scored]
        )
        if len(scored) > 1
        else None,
        "note": NOTES[request.sampled_from],
        "usage": {
            "input_tokens": sum(len(answer.token_ids) for answer in scored.values()),
            "scored_tokens": sum(int(answer.scored.sum()) for answer in scored.values()),
        },
    }


def _failure(index: int, answer: ItemError) -> dict[str, Any]:
    return {"object": "score", "index": index, "error": {"code": answer.code, "detail": answer.detail}}


def _score(request: ScoresRequest, wanted: Sequence[str], index: int, answer: ItemScores) -> dict[str, Any]:
    n_scored = int(answer.scored.sum())
    sums = {name: _sum(answer, name) for name in wanted}
    adjusted = None
    if request.rewards is not None and request.beta is not None:
        adjusted = request.rewards[index] - request.beta * _sum(answer, "k1")
    return {
        "object": "score",
        "index": index,
        "n_tokens": len(answer.token_ids),
        "n_scored": n_scored,
        "sampled_from": request.sampled_from,
        "sums": sums,
        "means": {name: value / n_scored for name, value in sums.items()},
        "adjusted_reward": adjusted,
        "tokens": _tokens(request.items[index], wanted, answer) if request.per_token else None,
    }


def _tokens(item: str | Completion, wanted: Sequence[str], answer: ItemScores) -> dict[str, Any]:
    text = item if isinstance(item, str) else item.prompt + item.completion
    raw = text.encode()
    spans = zip(answer.start.tolist(), answer.end.tolist(), strict=True)
    return {
        "ids": answer.token_ids,
        "text": [raw[start:end].decode("utf-8", "replace") for start, end in spans],
        "start": answer.start,
        "end": answer.end,
        "scored": answer.scored,
        **{name: answer.quantities[name] for name in wanted},
    }


def summarise(
    answers: Sequence[ItemScores], wanted: Sequence[str], *, clusters: Sequence[object]
) -> dict[str, Any]:
    """Means per text and per token over several texts; texts of one cluster are not independent."""
    n_scored = np.array([answer.scored.sum() for answer in answers], dtype=np.float64)
    one_each = np.ones(len(answers))
    sums = {name: np.array([_sum(answer, name) for answer in answers]) for name in wanted}
    return {
        "n_items": len(answers),
        "n_clusters": len(set(clusters)),
        "n_scored": int(n_scored.sum()),
        "sums": {name: ratio_estimate(values, one_each, clusters) for name, values in sums.items()},
        "means": {name: ratio_estimate(values, n_scored, clusters) for name, values in sums.items()},
    }


def ratio_estimate(totals: Array, weights: Array, clusters: Sequence[object]) -> dict[str, float | None]:
    """R = Σx/ΣT over clusters, and its standard error: SE² = n/(n−1) · Σ(x_i − R·T_i)² / (ΣT)².

    With all T equal this is the mean and sd/√n. `se` is None for a single cluster.
    """
    labels = {cluster: label for label, cluster in enumerate(dict.fromkeys(clusters))}
    members = [labels[cluster] for cluster in clusters]
    with np.errstate(invalid="ignore"):  # ∞ − ∞ is NaN, which becomes null
        x, t = np.bincount(members, totals), np.bincount(members, weights)
        n, mean = len(x), float(x.sum() / t.sum())
        if n < 2:
            return {"mean": mean, "se": None}
        variance = n / (n - 1) * np.square(x - mean * t).sum() / t.sum() ** 2
        return {"mean": mean, "se": float(np.sqrt(variance))}


def _sum(answer: ItemScores, name: str) -> float:
    return float(answer.quantities[name][answer.scored].sum(dtype=np.float64))
