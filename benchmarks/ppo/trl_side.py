"""TRL 1.12.0's PPO trainer as a contender, set up as its own example script does.

Two traps: with gradient accumulation above 1 TRL makes fewer optimizer steps than `num_mini_batches` says, and it
takes every token equal to the padding for padding. So accumulation is 1, and padding is an id that no model emits.
"""

import tempfile
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks.ppo.cases import TRL_FROZEN, Case, prompts_of, reward_of
from benchmarks.ppo.turn import Task, Turn
from rlhf_core.rewards import RewardFunction

NO_TOKEN = "<no token of the model>"


class Judge(nn.Module):
    """A reward function in the shape that TRL asks of a reward model's backbone."""

    def __init__(self, reward: RewardFunction, tokenizer: Any, tokens: int) -> None:
        super().__init__()
        self._reward, self._decode, self._tokens = reward, tokenizer.decode, tokens

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: object) -> SimpleNamespace:
        """The text's score in every position."""
        prompts, completions = [], []
        for row, real in zip(input_ids, attention_mask.bool(), strict=True):
            at = len(row) - self._tokens
            prompts.append(self._decode(row[:at][real[:at]], skip_special_tokens=True))
            completions.append(self._decode(row[at:], skip_special_tokens=True))
        scores = self._reward(prompts, completions, [self._tokens] * len(prompts))
        return SimpleNamespace(
            hidden_states=(torch.tensor(scores)[:, None, None].expand(*input_ids.shape, 1),)
        )


class RewardModel(nn.Module):
    """Backbone and head by the names that TRL looks for."""

    base_model_prefix = "judge"

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge, self.score = judge, nn.Identity()


class TakeTurns(TrainerCallback):
    """Waits after every iteration."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._logged: dict[str, float] = {}

    def on_log(self, *_: object, logs: dict[str, float], **__: object) -> None:
        """Comes before the end of the step."""
        self._logged = logs

    def on_step_end(self, *_: object, **__: object) -> None:
        """An iteration is over."""
        self._turn.finished(self._logged["objective/kl"], self._logged["objective/scores"])


def run(task: Task, turn: Turn) -> None:
    """All iterations, each after the turn's permission."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(task, turn, scratch)
        turn.ready(lambda: _for_rescoring(trainer))
        trainer.train()


def make_trainer(task: Task, turn: Turn, scratch: str) -> PPOTrainer:
    """Policy, reference (none beside an adapter), value model and reward."""
    case, full = task.case, task.case.lora_rank is None
    tokenizer = AutoTokenizer.from_pretrained(task.folder, padding_side="left")
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(task.folder, dtype=torch.float32) if wanted else None
        for wanted in (True, full)
    )
    tokenizer.add_special_tokens({"pad_token": NO_TOKEN, "eos_token": NO_TOKEN})
    if tokenizer.pad_token_id < policy.config.vocab_size:
        raise AssertionError("the model can emit what TRL takes for padding")
    value = AutoModelForSequenceClassification.from_pretrained(task.folder, num_labels=1, dtype=torch.float32)
    nn.init.zeros_(value.score.weight)  # kleash's values are 0 at first, too
    if task.contender == TRL_FROZEN:
        getattr(value, value.base_model_prefix).requires_grad_(False)
    torch.manual_seed(task.seed)
    return PPOTrainer(
        args=_arguments(case, task, scratch),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=RewardModel(Judge(reward_of(case), tokenizer, case.tokens)),
        value_model=value,
        train_dataset=[{"input_ids": tokenizer(prompt)["input_ids"]} for prompt in prompts_of(case)],
        peft_config=None if full else _adapter(case),
        callbacks=[TakeTurns(turn)],
    )


def _adapter(case: Case) -> LoraConfig:
    rank = case.lora_rank or 0
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def _arguments(case: Case, task: Task, scratch: str) -> PPOConfig:
    return PPOConfig(
        output_dir=scratch,
        total_episodes=case.batch * task.iterations,
        per_device_train_batch_size=case.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=case.minibatches,
        num_ppo_epochs=case.epochs,
        local_rollout_forward_batch_size=case.batch,
        response_length=case.tokens,
        stop_token=None,
        temperature=1.0,
        kl_coef=case.beta,
        kl_estimator="k1",
        cliprange=0.2,
        cliprange_value=0.2,
        gamma=1.0,
        lam=0.95,
        learning_rate=case.learning_rate,
        lr_scheduler_type="constant",
        seed=task.seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _for_rescoring(trainer: PPOTrainer) -> Any:
    from benchmarks.ppo.models import TwoModels

    return TwoModels(trainer.policy_model, trainer.ref_model, trainer.processing_class)
