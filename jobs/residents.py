"""What a scorer says of the models that it holds, or was asked to hold."""

from typing import Literal

from jobs.scoring_wire import ModelSource
from rlhf_core.config.base import Config

ModelState = Literal["unloaded", "loading", "loaded", "failed"]


class Resident(Config):
    """One model in one scorer; the numbers are known once it is loaded."""

    source: ModelSource
    state: ModelState
    error: str | None = None  # why it could not be loaded: a stable code
    dtype: str | None = None
    vocab_size: int | None = None
    max_context: int | None = None
    tokenizer_sha256: str | None = None
    bytes: int | None = None
    revision: str | None = None
    weights_sha256: str | None = None


class Residents(Config):
    """All that one scorer knows of."""

    models: list[Resident]
