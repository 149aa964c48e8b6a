"""What a training run is asked to do: frozen, validated once at the edge, free of torch.

The same classes validate the HTTP request, are stored in the job's row and are read by the trainer.
"""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, field_validator, model_validator

# JSON has lists; strict mode would refuse them for tuples, so only the container is lax.
# fail_fast: 400,000 wrong elements in 1 MB would cost 4 s and 500 MB as 400,000 errors.
Strings = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], Strict(False), Field(min_length=1, fail_fast=True)
]
PathName = Annotated[str, Field(min_length=1, max_length=4096)]  # following links is quadratic in its length


class Config(BaseModel):
    """Frozen, refuses unknown fields, takes no `true` for 1, no NaN and no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class LoraConfig(Config):
    """Low-rank adapter on every linear layer but the head (Hu et al. 2021)."""

    rank: int = Field(8, ge=1, le=256)
    alpha: float = Field(16.0, gt=0)


class ModelConfig(Config):
    """The policy's starting point, which is also the reference (adapter off)."""

    name: PathName = Field(
        description="A full model's name or path: training does not start from an adapter."
    )
    lora: LoraConfig = LoraConfig()


class DataConfig(Config):
    """Prompts, inline or from a JSONL file with a field `prompt` below the configured roots."""

    prompts: Strings | None = None
    prompts_file: PathName | None = None
    eval_prompts: Strings | None = None
    eval_prompts_file: PathName | None = None

    @model_validator(mode="after")
    def _one_source_each(self) -> "DataConfig":
        if (self.prompts is None) == (self.prompts_file is None):
            raise ValueError("give exactly one of prompts and prompts_file")
        if self.eval_prompts is not None and self.eval_prompts_file is not None:
            raise ValueError("give at most one of eval_prompts and eval_prompts_file")
        return self


class RolloutConfig(Config):
    """How completions are sampled: from the full softmax at one temperature."""

    batch_size: int = Field(16, ge=1, le=4096, description="Completions per step.")
    max_new_tokens: int = Field(16, ge=1, le=4096)
    temperature: float = Field(
        1.0, gt=0, le=10, description="Divides the logits of policy and reference alike."
    )


class SentimentReward(Config):
    """Polarity of prompt + completion in [−1, 1] (TextBlob's lexicon)."""

    kind: Literal["sentiment"] = "sentiment"


class LengthReward(Config):
    """−|tokens − target| / target of the completion."""

    kind: Literal["length"] = "length"
    target_tokens: int = Field(ge=1)


class KeywordReward(Config):
    """Fraction of the keywords found in the completion (whole words, any case)."""

    kind: Literal["keyword"] = "keyword"
    keywords: Strings = Field(max_length=100)


class RegexReward(Config):
    """1 if the pattern is found in the completion, else 0; a search over the timeout is an error."""

    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, max_length=1000, description="In the syntax of Python's `re`.")
    timeout_s: float = Field(0.1, gt=0, le=5)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, ValueError, OverflowError, RecursionError):
            raise ValueError("is not a regular expression that Python's re accepts") from None
        return pattern


RewardConfig = Annotated[
    SentimentReward | LengthReward | KeywordReward | RegexReward, Field(discriminator="kind")
]


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


BetaController = Annotated[FixedBeta | AdaptiveBeta | PIBeta, Field(discriminator="kind")]


class KLConfig(Config):
    """The leash: what is charged for drifting from the reference, and how much."""

    beta: float = Field(0.05, ge=0, description="Reward units per nat, at the start.")
    penalty: Literal["k1", "none"] = Field("k1", description="Charged per token in the reward.")
    loss: Literal["none", "k2"] = Field("none", description="Charged per token in the loss.")
    controller: BetaController = FixedBeta()

    @model_validator(mode="after")
    def _beta_within_bounds(self) -> "KLConfig":
        bounds = self.controller
        if isinstance(bounds, PIBeta) and not bounds.beta_min <= self.beta <= bounds.beta_max:
            raise ValueError(f"beta ({self.beta}) must be within [{bounds.beta_min}, {bounds.beta_max}]")
        return self


class PPOOptimizationConfig(Config):
    """The clipped update (Schulman et al. 2017) and its optimizer."""

    steps: int = Field(ge=1, le=1_000_000)
    learning_rate: float = Field(1e-4, gt=0)
    value_learning_rate: float = Field(1e-3, gt=0)
    epochs: int = Field(2, ge=1, le=100)
    minibatches: int = Field(2, ge=1, le=1024)
    clip_range: float = Field(0.2, gt=0, lt=1)
    value_clip_range: float = Field(0.2, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    whiten_advantages: bool = True
    learning_rate_schedule: Literal["constant", "linear"] = "constant"


class EvaluationConfig(Config):
    """Held-out prompts, always the same, sampled with the same seed before, during and after."""

    every_steps: int | None = Field(None, ge=1, description="Besides the first and the last.")


class CheckpointConfig(Config):
    """How often the whole training state is saved, and how many saves are kept besides the final."""

    every_steps: int = Field(1, ge=1)
    keep_last: int = Field(3, ge=1)


class PPOConfig(Config):
    """A PPO run."""

    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    rollout: RolloutConfig = RolloutConfig()
    kl: KLConfig = KLConfig()
    optimization: PPOOptimizationConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _batches_fit(self) -> "PPOConfig":
        batch, parts = self.rollout.batch_size, self.optimization.minibatches
        if batch % parts:
            raise ValueError(
                f"rollout.batch_size ({batch}) must be a multiple of optimization.minibatches ({parts})"
            )
        return self

    @model_validator(mode="after")
    def _horizon_fits(self) -> "PPOConfig":
        controller = self.kl.controller
        if isinstance(controller, AdaptiveBeta) and self.rollout.batch_size > controller.horizon:
            raise ValueError(
                f"rollout.batch_size ({self.rollout.batch_size}) must not exceed "
                f"kl.controller.horizon ({controller.horizon})"
            )
        return self
