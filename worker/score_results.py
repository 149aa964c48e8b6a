"""The results of a score job: one JSON line per item, and what the job's result says of them all."""

import hashlib
import math
from array import array
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import orjson

from jobs.bulk import BulkItem, ScoreConfig
from jobs.lines import BadLine
from rlhf_core import statistics
from rlhf_core.attribution import kl_of_others
from rlhf_core.scoring import ScoredText


class Result(NamedTuple):
    """One item's line, and what is counted of it."""

    line: bytes
    tokens: int
    scored: int
    sums: dict[str, float]

    @property
    def failed(self) -> bool:
        """True if it could not be scored."""
        return not self.scored


def scored_result(
    index: int, item: BulkItem, scored: ScoredText, config: ScoreConfig, *, truncated: bool = False
) -> Result:
    """The line of an item that was scored: sums and means over its scored tokens, in nats.

    `prompt_sha256` is of the prompt's token ids: items that share it are one cluster.
    """
    wanted = tuple(dict.fromkeys(config.quantities))
    n_scored = int(scored.scored.sum())
    sums = {name: float(scored.quantities[name][scored.scored].sum(dtype=np.float64)) for name in wanted}
    row: dict[str, Any] = {
        "index": index,
        **_repeated(item),
        "n_tokens": len(scored.ids),
        "n_scored": n_scored,
        "sums": sums,
        "means": {name: value / n_scored for name, value in sums.items()},
    }
    if truncated:
        row["truncated"] = True
    if not np.isfinite(list(sums.values())).all():
        row["warnings"] = ["non_finite_logits"]
    if item.prompt is not None or item.messages is not None or item.score_from > 1:
        lead = scored.ids[: len(scored.ids) - n_scored]
        row["prompt_sha256"] = hashlib.sha256(lead.astype("<i4").tobytes()).hexdigest()[:16]
    if config.per_token:
        row["tokens"] = {
            "ids": scored.ids,
            "start": scored.start,
            "end": scored.end,
            "scored": scored.scored,
            **{name: scored.quantities[name] for name in wanted},
        }
        if scored.top is not None:
            rest = kl_of_others(scored.quantities["kl"], scored.top.kl_term)
            row["tokens"]["top"] = scored.top._asdict() | {"kl_rest": rest}
    return Result(_line(row), len(scored.ids), n_scored, sums)


def failed_result(index: int, item: BulkItem | BadLine, problem: BadLine) -> Result:
    """The line of an item that could not be scored."""
    known = _repeated(item) if isinstance(item, BulkItem) else {}
    error = {name: value for name, value in problem._asdict().items() if value}
    return Result(_line({"index": index, **known, "error": error}), 0, 0, {})


def summarise(lines: Iterable[bytes]) -> dict[str, Any]:
    """Means per item and per scored token over all result lines, with errors clustered by prompt.

    Lines are read one at a time; of an item stay its sums and its cluster, some hundred bytes.
    """
    scored, clusters = array("d"), array("q")
    sums: dict[str, array[float]] = {}
    for row in map(orjson.loads, lines):
        if "error" in row:
            continue
        prompt = row.get("prompt_sha256")
        clusters.append(-1 - row["index"] if prompt is None else int(prompt[:15], 16))
        scored.append(row["n_scored"])
        for name, value in row["sums"].items():
            sums.setdefault(name, array("d")).append(math.nan if value is None else value)
    totals = {name: np.asarray(values) for name, values in sums.items()}
    return statistics.summarise(totals, np.asarray(scored), clusters).as_dict()


def _repeated(item: BulkItem) -> dict[str, Any]:
    return item.model_dump(include={"id", "reward"}, exclude_none=True)


def _line(row: dict[str, Any]) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"  # NaN and infinity are null
