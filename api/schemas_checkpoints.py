"""The JSON documents of one checkpoint, and of all that a job left to download."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from api.schemas import Document, FutureInstant, Page, Timestamp
from api.schemas_job_data import CheckpointDocument
from api.services.artifacts import Artifact
from api.services.checkpoints import Content
from jobs.store_data import CheckpointValues


class CheckpointFile(Document):
    """A file as the checkpoint's manifest has it."""

    name: str
    bytes: int
    sha256: str
    url: str


class CheckpointDetail(CheckpointDocument):
    """A save with its files; `files` is null while they cannot be read."""

    archive_url: str
    files: list[CheckpointFile] | None

    @classmethod
    def of_content(cls, content: Content) -> Self:
        """The document of a checkpoint and its manifest."""
        save = content.checkpoint
        here = f"/v1/checkpoints/{save.id}"
        files = None
        if content.files is not None:
            files = [CheckpointFile(**one._asdict(), url=f"{here}/files/{one.name}") for one in content.files]
        model = f"{save.job_id}@{save.name}"
        return cls(model=model, **vars(save), archive_url=f"{here}/archive", files=files)


class CheckpointChange(BaseModel):
    """What may be changed of a checkpoint; what is not named stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1})

    pinned: StrictBool = Field(False, description="Retention leaves a pinned one alone.")
    expires_at: FutureInstant | None = Field(
        None,
        description="It is deleted then, or when its job has ended, unless it is pinned or another job needs it. "
        "null: it stays.",
    )

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("name what to change: pinned, expires_at")
        return self

    def values(self) -> CheckpointValues:
        """What the request names."""
        values = CheckpointValues()
        if "pinned" in self.model_fields_set:
            values["pinned"] = self.pinned
        if "expires_at" in self.model_fields_set:
            values["expires_at"] = None if self.expires_at is None else self.expires_at.timestamp()
        return values


class ArtifactDocument(Document):
    """Something to download: a checkpoint as a tar, results as JSONL, a log with `Accept: text/plain`."""

    object: Literal["artifact"] = "artifact"
    kind: Literal["checkpoint", "results", "log"]
    name: str
    bytes: int = Field(description="Of its files; a tar has some more.")
    sha256: str | None = Field(description="Of a checkpoint's manifest; null for what may still grow.")
    url: str
    created_at: Timestamp | None


class ArtifactList(Page):
    """Checkpoints by step, then results, then logs by attempt."""

    data: list[ArtifactDocument]

    @classmethod
    def of(cls, artifacts: list[Artifact]) -> Self:
        """The document of all of a job's artifacts."""
        return cls(data=[ArtifactDocument(**artifact._asdict()) for artifact in artifacts])
