"""The header of conditional requests (RFC 9110 §13.1.2)."""

from typing import Annotated

from fastapi import Header

IfNoneMatch = Annotated[str | None, Header(description="An ETag of before.")]
