"""The JSON documents of one checkpoint."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from api.schemas import Document
from api.schemas_job_data import CheckpointDocument
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
