"""What a step reports. Units stand in docs/algorithms.md."""

import math
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_core.config.ppo import PPOConfig
from rlhf_core.experience import Codec, Experience
from rlhf_core.kl import sequence_kl
from rlhf_core.masking import explained_variance, masked_mean
from rlhf_core.rollout import response_ids
from rlhf_core.statistics import ratio_estimate
from rlhf_core.targets import Targets

TOKENS_KEPT = 16_384  # one by one, of a step's samples: 64 completions of 256 tokens

PHASES = ("generate", "reward", "score", "update", "eval")


@dataclass(frozen=True, kw_only=True)
class RolloutSample:
    """One completion with its numbers."""

    prompt: str
    completion: str
    data: dict[str, Any]


def describe(
    experience: Experience,
    targets: Targets,
    scores: Float[Tensor, " batch"],
    beta: float,
    config: PPOConfig,
) -> dict[str, float]:
    """What the rollout looked like, in the units of docs/algorithms.md; `scores` are the shaped ones."""
    mask: Bool[Tensor, "batch response"] = experience.rollout.response_mask
    k1_sequence = sequence_kl(experience.k1, mask)
    charged = sequence_kl(targets.penalty, mask)
    target = getattr(config.kl.controller, "target_nats_per_sequence", None)
    weighted = experience.weighted
    metrics = {
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
        **({} if weighted is None else {"kl/weighted_sequence": sequence_kl(weighted.kl, mask).mean()}),
    }
    numbers = {name: float(value) for name, value in metrics.items()} | {"kl/beta": beta}
    return numbers | ({"kl/target": target} if target is not None else {})


def standard_errors(
    experience: Experience, scores: Float[Tensor, " batch"], prompts: Sequence[str]
) -> dict[str, float]:
    """Of the step's means per sequence; the completions of one prompt are one cluster, and one has no error."""
    mask = experience.rollout.response_mask
    columns = {
        "reward/se": scores,
        "kl/sequence_se": sequence_kl(experience.kl, mask),
        "kl/k1_sequence_se": sequence_kl(experience.k1, mask),
    }
    one_each = np.ones(len(prompts))
    found = {
        name: ratio_estimate(column.double().cpu().numpy(), one_each, prompts).se
        for name, column in columns.items()
    }
    return {name: se for name, se in found.items() if se is not None}


def kl_shares(experience: Experience) -> dict[str, float]:
    """Shares of the step's Σ KL: on stop tokens, on the tenth of all tokens with most KL, on first quarters.

    The first quarter of a completion of T tokens is its first ⌈T/4⌉. Nothing is reported where Σ KL is 0.
    """
    rollout = experience.rollout
    mask = rollout.response_mask
    kl = torch.where(mask, experience.kl, 0.0).double()
    total, lengths = kl.sum(), mask.sum(dim=1, keepdim=True)
    if total == 0:
        return {}
    place = torch.arange(mask.shape[1], device=mask.device)
    parts = {
        "kl/eos_share": kl[rollout.ended[:, None] & (place == lengths - 1)],
        "kl/top_decile_share": kl.flatten().topk(math.ceil(int(lengths.sum()) / 10)).values,
        "kl/first_quarter_share": kl[4 * place < lengths],
    }
    return {name: float(part.sum() / total) for name, part in parts.items()}


def samples_of(
    texts: Sequence[str],
    completions: Sequence[str],
    scores: Float[Tensor, " batch"],
    experience: Experience,
    codec: Codec,
) -> tuple[RolloutSample, ...]:
    """Every completion of the step: score, both KLs in nats per sequence, whether it ended, its tokens."""
    rollout = experience.rollout
    mask = rollout.response_mask
    columns = {
        "reward": scores,
        "kl": sequence_kl(experience.kl, mask),
        "k1": sequence_kl(experience.k1, mask),
        "length": mask.sum(dim=1),
        "ended": rollout.ended,
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return tuple(
        RolloutSample(
            prompt=prompt, completion=completion, data=dict(zip(columns, row, strict=True)) | tokens
        )
        for prompt, completion, row, tokens in zip(
            texts, completions, rows, token_columns(experience, codec), strict=True
        )
    )


def token_columns(experience: Experience, codec: Codec) -> Iterator[dict[str, list[Any]]]:
    """Ids, texts and exact KL of each completion's tokens; nothing once a step has given TOKENS_KEPT of them.

    A text is the token's own: U+FFFD for a part of a character, empty for a special token.
    """
    text = cache(lambda token: codec.decode([token]))
    left = TOKENS_KEPT
    for ids, kl in zip(response_ids(experience.rollout), experience.kl.tolist(), strict=True):
        left -= len(ids)
        yield (
            {
                "token_ids": ids,
                "token_texts": [text(token) for token in ids],
                "token_kl": [float(f"{value:.7g}") for value in kl[: len(ids)]],  # float32 has no more digits
            }
            if left >= 0
            else {}
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
