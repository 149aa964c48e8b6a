"""What is asked about jobs, besides their specs: filters of a list, a change; and what a dry run answers."""

from typing import Annotated, Literal, Self

from fastapi import Depends, Query, Request
from pydantic import Field

from api.queries import Instant, map_parameter, read_map
from api.schemas import Document
from api.schemas_jobs import PublicStatus
from api.services.dry_run import DryRun
from jobs.bulk import ScoreConfig
from jobs.spec import DEFAULT_PRIORITY, MAX_METADATA, MetadataKey, MetadataValue, Name, Priority, Reason
from jobs.store_jobs import GENTLE, MAX_GRACE_S, Ending, JobChange, JobFilter
from rlhf_core.config.base import Config
from rlhf_core.config.ppo import PPOConfig

METADATA = map_parameter(
    "metadata", "`metadata[team]=rl`: jobs that have this pair; several: all of them.", most=MAX_METADATA
)


def _filter(
    request: Request,
    status: Annotated[
        list[PublicStatus], Query(max_length=16, description="Repeat it for any of several.")
    ] = [],  # noqa: B006  # FastAPI copies it
    type: Literal["ppo", "score"] | None = None,
    created_after: Annotated[Instant | None, Query(description="At this time or later.")] = None,
    created_before: Annotated[Instant | None, Query(description="Earlier than this time.")] = None,
) -> JobFilter:
    return JobFilter(
        statuses=tuple(dict.fromkeys(status)),
        type=type,
        metadata=read_map(request, "metadata", most=MAX_METADATA),
        created_from=created_after,
        created_before=created_before,
    )


FilterDep = Annotated[JobFilter, Depends(_filter)]


class JobPatch(Config):
    """A merge patch (RFC 7396): what is not there stays; null removes the name, a pair of the metadata, or all."""

    name: Name | None = None
    metadata: (
        Annotated[dict[MetadataKey, MetadataValue | None], Field(max_length=2 * MAX_METADATA)] | None
    ) = Field(None, description=f"Afterwards a job has at most {MAX_METADATA} pairs.")
    priority: Priority = DEFAULT_PRIORITY

    def change(self, if_versions: frozenset[int] | None) -> JobChange:
        """What to change, of a job at one of these versions."""
        given = self.model_fields_set
        return JobChange(
            rename="name" in given,
            name=self.name,
            metadata=self.metadata if "metadata" in given else {},
            priority=self.priority if "priority" in given else None,
            if_versions=if_versions,
        )


class StopRequest(Config):
    """What may be said with a pause or a cancel."""

    reason: Reason | None = Field(None, description="For people: shown in the job and in its event.")

    @property
    def ending(self) -> Ending:
        """How the process of a cancelled job is to end."""
        return GENTLE


class CancelRequest(StopRequest):
    """What may be said with a cancel. How the process ends concerns jobs that run."""

    save_checkpoint: bool = Field(
        True,
        description="Its process saves what no checkpoint holds yet, to be scored or resumed from. If false, it "
        "is killed at once: the steps since the last checkpoint are lost. A score job loses no shard either way.",
    )
    grace_period_s: Annotated[float, Field(ge=0, le=MAX_GRACE_S)] | None = Field(
        None,
        description="How long it may take to save and stop before it is killed. null: as the worker is set.",
    )

    @property
    def ending(self) -> Ending:
        """How the process is to end."""
        return Ending(saves=self.save_checkpoint, grace_s=self.grace_period_s)


class EstimateDocument(Document):
    """Of what a job will take; null is what only a run can tell.

    `memory_bytes` is the largest resident set of its process on a CPU: the runtime; loading (the files, and their
    float32 copy) or running (float32 weights; gradient and Adam's two moments of what is trained; the reference,
    which is a frozen copy without LoRA and the adapter's own base with it; a minibatch's activations; a chunk of
    logits), whichever is larger. A reward's own models are not in it.
    """

    steps: int | None = Field(description="Still to do; of a score job: shards.")
    tokens: int | None = Field(description="Sampled, at most; of a score job: those of inline items, about.")
    memory_bytes: int | None = Field(description="null if the API cannot read the model's folder.")


class DryRunDocument(Document):
    """What the request would make, and has not made."""

    object: Literal["job.dry_run"] = "job.dry_run"
    valid: Literal[True] = True
    resolved_config: PPOConfig | ScoreConfig = Field(
        description="The config with every default, and the default pair's names where it names no models."
    )
    estimate: EstimateDocument
    warnings: list[str]

    @classmethod
    def of(cls, found: DryRun) -> Self:
        """The document."""
        estimate = EstimateDocument(**found.estimate._asdict())
        return cls(resolved_config=found.config, estimate=estimate, warnings=found.warnings)
