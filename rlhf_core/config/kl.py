"""The leash: what is charged for drift, and who sets its price."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

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
    steps: int = Field(ge=1, description="Step number steps + 1 is the first with final_beta.")


BetaController = Annotated[FixedBeta | ScheduledBeta | AdaptiveBeta | PIBeta, Field(discriminator="kind")]


class KLLimit(Config):
    """The job ends as `kl_diverged` once the exact KL has been above this for some steps in a row."""

    max_nats_per_sequence: float = Field(gt=0)
    patience_steps: int = Field(3, ge=1, description="1: the first step above it is the last.")


class KLConfig(Config):
    """The leash: what is charged for drifting from the reference, and how much."""

    beta: float = Field(0.05, ge=0, description="Reward units per nat, at the start.")
    penalty: Literal["k1", "none"] = Field("k1", description="Charged per token in the reward.")
    loss: Literal["none", "k2"] = Field("none", description="Charged per token in the loss.")
    controller: BetaController = FixedBeta()
    limit: KLLimit | None = None

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
