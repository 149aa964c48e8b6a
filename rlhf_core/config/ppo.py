"""A PPO run, section by section."""

from typing import Literal

from pydantic import Field, model_validator

from rlhf_core.config.base import Config, PathName, Strings
from rlhf_core.config.kl import AdaptiveBeta, KLConfig
from rlhf_core.config.rewards import RewardConfig
from rlhf_core.config.scores import ScoresConfig
from rlhf_core.config.update import AdvantagesConfig, LossConfig, OptimizationConfig


class LoraConfig(Config):
    """Low-rank adapter on every linear layer but the head (Hu et al. 2021)."""

    rank: int = Field(8, ge=1, le=256)
    alpha: float = Field(16.0, gt=0)


class ModelConfig(Config):
    """The policy's starting point, which is also the reference, and how it is trained."""

    name: PathName = Field(
        description="A full model's name or path: training does not start from an adapter."
    )
    lora: LoraConfig | None = Field(
        LoraConfig(),
        description="null trains all weights, beside a frozen copy of them; that wants a smaller learning rate.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Of the products in the trunk. Weights, what is added up and the head stay in float32.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Make activations again in the backward pass: less memory, more time, equal gradients.",
    )
    value_adapter: LoraConfig | None = Field(
        None,
        description="The value function's own adapter on the same base: one more pass of the trunk. null: "
        "its head reads the policy's hidden states, detached.",
    )

    @model_validator(mode="after")
    def _value_adapter_has_a_base(self) -> "ModelConfig":
        if self.value_adapter is not None and self.lora is None:
            raise ValueError(
                "model.value_adapter needs model.lora: it stands on the frozen base that an adapter shares, "
                "and with lora: null the policy moves all weights"
            )
        return self


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
    """How completions are sampled: from the full softmax at one temperature, unless truncation is allowed."""

    batch_size: int = Field(16, ge=1, le=4096, description="Completions per step.")
    max_new_tokens: int = Field(16, ge=1, le=4096)
    temperature: float = Field(
        1.0, gt=0, le=10, description="Divides the logits of policy and reference alike."
    )
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, lt=1)
    min_p: float | None = Field(None, gt=0, lt=1)
    allow_truncated_sampling: bool = Field(
        False,
        description="With top_k, top_p or min_p the KL penalty and PPO's ratio are no longer what they say.",
    )

    @property
    def truncates(self) -> bool:
        """True if some tokens cannot be sampled."""
        return bool(self._truncations())

    def _truncations(self) -> list[str]:
        return [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) is not None]

    @model_validator(mode="after")
    def _from_the_full_softmax(self) -> "RolloutConfig":
        if self.truncates and not self.allow_truncated_sampling:
            raise ValueError(
                f"{', '.join(self._truncations())}: truncated sampling does not sample from the policy. k1 and k3 "
                "are then no estimates of KL, and PPO's ratio is wrong: log-probabilities are those of the full "
                "softmax. allow_truncated_sampling: true samples so all the same, and the metrics say so"
            )
        return self


class EvaluationConfig(Config):
    """Held-out prompts, always the same, sampled with the same seed before, during and after."""

    every_steps: int | None = Field(None, ge=1, description="Besides the first and the last.")
    gold_reward: RewardConfig | None = Field(
        None, description="A second judge, of rollouts and held-out completions, that no update sees."
    )


class CheckpointConfig(Config):
    """How often the whole training state is saved, and how many saves are kept besides the final."""

    every_steps: int = Field(1, ge=1)
    keep_last: int = Field(3, ge=1)


class PPOConfig(Config):
    """A PPO run."""

    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    scores: ScoresConfig = ScoresConfig()
    rollout: RolloutConfig = RolloutConfig()
    kl: KLConfig = KLConfig()
    advantages: AdvantagesConfig = AdvantagesConfig()
    loss: LossConfig = LossConfig()
    optimization: OptimizationConfig
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
    def _scores_differ(self) -> "PPOConfig":
        if self.scores.whiten and self.rollout.batch_size == 1:
            raise ValueError("scores.whiten needs rollout.batch_size ≥ 2: a single score is whitened to 0")
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
