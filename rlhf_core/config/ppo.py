"""A PPO run, section by section."""

from typing import Annotated, Literal

from pydantic import Field, Strict, field_validator, model_validator

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
    """Prompts, inline or from a JSONL file: below the configured roots, or uploaded (`file_…`).

    A line is a text or has one in a field `prompt`. Texts of the pretraining mix likewise, with a field `text`;
    only with `loss.ptx_coefficient`.
    """

    prompts: Strings | None = None
    prompts_file: PathName | None = None
    eval_prompts: Strings | None = None
    eval_prompts_file: PathName | None = None
    ptx_texts: Strings | None = None
    ptx_texts_file: PathName | None = None
    ptx_max_tokens: int = Field(256, ge=2, le=2**20, description="Of a text; the rest of it is not read.")

    @model_validator(mode="after")
    def _one_source_each(self) -> "DataConfig":
        if (self.prompts is None) == (self.prompts_file is None):
            raise ValueError("give exactly one of prompts and prompts_file")
        if self.eval_prompts is not None and self.eval_prompts_file is not None:
            raise ValueError("give at most one of eval_prompts and eval_prompts_file")
        if self.ptx_texts is not None and self.ptx_texts_file is not None:
            raise ValueError("give at most one of ptx_texts and ptx_texts_file")
        return self


ShortStrings = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=256)], ...],
    Strict(False),
    Field(max_length=16, fail_fast=True),
]
TokenIds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Strict(False), Field(fail_fast=True)]


class RolloutConfig(Config):
    """How completions are sampled: from the full softmax at one temperature, unless truncation is allowed."""

    batch_size: int = Field(16, ge=1, le=4096, description="Completions per step.")
    max_new_tokens: int = Field(16, ge=1, le=4096)
    stop: ShortStrings = Field(
        (),
        description="A completion ends with the token that completes one of these strings in its decoded text, "
        "if EOS has not ended it before. Reward, samples and evaluations see the text with the stop string in it.",
    )
    stop_token_ids: TokenIds = Field(
        (), description="They end a completion as EOS does. Special tokens have no text: they belong here."
    )
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

    @field_validator("stop")
    @classmethod
    def _of_whole_characters(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if any("\ufffd" in string for string in stop):
            raise ValueError(
                "stop: U+FFFD stands for a part of a character, which the next token may complete"
            )
        return stop

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
    best_of_n: int | None = Field(
        None,
        ge=2,
        le=64,
        description="Before training, sample so many completions of each held-out prompt from the reference: "
        "what the best of 2, 4, … of them scores is the baseline that costs no training.",
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
    def _best_of_n_has_its_place(self) -> "PPOConfig":
        if self.evaluation.best_of_n is None:
            return self
        if self.data.eval_prompts is None and self.data.eval_prompts_file is None:
            raise ValueError("evaluation.best_of_n needs data.eval_prompts or data.eval_prompts_file")
        if self.rollout.truncates:
            raise ValueError(
                "evaluation.best_of_n with truncated sampling: ln n − (n−1)/n bounds the KL to what was "
                "sampled from, which is then not the reference"
            )
        return self

    @model_validator(mode="after")
    def _mix_has_texts_and_weight(self) -> "PPOConfig":
        texts = self.data.ptx_texts is not None or self.data.ptx_texts_file is not None
        if self.loss.ptx_coefficient and not texts:
            raise ValueError(
                f"loss.ptx_coefficient ({self.loss.ptx_coefficient}) needs data.ptx_texts or data.ptx_texts_file: "
                "there is nothing to take its gradient of"
            )
        if texts and not self.loss.ptx_coefficient:
            raise ValueError(
                "data.ptx_texts and data.ptx_texts_file need loss.ptx_coefficient above 0: "
                "no gradient would come from the texts"
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
