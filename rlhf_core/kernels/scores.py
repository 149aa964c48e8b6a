"""rlhf_core/kernels/scores.c from torch, and on a CUDA device what says the same (triton_scores.py)."""

import ctypes

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.kernels import cuda
from rlhf_core.kernels.build import library

OUTPUTS = ("policy_logprob", "reference_logprob", "kl", "kl_ref", "entropy", "cross_entropy", "tv", "js")
LOGPROBS_ONLY, WITHOUT_JS, ALL = 0, 1, 2  # how much is computed


def fits(*logits: Tensor) -> bool:
    """True if the kernel is there and takes these."""
    devices = {x.device.type if x.dtype == torch.float32 else "none" for x in logits}
    return (devices == {"cpu"} and library() is not None) or (
        devices == {"cuda"} and cuda.kernels() is not None
    )


def scores(
    policy_logits: Float[Tensor, "rows vocab"],
    reference_logits: Float[Tensor, "_ _"],
    ids: Int[Tensor, " rows"],
    *,
    temperature: float,
    level: int = ALL,
) -> Float[Tensor, "rows outputs"]:
    """`OUTPUTS` of each row, in nats (TV has no unit); what `level` leaves out is 0. Only where `fits`."""
    rows, vocab = policy_logits.shape
    if reference_logits.shape != policy_logits.shape:
        raise ValueError(f"logits of shape {policy_logits.shape} and {reference_logits.shape}")
    if rows and not (int(ids.min()) >= 0 and int(ids.max()) < vocab):
        raise IndexError(f"a token id is outside the vocabulary of {vocab}")
    if policy_logits.is_cuda:
        on_cuda = cuda.kernels()
        assert on_cuda is not None
        found = on_cuda.scores(policy_logits, reference_logits, ids, temperature=temperature, level=level)
        return torch.stack([found[name] for name in OUTPUTS], 1)
    kernels = library()
    assert kernels is not None
    policy_logits, reference_logits = policy_logits.contiguous(), reference_logits.contiguous()
    ids = ids.long().contiguous()
    found = torch.zeros(rows, len(OUTPUTS))
    kernels.kleash_scores(
        *(ctypes.c_void_p(x.data_ptr()) for x in (policy_logits, reference_logits, ids)),
        ctypes.c_int64(rows),
        ctypes.c_int64(vocab),
        ctypes.c_float(1 / temperature),
        ctypes.c_int(level),
        ctypes.c_int(torch.get_num_threads()),
        ctypes.c_void_p(found.data_ptr()),
    )
    return found
