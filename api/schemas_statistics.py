"""What several texts say together, as clients of /v1/scores and /v1/divergences read it. Unit: nats."""

from typing import Literal

from pydantic import BaseModel, Field

from api.schemas import Number

SampledFrom = Literal["policy", "reference", "unknown"]


class Estimate(BaseModel):
    """A mean over texts with its standard error and 95 % interval; null where it is not defined."""

    mean: Number
    se: Number
    low: Number = Field(description="Of the t-interval with n_clusters − 1 degrees of freedom.")
    high: Number


class SequenceKL(BaseModel):
    """Means per text of three sums over its tokens. They estimate one sequence KL if the texts were sampled.

    With `sampled_from: reference` the roles are swapped: kl_ref for kl, −k1 for k1, and k3 of −k1.
    """

    estimates: Literal["kl", "kl_ref"] | None = Field(
        description="kl: KL(policy ‖ reference) of whole texts, cut at their maximum length; kl_ref: the other "
        "direction; null: nothing, the texts were not sampled from either model."
    )
    rao_blackwell: Estimate | None = Field(
        description="Σ kl, exact at each position; null if kl is not known. Never negative."
    )
    k1: Estimate
    k3: Estimate
    variance_ratio: Number = Field(
        description="SE² of k1 / SE² of rao_blackwell. Usually far above 1; below 1, k1 is the better estimate."
    )


class EffectiveSampleSize(BaseModel):
    """How many texts of the other model the texts are worth, with importance weights (Kish)."""

    size: Number = Field(description="(Σw)² / Σw², w = p_towards(text) / p_sampled_from(text).")
    share: Number = Field(description="size / number of texts.")
    towards: Literal["policy", "reference"]


class TokenShare(BaseModel):
    """A token of a text, by its part of all KL."""

    index: int = Field(description="Of the text in `data`.")
    token: int = Field(description="Its place among the text's tokens, from 0.")
    position: int = Field(description="Its place among the scored ones, from 0.")
    id: int
    text: str
    kl: Number
    share: Number


class GroupShare(BaseModel):
    """A group of tokens and its part of all KL."""

    n_tokens: int
    kl: Number
    mean: Number = Field(description="Per token.")
    share: Number


class PositionShare(GroupShare):
    """The tokens at positions `first` to `last` of the scored part of their text, from 0."""

    first: int
    last: int


class ClassShare(GroupShare):
    """The tokens of a class, which is read off the token's text alone.

    word_start begins with a space, so the first word of a text or line counts as word_continuation. special: no
    text of its own, or a well-known marker such as </s>. character_part: bytes that are no whole character.
    """

    name: Literal[
        "special", "whitespace", "character_part", "digits", "punctuation", "word_start", "word_continuation"
    ]


class ItemShare(BaseModel):
    """A vocabulary item, summed over the tokens that had it among their top terms."""

    id: int
    text: str | None = Field(description="null if it is not known.")
    n_tokens: int
    kl: Number
    share: Number
    gain: Number = Field(description="Σ (policy's probability − reference's).")


class VocabularyShares(BaseModel):
    """Which items carry the KL, from the `top_k` largest terms of each token."""

    top_k: int
    coverage: Number = Field(description="The share of all KL that these terms account for.")
    items: list[ItemShare] = Field(description="By kl.")
    gainers: list[ItemShare] = Field(description="By gain: what the policy likes better.")
    losers: list[ItemShare] = Field(description="By gain: what it likes less.")


class EntropyChange(BaseModel):
    """Mean entropies per token."""

    policy: Number
    reference: Number
    change: Estimate = Field(description="policy − reference.")


class RankChange(BaseModel):
    """How the tokens of the texts moved among all, from reference to policy."""

    risen: float = Field(description="Share of the tokens that rank higher for the policy.")
    fallen: float
    unchanged: float
    median_ratio: float = Field(description="Of policy_rank / reference_rank: below 1 they rose.")


class Attribution(BaseModel):
    """Where KL(policy ‖ reference) is on these texts. Shares are of `kl`; null if that is 0 or infinite."""

    kl: Number = Field(description="Of all scored tokens.")
    n_tokens: int
    tokens: list[TokenShare] = Field(description="Those with the most.")
    positions: list[PositionShare] = Field(description="0, 1, 2–3, 4–7, 8–15, …")
    classes: list[ClassShare] = Field(description="By kl.")
    vocabulary: VocabularyShares | None = Field(description="null if the scorer gave no terms.")
    entropy: EntropyChange
    ranks: RankChange
