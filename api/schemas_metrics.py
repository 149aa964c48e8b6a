"""The JSON document of a job's metrics."""

from typing import Any, Literal

from pydantic import Field

from api.schemas import Document, Timestamp, rfc3339
from api.services.metrics import unit
from jobs.metric_series import SeriesAnswer


class SeriesDocument(Document):
    """One key's points: `value[i]` is that of `step[i]`. A step whose value was not finite has none."""

    key: str = Field(examples=["kl/sequence"])
    unit: str | None = Field(examples=["nats/sequence"])
    step: list[int]
    value: list[float]
    time: list[Timestamp] | None = Field(
        description="With `include=time`: when the step was completed, by the database's clock."
    )
    n_raw: int = Field(description="Points in the range, of which these were chosen.")


class MetricsDocument(Document):
    """Series by key; `last_step` is the last step completed. Of a timing the key is `timings/<name>`."""

    object: Literal["metrics"] = "metrics"
    job_id: str
    last_step: int
    next_after: str | None
    rewritten_from: int | None = Field(description="What `after` has seen from this step on is void.")
    downsampled: bool
    series: list[SeriesDocument]


def metrics_document(job_id: str, answer: SeriesAnswer) -> dict[str, Any]:
    """A MetricsDocument of an answer, without a second look at each number."""
    times = None if answer.times is None else {step: rfc3339(at) for step, at in answer.times.items()}
    return {
        "object": "metrics",
        "job_id": job_id,
        "last_step": answer.last_step,
        "next_after": None if answer.cursor is None else str(answer.cursor),
        "rewritten_from": answer.rewritten_from,
        "downsampled": any(len(one.points) < one.n for one in answer.series),
        "series": [
            {
                "key": one.key,
                "unit": unit(one.key),
                "step": list(one.points),
                "value": list(one.points.values()),
                "time": times and [times[step] for step in one.points],
                "n_raw": one.n,
            }
            for one in answer.series
        ],
    }
