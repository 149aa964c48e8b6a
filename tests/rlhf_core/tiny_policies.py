"""Tiny models with dropout in their configs, and runs that train an adapter or all weights of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf_core.config.ppo import PPOConfig
from rlhf_core.policies import Policy, new_policy
from rlhf_core.ppo import train
from rlhf_core.rewards import make_reward
from rlhf_core.update import TrainState, fresh_state
from tests.tiny_models import byte_level_tokenizer

PROMPTS = ("the cat", "the dog sat on", "human feedback", "café")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
TRAININGS: dict[str, Any] = {"lora": {"rank": 2}, "full": None}


def build(root: Path) -> dict[str, Path]:
    """GPT-2: layers that hold their weights transposed (Conv1D), dropout modules, a tied head.

    Llama: dropout as a number that the attention reads, a head of its own.
    """
    tokenizer = byte_level_tokenizer(vocab_size=400)
    sizes = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 0, "initializer_range": 0.3}
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(**sizes, n_embd=32, n_layer=2, n_head=4, n_positions=96, resid_pdrop=0.1, attn_pdrop=0.1)
    )
    llama = LlamaForCausalLM(
        LlamaConfig(
            **sizes,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=96,
            attention_dropout=0.1,
            attn_implementation="eager",
        )
    )
    for name, model in {"gpt2": gpt2, "llama": llama}.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in ("gpt2", "llama")}


def config(folder: Path, *, steps: int = 2, **model: Any) -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "model": {"name": str(folder), **model},
            "data": {"prompts": PROMPTS},
            "reward": {"kind": "length", "target_tokens": 4},
            "rollout": {"batch_size": 4, "max_new_tokens": 6},
            "kl": {"beta": 0.1, "controller": {"kind": "fixed"}},
            "optimization": {"steps": steps, "learning_rate": 0.01, "minibatches": 1},
        }
    )


def begin(options: PPOConfig) -> tuple[Policy, TrainState]:
    policy = new_policy(options.model.name, options.model, seed=0)
    return policy, fresh_state(policy, options)


def steps(policy: Policy, state: TrainState, options: PPOConfig) -> Iterator[dict[str, float]]:
    reward = make_reward(options.reward)
    for step in train(policy, state, options, prompts=PROMPTS, eval_prompts=[], reward=reward):
        yield step.metrics


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.logits(model.trunk(input_ids=IDS, use_cache=False).last_hidden_state)


def of_policy(policy: Policy) -> Tensor:
    with policy.policy() as model:
        return logits(model)


def of_reference(policy: Policy) -> Tensor:
    with policy.reference() as model:
        return logits(model)
