"""What a step reports. Units stand in docs/algorithms.md."""

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
from rlhf_core.targets import Targets


@dataclass(frozen=True, kw_only=True)
class RolloutSample:
    """One completion with its numbers."""

    prompt: str
    completion: str
    data: dict[str, float]


def describe(
    experience: Experience,
    targets: Targets,
    scores: Float[Tensor, " batch"],
    beta: float,
    config: PPOConfig,
) -> dict[str, float]:
    """What the rollout looked like, in the units of docs/algorithms.md."""
    mask: Bool[Tensor, "batch response"] = experience.rollout.response_mask
    k1_sequence = sequence_kl(experience.k1, mask)
    charged = sequence_kl(targets.penalty, mask)
    target = getattr(config.kl.controller, "target_nats_per_sequence", None)
    metrics = {
        "reward/mean": scores.mean(),
        "reward/std": scores.std() if len(scores) > 1 else torch.tensor(0.0),
        "reward/adjusted_mean": (scores.to(charged.device) - charged).mean(),
        "kl/sequence": sequence_kl(experience.kl, mask).mean(),
        "kl/k1_sequence": k1_sequence.mean(),
        "kl/penalty": charged.mean(),
        "kl/beta_in_loss": torch.tensor(targets.beta_in_loss, dtype=torch.float64),
        "advantages/std": torch.tensor(targets.advantage_std, dtype=torch.float64),
        "policy/entropy": masked_mean(experience.entropy, mask),
        "policy/generation_mismatch": masked_mean(
            (experience.logprob - experience.rollout.sampled_logprob) ** 2, mask
        ).sqrt(),
        "value/explained_variance": explained_variance(targets.returns, experience.value, mask),
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
    """Seconds of each phase, and response tokens per second of the whole step."""
    rollout, score, update = (later - earlier for earlier, later in pairwise(clock))
    return {
        "rollout_s": rollout,
        "score_s": score,
        "update_s": update,
        "tokens_per_s": tokens / (clock[-1] - clock[0]),
    }
