"""A policy's completions of prompts, a step's or many more."""

from collections.abc import Iterator, Sequence

import torch

from rlhf_core.config.ppo import PPOConfig
from rlhf_core.errors import NonFiniteLoss
from rlhf_core.experience import TrainablePolicy, device_of, sample
from rlhf_core.order import generator
from rlhf_core.rollout import Rollout


def roll_out(
    policy: TrainablePolicy, texts: Sequence[str], config: PPOConfig, random: torch.Generator, *, step: int
) -> Rollout:
    """One completion per text. Raises NonFiniteLoss."""
    try:
        return sample(policy, texts, config.rollout, random)
    except FloatingPointError as error:
        raise NonFiniteLoss(step, "logprob of the rollout", "NaN") from error


def answers(
    policy: TrainablePolicy, texts: Sequence[str], config: PPOConfig, purpose: str, *, step: int
) -> Iterator[Rollout]:
    """One completion per text, a rollout's number of them at a time, always with the same random numbers."""
    batch = config.rollout.batch_size
    for start in range(0, len(texts), batch):
        random = generator(purpose, step=start, seed=config.seed, device=device_of(policy))
        yield roll_out(policy, texts[start : start + batch], config, random, step=step)
