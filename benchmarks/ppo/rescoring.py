"""Fresh completions of a policy, scored by kleash's exact KL, whoever trained it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.ppo.cases import Case, prompts_of, reward_of
from benchmarks.ppo.turn import Task
from rlhf_core.config.ppo import RolloutConfig
from rlhf_core.experience import TrainablePolicy, assess, sample
from rlhf_core.rollout import response_ids

AT_A_TIME = 16  # batches


class Rescored(NamedTuple):
    """Sums over each completion, in nats, and its reward."""

    kl: np.ndarray  # ΣKL_t, exact
    k1: np.ndarray  # of the same tokens
    reward: np.ndarray


def rescore(policy: TrainablePolicy, case: Case, *, batches: int, seed: int) -> Rescored:
    """`batches` completions of every prompt, with the same random numbers whenever the seed is the same."""
    reward, head = reward_of(case), torch.nn.Linear(policy.hidden_size, 1)
    options = RolloutConfig(batch_size=case.batch, max_new_tokens=case.tokens, temperature=1.0)
    random = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, batches, AT_A_TIME):
        prompts = prompts_of(case) * min(AT_A_TIME, batches - start)
        rollout = sample(policy, prompts, options, random)
        found = assess(policy, head, rollout, torch.arange(len(prompts)).split(128), options.temperature)
        completions = [policy.codec.decode(ids) for ids in response_ids(rollout)]
        scores = reward(prompts, completions, rollout.response_mask.sum(dim=1).tolist())
        parts.append((found.kl.sum(dim=1).numpy(), found.k1.sum(dim=1).numpy(), np.array(scores)))
    return Rescored(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def mean_rescorer(task: Task, policy: TrainablePolicy) -> Callable[[], dict[str, float]]:
    """Means of the policy as it is when asked."""

    def means() -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):
            found = rescore(policy, task.case, batches=task.rescored, seed=10_000 + task.seed)
        return {
            "kl": float(found.kl.mean()),
            "reward": float(found.reward.mean()),
            "reward_sd": float(found.reward.std(ddof=1)),
        }

    return means
