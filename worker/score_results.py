"""The results of a score job: one JSON line per item, and what the job's result says of them all."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import orjson

from jobs.bulk import BulkItem, ScoreConfig
from rlhf_core.scoring import ScoredText
from worker.bulk_input import BadLine


class Result(NamedTuple):
    """One item's line, and what is counted of it."""

    line: bytes
    tokens: int
    scored: int
    sums: dict[str, float]


def scored_result(index: int, item: BulkItem, scored: ScoredText, config: ScoreConfig) -> Result:
    """The line of an item that was scored: sums and means over its scored tokens, in nats."""
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
    if config.per_token:
        row["tokens"] = {
            "ids": scored.ids,
            "start": scored.start,
            "end": scored.end,
            "scored": scored.scored,
            **{name: scored.quantities[name] for name in wanted},
        }
        if scored.top is not None:
            row["tokens"]["top"] = scored.top._asdict()
    return Result(_line(row), len(scored.ids), n_scored, sums)


def failed_result(index: int, item: BulkItem | BadLine, problem: BadLine) -> Result:
    """The line of an item that could not be scored."""
    known = _repeated(item) if isinstance(item, BulkItem) else {}
    return Result(_line({"index": index, **known, "error": problem._asdict()}), 0, 0, {})


def summarise(lines: Iterable[bytes]) -> dict[str, Any]:
    """Sums per item and means per scored token over all result lines, read one at a time.

    Standard errors belong here: the lines have each item's sums and n_scored.
    """
    n_items, n_scored, totals = 0, 0, dict[str, float]()
    for row in map(orjson.loads, lines):
        if "error" in row:
            continue
        n_items, n_scored = n_items + 1, n_scored + row["n_scored"]
        for name, value in row["sums"].items():
            totals[name] = totals.get(name, 0.0) + (np.nan if value is None else value)
    return {
        "n_items": n_items,
        "n_scored": n_scored,
        "sums": {name: {"mean": value / n_items} for name, value in totals.items()},
        "means": {name: {"mean": value / n_scored} for name, value in totals.items()},
    }


def _repeated(item: BulkItem) -> dict[str, Any]:
    return item.model_dump(include={"id", "reward"}, exclude_none=True)


def _line(row: dict[str, Any]) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"  # NaN and infinity are null
