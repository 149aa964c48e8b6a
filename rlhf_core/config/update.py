"""The clipped update: advantages, losses, optimizer."""

from typing import Literal

from pydantic import Field

from rlhf_core.config.base import Config


class AdvantagesConfig(Config):
    """From a reward per token to an advantage per token (Schulman et al. 2016)."""

    gamma: float = Field(1.0, gt=0, le=1, description="Below 1 the KL that is optimised is discounted too.")
    gae_lambda: float = Field(0.95, ge=0, le=1)
    whiten: bool = Field(True, description="To mean 0 and variance 1 over all tokens of a rollout.")


class LossConfig(Config):
    """PPO's clipped losses (Schulman et al. 2017)."""

    clip_range: float = Field(0.2, gt=0, lt=1)
    dual_clip: float | None = Field(
        None, gt=1, description="Bounds the loss of a token with A < 0 by this times −A (Ye et al. 2020)."
    )
    value_clip_range: float | None = Field(0.2, gt=0, description="null: the value loss is not clipped.")
    entropy_coefficient: float = Field(
        0.0,
        ge=0,
        description="Bonus per nat of entropy, in units of whitened advantages (of the reward if not whitened).",
    )


class OptimizationConfig(Config):
    """How many steps, in which parts, how far each goes."""

    steps: int = Field(ge=1, le=1_000_000)
    epochs: int = Field(2, ge=1, le=100)
    minibatches: int = Field(2, ge=1, le=1024)
    learning_rate: float = Field(1e-4, gt=0)
    value_learning_rate: float = Field(1e-3, gt=0)
    learning_rate_schedule: Literal["constant", "linear"] = "constant"
    max_grad_norm: float = Field(1.0, gt=0)
