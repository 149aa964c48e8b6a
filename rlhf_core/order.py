"""Everything random in a run, as a function of (seed, purpose, step): nothing to save, nothing to restore."""

import hashlib

import torch
from jaxtyping import Int
from torch import Tensor


def prompt_indices(count: int, *, batch: int, step: int, seed: int) -> list[int]:
    """The prompts of step number `step` (from 1): passes over all of them, each in its own random order."""
    return _in_passes(count, f"{seed}/prompts", batch=batch, number=step)


def text_indices(count: int, *, batch: int, minibatch: int, seed: int) -> list[int]:
    """The texts of the pretraining mix of the run's minibatch number `minibatch` (from 1), as prompts of steps."""
    return _in_passes(count, f"{seed}/ptx", batch=batch, number=minibatch)


def minibatch_plan(
    batch: int, *, parts: int, epochs: int, step: int, seed: int, device: torch.device
) -> list[list[Int[Tensor, " rows"]]]:
    """For each epoch, the rows of each minibatch: a fresh permutation cut into equal parts."""
    return [
        [rows.to(device) for rows in _permutation(batch, f"{seed}/minibatches/{step}/{epoch}").chunk(parts)]
        for epoch in range(epochs)
    ]


def generator(purpose: str, *, step: int, seed: int, device: torch.device) -> torch.Generator:
    """Random numbers for one purpose at one step."""
    return torch.Generator(device).manual_seed(_seed_of(f"{seed}/{purpose}/{step}"))


def _in_passes(count: int, name: str, *, batch: int, number: int) -> list[int]:
    indices: list[int] = []
    position, end = (number - 1) * batch, number * batch
    while position < end:
        epoch, offset = divmod(position, count)
        order = _permutation(count, f"{name}/{epoch}")
        indices += order[offset : offset + end - position].tolist()
        position = (number - 1) * batch + len(indices)
    return indices


def _permutation(count: int, name: str) -> Int[Tensor, " count"]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(_seed_of(name)))


def _seed_of(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")
