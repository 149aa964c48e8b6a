"""The JSON documents of models."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field

from api.schemas import Document, Page
from api.services.residence import Placed
from jobs.residents import ModelState


class ModelDocument(Document):
    """A model that requests may name, and what is known of it in the scorers' memory."""

    object: Literal["model"] = "model"
    id: str
    kind: Literal["base", "adapter"]
    base: str | None
    default_for: list[str]
    state: ModelState | None = Field(
        description="Of several scorers: `loading` or `failed` if one is, else `loaded` if one has it. null: no "
        "scorer answers."
    )
    loaded_on: int = Field(description="So many scorers have it.")
    scorers: int = Field(description="So many scorers answer.")
    error: str | None = Field(description="Why it could not be loaded: a code.")
    dtype: str | None = Field(description="Of the weights as loaded; like all below null until known.")
    vocab_size: int | None = Field(description="Logits of a token.")
    max_context: int | None = Field(description="In tokens.")
    tokenizer_sha256: str | None
    bytes: int | None = Field(description="Of the weights as loaded; of an adapter, its own.")
    revision: str | None = Field(description="The hub's commit.")
    weights_sha256: str | None = Field(description="As in scores.")

    @classmethod
    def of(cls, placed: Placed) -> Self:
        """The document of a model and its place."""
        model, found = placed.model, placed.found
        return cls(
            id=model.id,
            kind="adapter" if model.source.base else "base",
            base=model.base,
            default_for=list(model.default_for),
            state=placed.state,
            loaded_on=placed.loaded_on,
            scorers=placed.scorers,
            error=placed.error,
            dtype=found and found.dtype,
            vocab_size=found and found.vocab_size,
            max_context=found and found.max_context,
            tokenizer_sha256=found and found.tokenizer_sha256,
            bytes=found and found.bytes,
            revision=found and found.revision,
            weights_sha256=found and found.weights_sha256,
        )


class ModelList(Page):
    """The registered models."""

    data: list[ModelDocument]

    @classmethod
    def of(cls, models: Sequence[Placed]) -> Self:
        """The document of all models."""
        return cls(data=[ModelDocument.of(placed) for placed in models])
