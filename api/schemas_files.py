"""The JSON documents of uploaded files."""

from dataclasses import asdict
from typing import Literal, Self

from pydantic import Field

from api.schemas import Document, Page, Timestamp
from api.services.files import FilePage
from jobs.lines import Purpose
from jobs.store_files import StoredFile


class FileDocument(Document):
    """An uploaded file; it never changes."""

    object: Literal["file"] = "file"
    id: str
    name: str
    purpose: Purpose
    bytes: int
    lines: int = Field(description="That are not blank.")
    sha256: str
    created_at: Timestamp

    @classmethod
    def of(cls, file: StoredFile) -> Self:
        """The document of a row."""
        values = asdict(file)
        del values["owner"]
        return cls(**values)


class FileList(Page):
    """Files, newest first."""

    data: list[FileDocument]

    @classmethod
    def of(cls, page: FilePage) -> Self:
        """The document of a page."""
        cursor = page.files[-1].id if page.more else None
        data = [FileDocument.of(file) for file in page.files]
        return cls(data=data, has_more=page.more, next_cursor=cursor)
