"""The JSON documents of one checkpoint, and of all that a job left to download."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from api.schemas import Document, Page, Timestamp
from api.schemas_job_data import CheckpointDocument
from api.services.artifacts import Artifact
from api.services.checkpoints import Content


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
    """What may be changed of a checkpoint."""

    model_config = ConfigDict(extra="forbid")

    pinned: StrictBool = Field(description="Retention leaves a pinned one alone.")


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
