"""The `attribution` of /v1/scores: where the KL of the texts is, as values for JSON."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from jobs.scoring_wire import ItemScores
from rlhf_core import attribution
from rlhf_core.attribution import IntArray, ItemShare
from rlhf_core.statistics import Array

QUANTITIES = ("kl", "entropy", "entropy_ref", "policy_rank", "reference_rank")  # what it is computed from
TOP_K = 20  # terms per token to ask the scorer for
LISTED = 20  # tokens and vocabulary items in an answer


def attribute(
    answers: Mapping[int, ItemScores],
    pieces: Mapping[int, Sequence[str]],
    clusters: Sequence[Hashable],
    *,
    names: Mapping[int, str],
) -> dict[str, Any]:
    """Of the texts' scored tokens.

    Args:
        answers: by the index of the text.
        pieces: the text of each token, by the index of the text.
        clusters: a label for each text, in the order of `answers`.
        names: the text of vocabulary items by id, where it is known.
    """
    texts = list(answers.values())
    of = {name: _scored(texts, name) for name in QUANTITIES}
    kl, total = of["kl"], float(of["kl"].sum())
    position = np.concatenate([np.arange(text.scored.sum()) for text in texts])
    text_of = np.repeat(np.arange(len(texts)), [int(text.scored.sum()) for text in texts])
    scored_pieces = _scored_pieces(answers, pieces)
    classes = attribution.kl_by_class(kl, scored_pieces)
    change = attribution.entropy_change(of["entropy"], of["entropy_ref"], text_of, clusters)
    return {
        "kl": total,
        "n_tokens": len(kl),
        "tokens": _tokens(answers, scored_pieces, kl, position, text_of),
        "positions": [
            {"first": first, "last": last, **share._asdict()}
            for first, last, share in attribution.kl_by_position(kl, position)
        ],
        "classes": [{"name": name, **share._asdict()} for name, share in classes.items()],
        "vocabulary": _vocabulary(texts, names, total),
        "entropy": change._asdict() | {"change": change.change._asdict()},
        "ranks": attribution.rank_change(of["policy_rank"], of["reference_rank"])._asdict(),
    }


def _scored(texts: Sequence[ItemScores], name: str) -> Array:
    return np.concatenate([text.quantities[name][text.scored] for text in texts]).astype(np.float64)


def _scored_pieces(answers: Mapping[int, ItemScores], pieces: Mapping[int, Sequence[str]]) -> list[str]:
    return [
        piece
        for index, answer in answers.items()
        for piece, is_scored in zip(pieces[index], answer.scored.tolist(), strict=True)
        if is_scored
    ]


def _tokens(
    answers: Mapping[int, ItemScores],
    scored_pieces: Sequence[str],
    kl: Array,
    position: IntArray,
    text_of: IntArray,
) -> list[dict[str, Any]]:
    index = list(answers)
    token = np.concatenate([np.flatnonzero(text.scored) for text in answers.values()])
    ids = np.concatenate([text.token_ids[text.scored] for text in answers.values()])
    share = attribution.shares(kl, float(kl.sum()))
    return [
        {
            "index": index[text_of[i]],
            "token": int(token[i]),
            "position": int(position[i]),
            "id": int(ids[i]),
            "text": scored_pieces[i],
            "kl": float(kl[i]),
            "share": float(share[i]),
        }
        for i in attribution.top_tokens(kl, LISTED)
    ]


def _vocabulary(texts: Sequence[ItemScores], names: Mapping[int, str], total: float) -> dict[str, Any] | None:
    tops = [(text.top, text.scored) for text in texts if text.top is not None]
    if not tops:
        return None

    def terms(name: str) -> Array:
        return np.concatenate([getattr(top, name)[scored] for top, scored in tops]).astype(np.float64)

    ids = np.concatenate([top.ids[scored] for top, scored in tops]).astype(np.int64)
    gains = np.exp(terms("policy_logprob")) - np.exp(terms("reference_logprob"))
    found = attribution.kl_by_item(ids, terms("kl_term"), gains, total=total, count=LISTED)

    def listed(items: Sequence[ItemShare]) -> list[dict[str, Any]]:
        return [item._asdict() | {"text": names.get(item.id)} for item in items]

    return {
        "top_k": ids.shape[1],
        "coverage": found.coverage,
        "items": listed(found.items),
        "gainers": listed(found.gainers),
        "losers": listed(found.losers),
    }
