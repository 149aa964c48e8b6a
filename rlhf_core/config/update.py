"""The clipped update: advantages, losses, optimizer."""

from typing import Literal

from pydantic import Field, model_validator

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
    ptx_coefficient: float = Field(
        0.0,
        ge=0,
        description="Of the pretraining mix (Ouyang et al. 2022): per nat of cross-entropy per token of "
        "data.ptx_texts, in the same units.",
    )


class OptimizationConfig(Config):
    """How many steps, in which parts, how far each goes."""

    steps: int = Field(ge=1, le=1_000_000)
    epochs: int = Field(2, ge=1, le=100)
    minibatches: int = Field(2, ge=1, le=1024)
    ptx_batch_size: int = Field(
        4, ge=1, le=4096, description="Texts of the pretraining mix in each minibatch's gradient."
    )
    learning_rate: float = Field(1e-4, gt=0)
    value_learning_rate: float = Field(1e-3, gt=0)
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="After the warm-up, over the steps that are left."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of linear rise of both learning rates.")
    value_only_steps: int = Field(
        0, ge=0, description="First steps that train the value head alone; policy and β stay as they are."
    )
    max_grad_norm: float = Field(1.0, gt=0)
    target_kl: float | None = Field(
        None,
        gt=0,
        description="Nats per token from the rollout's policy: a minibatch above it is not stepped on, and the "
        "rest of the update is skipped.",
    )

    @model_validator(mode="after")
    def _warmups_end(self) -> "OptimizationConfig":
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) must be below steps ({self.steps}): "
                "no step would have the configured learning rate"
            )
        if self.value_only_steps >= self.steps:
            raise ValueError(
                f"value_only_steps ({self.value_only_steps}) must be below steps ({self.steps}): "
                "no step would train the policy"
            )
        return self
