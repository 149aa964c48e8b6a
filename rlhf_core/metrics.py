"""What a step reports. Units stand in docs/algorithms.md."""

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_core.config.ppo import PPOConfig
from rlhf_core.experience import Experience
from rlhf_core.kl import sequence_kl
from rlhf_core.masking import explained_variance, masked_mean

PHASES = ("generate", "reward", "score", "update", "eval")


@dataclass(frozen=True, kw_only=True)
class RolloutSample:
    """One completion with its numbers."""

    prompt: str
    completion: str
    data: dict[str, float]


def describe(
    experience: Experience,
    returns: Float[Tensor, "batch response"],
    scores: Float[Tensor, " batch"],
    beta_in_loss: float,
    beta: float,
    config: PPOConfig,
) -> dict[str, float]:
    """What the rollout looked like, in the units of docs/algorithms.md."""
    mask: Bool[Tensor, "batch response"] = experience.rollout.response_mask
    k1_sequence = sequence_kl(experience.k1, mask)
    charge = beta * experience.k1 if config.kl.penalty == "k1" else torch.zeros_like(experience.k1)
    charged = sequence_kl(charge, mask)
    target = getattr(config.kl.controller, "target_nats_per_sequence", None)
    metrics = {
        "reward/mean": scores.mean(),
        "reward/std": scores.std() if len(scores) > 1 else torch.tensor(0.0),
        "reward/adjusted_mean": (scores.to(charged.device) - charged).mean(),
        "kl/sequence": sequence_kl(experience.kl, mask).mean(),
        "kl/k1_sequence": k1_sequence.mean(),
        "kl/penalty": charged.mean(),
        "kl/beta_in_loss": torch.tensor(beta_in_loss, dtype=torch.float64),
        "policy/entropy": masked_mean(experience.entropy, mask),
        "policy/generation_mismatch": masked_mean(
            (experience.logprob - experience.rollout.sampled_logprob) ** 2, mask
        ).sqrt(),
        "value/explained_variance": explained_variance(returns, experience.value, mask),
        "length/mean": mask.sum(dim=1).double().mean(),
        "length/eos_rate": experience.rollout.ended.double().mean(),
    }
    numbers = {name: float(value) for name, value in metrics.items()} | {"kl/beta": beta}
    return numbers | ({"kl/target": target} if target is not None else {})


def samples_of(
    texts: Sequence[str], completions: Sequence[str], scores: Float[Tensor, " batch"], experience: Experience
) -> tuple[RolloutSample, ...]:
    """Every completion of the step with its score and both KLs, in nats per sequence."""
    mask = experience.rollout.response_mask
    columns = (scores, sequence_kl(experience.kl, mask), sequence_kl(experience.k1, mask), mask.sum(dim=1))
    return tuple(
        RolloutSample(
            prompt=prompt,
            completion=completion,
            data={"reward": score, "kl": kl, "k1": d, "length": length},
        )
        for prompt, completion, score, kl, d, length in zip(
            texts, completions, *(column.tolist() for column in columns), strict=True
        )
    )


def durations(clock: Sequence[float], tokens: int) -> dict[str, float]:
    """Seconds of each phase, of which evaluation may be missing, and response tokens per second of the others."""
    phases = zip(PHASES, pairwise(clock), strict=False)
    seconds = {f"{name}_s": later - earlier for name, (earlier, later) in phases}
    return seconds | {"tokens_per_s": tokens / (clock[4] - clock[0])}


def peak_memory_bytes(device: torch.device) -> int:
    """The most that this process has ever held: on CUDA in torch's tensors, else in all its memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
