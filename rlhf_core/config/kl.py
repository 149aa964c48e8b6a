"""The leash: what is charged for drift, and who sets its price."""

import math
from typing import Annotated, Literal

from pydantic import Field, Strict, field_validator, model_validator

from rlhf_core.config.base import Config


class FixedBeta(Config):
    """β stays what it is."""

    kind: Literal["fixed"] = "fixed"


class AdaptiveBeta(Config):
    """Ziegler et al. 2019: β ← β(1 + clip(KL/target − 1, ±0.2)·n/horizon)."""

    kind: Literal["adaptive"] = "adaptive"
    target_nats_per_sequence: float = Field(6.0, gt=0)
    horizon: int = Field(10_000, ge=1)


class PIBeta(Config):
    """Proportional-integral control of ln β (docs/algorithms.md)."""

    kind: Literal["pi"] = "pi"
    target_nats_per_sequence: float = Field(6.0, gt=0)
    proportional_gain: float = Field(0.2, ge=0)
    integral_gain: float = Field(0.1, ge=0)
    beta_min: float = Field(1e-4, gt=0)
    beta_max: float = Field(10.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "PIBeta":
        if self.beta_min >= self.beta_max:
            raise ValueError(f"beta_min ({self.beta_min}) must be below beta_max ({self.beta_max})")
        return self


class ScheduledBeta(Config):
    """β goes from kl.beta to an end value over a number of steps, whatever the drift, and stays there."""

    kind: Literal["schedule"] = "schedule"
    shape: Literal["linear", "cosine"] = "linear"
    final_beta: float = Field(ge=0)
    steps: int = Field(
        ge=1, description="The step after so many has final_beta; a critic warm-up is not counted."
    )


BetaController = Annotated[FixedBeta | ScheduledBeta | AdaptiveBeta | PIBeta, Field(discriminator="kind")]


class KLLimit(Config):
    """The job ends as `kl_diverged` once the exact KL has been above this for some steps in a row."""

    max_nats_per_sequence: float = Field(gt=0)
    patience_steps: int = Field(3, ge=1, description="1: the first step above it is the last.")


class TokenWeight(Config):
    """The weight of one item of the vocabulary, wherever in a response."""

    token: Annotated[str, Field(min_length=1, max_length=200)] | Annotated[int, Field(ge=0)] = Field(
        description="An id, a text that is exactly one token, or `eos`: every token that ends a completion."
    )
    weight: float = Field(ge=0, description="0 charges nothing for the token itself.")


class PositionWeight(Config):
    """The weight of some positions of every response, as in a slice: `start` is in, `end` is not."""

    start: int = Field(0, ge=0, le=4096, description="0 is the response's first token.")
    end: int | None = Field(None, ge=1, le=4096, description="null: to the end.")
    weight: float = Field(ge=0)


class KLWeights(Config):
    """Weights on the KL that penalty `k1` charges (docs/algorithms.md).

    What is not listed has the weight 1; a token's and its position's are multiplied. The controller, the limit
    and every metric of KL but `kl/penalty` and `kl/weighted_sequence` are without weights.
    """

    tokens: Annotated[tuple[TokenWeight, ...], Strict(False)] = Field((), max_length=100)
    positions: Annotated[tuple[PositionWeight, ...], Strict(False)] = Field((), max_length=100)

    @model_validator(mode="after")
    def _each_once(self) -> "KLWeights":
        if not self.tokens and not self.positions:
            raise ValueError("give weights for tokens, positions or both")
        names = [listed.token for listed in self.tokens]
        if len(set(names)) < len(names):
            raise ValueError("a token has two weights")
        last = 0.0
        for place in sorted(self.positions, key=lambda place: place.start):
            end = math.inf if place.end is None else place.end
            if end <= place.start:
                raise ValueError(f"end ({place.end}) must be above start ({place.start})")
            if place.start < last:
                raise ValueError(f"position {place.start} has two weights")
            last = end
        return self


# What a user may ask for and must not get, with the reason (docs/algorithms.md).
_NO_GRADIENT = "its gradient is not that of KL(policy || reference); k1 in the reward has the right one"
_EXACT_ALONE = (
    "the exact KL of a position does not depend on its own token, so as a reward alone it holds nothing back; "
    "kl.penalty 'exact' brings the loss that it needs, 'hybrid' charges the own token by k1"
)
_REFUSED_PENALTIES = {
    "k2": f"k2 in the reward: {_NO_GRADIENT}",
    "k3": "k3 in the reward: it hardly pulls near the reference, and pushes rare tokens ever further away",
    "abs": f"abs in the reward: {_NO_GRADIENT}",
    "kl": f"kl in the reward: {_EXACT_ALONE}",
    "exact_reward": f"exact_reward: {_EXACT_ALONE}",
}
_REFUSED_LOSSES = {
    "k1": "k1 in the loss without a ratio: the mean of its gradient is zero; use ratio_k1, k2 or k3",
    "plain_k3": "plain_k3 in the loss: its gradient is that of KL(reference || policy); k3 takes the ratio along",
    "kl": "kl in the loss: kl.penalty 'exact' has this loss, and charges for later tokens in the reward",
    "exact": "exact in the loss: kl.penalty 'exact' has this loss, and charges for later tokens in the reward",
}


class KLConfig(Config):
    """The leash: what is charged for drifting from the reference, and how much.

    `penalty` optimises the KL of whole sequences. `loss` takes prefixes as given and optimises the sum of the
    tokens' KL, another optimum.
    """

    beta: float = Field(0.05, ge=0, description="Reward units per nat, at the start.")
    penalty: Literal["k1", "hybrid", "exact", "none"] = Field(
        "k1",
        description="Charged in the reward; objective: sequence_kl. `k1`: each token's log-ratio. `hybrid`: the "
        "token's own log-ratio, exact KL of later ones. `exact`: exact KL of later ones, and its own in the loss.",
    )
    loss: Literal["none", "k2", "k3", "ratio_k1"] = Field(
        "none",
        description="Charged in the loss instead of the reward; objective: per_token_kl (prefixes are frozen). "
        "All three are weighed by the ratio to the rollout's policy.",
    )
    controller: BetaController = FixedBeta()
    limit: KLLimit | None = None
    weights: KLWeights | None = None

    @field_validator("penalty", mode="before")
    @classmethod
    def _penalty_has_the_gradient_of_kl(cls, value: object) -> object:
        return _not_among(_REFUSED_PENALTIES, value)

    @field_validator("loss", mode="before")
    @classmethod
    def _loss_has_the_gradient_of_kl(cls, value: object) -> object:
        return _not_among(_REFUSED_LOSSES, value)

    @model_validator(mode="after")
    def _charged_once(self) -> "KLConfig":
        if self.penalty != "none" and self.loss != "none":
            raise ValueError(
                f"penalty {self.penalty!r} and loss {self.loss!r} would charge beta ({self.beta}) twice: "
                "set one of them to 'none'"
            )
        return self

    @model_validator(mode="after")
    def _weights_have_a_gradient(self) -> "KLConfig":
        if self.weights is not None and self.penalty != "k1":
            raise ValueError(
                f"weights need penalty 'k1', not {self.penalty!r} with loss {self.loss!r}: only for k1 in the "
                "reward is the gradient derived that charges the weighted KL"
            )
        return self

    @model_validator(mode="after")
    def _target_has_a_leash(self) -> "KLConfig":
        if self.penalty == self.loss == "none" and hasattr(self.controller, "target_nats_per_sequence"):
            raise ValueError(
                f"controller {self.controller.kind!r} moves beta towards a target, but with penalty 'none' and "
                "loss 'none' beta is charged nowhere"
            )
        return self

    @model_validator(mode="after")
    def _beta_within_bounds(self) -> "KLConfig":
        bounds = self.controller
        if isinstance(bounds, PIBeta) and not bounds.beta_min <= self.beta <= bounds.beta_max:
            raise ValueError(f"beta ({self.beta}) must be within [{bounds.beta_min}, {bounds.beta_max}]")
        return self

    @model_validator(mode="after")
    def _limit_above_target(self) -> "KLConfig":
        target = getattr(self.controller, "target_nats_per_sequence", None)
        if self.limit is not None and target is not None and self.limit.max_nats_per_sequence <= target:
            raise ValueError(
                f"limit.max_nats_per_sequence ({self.limit.max_nats_per_sequence}) must be above "
                f"controller.target_nats_per_sequence ({target}): a job on its target would end"
            )
        return self


def _not_among(refused: dict[str, str], value: object) -> object:
    if isinstance(value, str) and value in refused:
        raise ValueError(refused[value])
    return value
