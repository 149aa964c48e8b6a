"""A score job: what it is asked to do, and what a line of its file may be. Torch-free."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Strict, model_validator

from jobs.scoring_wire import MAX_TOP_K, QUANTITIES, ScoreItem, VocabMismatch
from rlhf_core.config.base import Config, PathName

DEFAULT_QUANTITIES = ("policy_logprob", "reference_logprob", "k1", "k3", "kl", "entropy")
MAX_EVERY_ITEMS = 4096  # a shard's texts and results are in memory together
MAX_PER_TOKEN = 4096  # items of a shard, times the numbers' rows of a token: itself and its top_k
MAX_INLINE_ITEMS = 4096
RESULTS = "results.jsonl"  # in a shard's folder


def _known(name: str) -> str:
    if name not in QUANTITIES:
        raise ValueError(f"must be one of {', '.join(QUANTITIES)}")
    return name


Quantity = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": list(QUANTITIES)})]


class BulkItem(ScoreItem):
    """A line's object. A line that is a mere string is its `text`."""

    id: str | int | None = Field(None, description="The result repeats it.")
    reward: float | None = Field(None, description="The result repeats it.")

    @model_validator(mode="before")
    @classmethod
    def _completion_is_text(cls, value: Any) -> Any:
        """`completion` is another name of `text`, as in /v1/scores."""
        if isinstance(value, dict) and "completion" in value and "text" not in value:
            return {"text" if name == "completion" else name: part for name, part in value.items()}
        return {"text": value} if isinstance(value, str) else value


# JSON has lists: only the containers are lax, as in rlhf_core/config.
_Items = Annotated[
    tuple[str | BulkItem, ...],
    Strict(False),
    Field(min_length=1, max_length=MAX_INLINE_ITEMS, fail_fast=True),
]
_Quantities = Annotated[
    tuple[Quantity, ...], Strict(False), Field(min_length=1, max_length=len(QUANTITIES), fail_fast=True)
]


class ShardConfig(Config):
    """How often results are saved: what a lost attempt has to score again is less than one shard."""

    every_items: int = Field(
        512, ge=1, le=MAX_EVERY_ITEMS, description="Items of a shard; all go in batches."
    )


class ScoreConfig(Config):
    """Texts to score, and against which pair of models."""

    policy: PathName | None = Field(None, description="A model's name; without it the default policy.")
    reference: PathName | None = None
    items: _Items | None = None
    items_file: PathName | None = Field(
        None,
        description="A JSONL file below the configured roots, or an uploaded `file_…`. A line is a text or "
        "{text}, {prompt, completion}, {token_ids} or {messages}, with `id` and `reward` if you like; one that is "
        "none of these fails alone.",
    )
    quantities: _Quantities = DEFAULT_QUANTITIES
    temperature: float = Field(1.0, gt=0, le=10, description="Divides the logits of both models.")
    sampled_from: Literal["policy", "unknown"] = Field(
        "unknown",
        description="`policy` claims that every text was sampled from the policy, as in /v1/scores.",
    )
    per_token: bool = Field(False, description="Results hold every token's numbers, not only sums and means.")
    top_k: int = Field(
        0,
        ge=0,
        le=MAX_TOP_K,
        description="So many vocabulary items per token, by their part of kl: needs per_token.",
    )
    numerics: Literal["fast", "strict"] = Field(
        "fast", description="strict: a text's numbers do not depend on its neighbours; each goes alone."
    )
    vocab_mismatch: VocabMismatch = Field(
        "error",
        description="Where one model has logits for more ids than the other: error, or both distributions over "
        "the ids that both have.",
    )
    checkpoint: ShardConfig = ShardConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> "ScoreConfig":
        if (self.items is None) == (self.items_file is None):
            raise ValueError("give exactly one of items and items_file")
        if self.top_k and not self.per_token:
            raise ValueError(f"top_k ({self.top_k}) is shown per token: it needs per_token")
        every, rows = self.checkpoint.every_items, 1 + self.top_k
        if self.per_token and every * rows > MAX_PER_TOKEN:
            raise ValueError(
                f"a shard is held in memory: with per_token checkpoint.every_items ({every}) times 1 + top_k "
                f"({rows}) is at most {MAX_PER_TOKEN}; every_items may be {MAX_PER_TOKEN // rows}"
            )
        return self
