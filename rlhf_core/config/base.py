"""What all of a run's configuration shares: frozen, validated once at the edge, free of torch.

The same classes validate the HTTP request, are stored in the job's row and are read by the trainer.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict

# JSON has lists; strict mode would refuse them for tuples, so only the container is lax.
# fail_fast: 400,000 wrong elements in 1 MB would cost 4 s and 500 MB as 400,000 errors.
Strings = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], Strict(False), Field(min_length=1, fail_fast=True)
]
PathName = Annotated[str, Field(min_length=1, max_length=4096)]  # following links is quadratic in its length


class Config(BaseModel):
    """Frozen, refuses unknown fields, takes no `true` for 1, no NaN and no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
