"""rlhf_core/kernels/scores.c from torch: what it says of rows of logits, and a gradient written over them.

On a CUDA device triton_scores.py says the same.
"""

import ctypes
from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.kernels import build, cuda
from rlhf_core.kernels.build import library

OUTPUTS = (
    *("policy_logprob", "reference_logprob", "kl", "kl_ref", "entropy", "cross_entropy", "tv", "entropy_ref"),
    *("policy_rank", "reference_rank", "js"),
)
LOGPROBS_ONLY, WITHOUT_JS, ALL = 0, 1, 2  # how much is computed


class TopTerms(NamedTuple):
    """Per row the k vocabulary items with the largest terms of KL(π ‖ ref), largest first, of equals the first."""

    ids: Int[Tensor, "rows k"]
    policy_logprob: Float[Tensor, "rows k"]
    reference_logprob: Float[Tensor, "rows k"]
    kl_term: Float[Tensor, "rows k"]


class LossWeights(NamedTuple):
    """What a loss's gradient is with respect to each row's quantities."""

    logprob: Float[Tensor, " rows"]
    entropy: Float[Tensor, " rows"]
    kl: Float[Tensor, " rows"]


def status() -> str:
    """`native`, `triton`, or `torch: ` and why the kernels are not used, on a GPU if there is one."""
    return cuda.status() if torch.cuda.is_available() else build.status()


def fits(*logits: Tensor) -> bool:
    """True if the kernel is there and takes these."""
    if any(x.dtype != torch.float32 or x.device.type != logits[0].device.type for x in logits):
        return False
    kernels = {"cpu": library, "cuda": cuda.kernels}.get(logits[0].device.type)
    return kernels is not None and kernels() is not None


def scores(
    policy_logits: Float[Tensor, "rows vocab"],
    reference_logits: Float[Tensor, "_ _"],
    ids: Int[Tensor, " rows"],
    *,
    temperature: float,
    level: int = ALL,
) -> Float[Tensor, "rows outputs"]:
    """`OUTPUTS` of each row in nats (TV, ranks: no unit); what `level` leaves out is 0. Only where `fits`."""
    rows, vocab = _checked(policy_logits, reference_logits, ids)
    if policy_logits.is_cuda:
        found: Tensor = _triton().scores(
            policy_logits, reference_logits, ids, temperature=temperature, level=level
        )
        return found
    policy_logits, reference_logits = policy_logits.contiguous(), reference_logits.contiguous()
    ids = ids.long().contiguous()
    found = torch.zeros(rows, len(OUTPUTS))
    _call(
        "kleash_scores",
        *(policy_logits, reference_logits, ids, rows, vocab, 1 / temperature),
        *(level, torch.get_num_threads(), found),
    )
    return found


def top_terms(
    policy_logits: Float[Tensor, "rows vocab"],
    reference_logits: Float[Tensor, "_ _"],
    *,
    k: int,
    temperature: float,
) -> TopTerms:
    """The largest terms of each row's KL; `k` is at most the vocabulary. Only where `fits`."""
    if policy_logits.is_cuda:
        found: TopTerms = _triton().top_terms(policy_logits, reference_logits, k=k, temperature=temperature)
        return found
    rows, vocab = policy_logits.shape
    policy_logits, reference_logits = policy_logits.contiguous(), reference_logits.contiguous()
    items = torch.zeros(rows, k, dtype=torch.int32)
    numbers = torch.zeros(3, rows, k)
    _call(
        "kleash_top_terms",
        *(policy_logits, reference_logits, rows, vocab, 1 / temperature),
        *(k, torch.get_num_threads(), items, *numbers),
    )
    return TopTerms(items, *numbers)


def gradient(
    policy_logits: Float[Tensor, "rows vocab"],
    reference_logits: Float[Tensor, "_ _"] | None,
    ids: Int[Tensor, " rows"],
    *,
    weights: LossWeights,
    entropy: Float[Tensor, " rows"],
    kl: Float[Tensor, " rows"],
    temperature: float,
    out: Float[Tensor, "_ _"],
) -> None:
    """The loss's gradient with respect to the policy's logits, into `out`, which may be the reference's logits.

    `entropy` and `kl` are the rows' own. Without a reference the weights of `kl` are not looked at. All logits
    are contiguous. Only where `fits`.
    """
    rows, vocab = _checked(policy_logits, out, ids)
    if policy_logits.is_cuda:
        of_loss = {"weights": weights, "entropy": entropy, "kl": kl, "temperature": temperature}
        _triton().gradient(policy_logits, reference_logits, ids, **of_loss, out=out)
        return
    _call(
        "kleash_gradient",
        *(policy_logits, reference_logits, ids.long().contiguous(), out),
        *(rows, vocab, 1 / temperature, torch.get_num_threads()),
        *(x.contiguous() for x in (*weights, entropy, kl)),
    )


def _triton() -> ModuleType:
    kernels = cuda.kernels()
    assert kernels is not None
    return kernels


def _checked(policy_logits: Tensor, reference_logits: Tensor, ids: Tensor) -> tuple[int, int]:
    rows, vocab = policy_logits.shape
    if reference_logits.shape != policy_logits.shape:
        raise ValueError(f"logits of shape {policy_logits.shape} and {reference_logits.shape}")
    if rows and not (int(ids.min()) >= 0 and int(ids.max()) < vocab):
        raise IndexError(f"a token id is outside the vocabulary of {vocab}")
    return rows, vocab


_C_TYPES = {
    "kleash_scores": "pppllfiip",
    "kleash_top_terms": "ppllfiipppp",
    "kleash_gradient": "ppppllfippppp",
}
_C_TYPE = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "f": ctypes.c_float, "i": ctypes.c_int}


def _call(function: str, *arguments: Tensor | float | int | None) -> None:
    """Call a function of scores.c; tensors go as pointers, and must stay referenced by the caller."""
    kernels = library()
    assert kernels is not None
    foreign = getattr(kernels, function)
    foreign.argtypes = [_C_TYPE[letter] for letter in _C_TYPES[function]]
    foreign(*(x.data_ptr() if isinstance(x, Tensor) else x for x in arguments))
