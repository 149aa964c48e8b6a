"""What scores.c says of rows of logits, on a CUDA device. Importing this needs Triton.

A row is cut into parts of PART items, one program each, so that a few rows fill the device. Two sweeps: `masses`
for the log-sum-exps; `sums`, `keys` or `gradient` over them. A lane adds at most PART / BLOCK numbers in float32,
lanes and then parts are joined in float64 in a fixed order: a row's result depends on nothing but the row.

The terms are those of `kl.kl_terms`, but δ is (a − b)/T minus the difference of the log-sum-exps, which is taken
in float64: its rounding is relative to δ itself, not to the log-probabilities.

TRITON_INTERPRET=1 runs the same kernels on the CPU, without a driver (tests/gpu/test_kernels.py).
"""

from ctypes import c_float
from typing import NamedTuple

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.kernels import triton_kernels as kernels
from rlhf_core.kernels.scores import ALL, LOGPROBS_ONLY, OUTPUTS, LossWeights, TopTerms

WARPS = 8
KEY_BYTES = 8 * 2**20  # for the keys of some rows at a time, beside the budget of logits


class Normaliser(NamedTuple):
    """A row's ln Σ e^(x/T) is (most)/T + log_mass; NaN for a row without any mass."""

    most: Float[Tensor, " rows"]
    log_mass: Float[Tensor, " rows"]  # float64

    def over(self, inverse_temperature: float) -> Float[Tensor, " rows"]:
        """The log-sum-exps, in float64."""
        return self.most.double() * inverse_temperature + self.log_mass


def scores(
    policy_logits: Float[Tensor, "rows vocab"],
    reference_logits: Float[Tensor, "rows vocab"],
    ids: Int[Tensor, " rows"],
    *,
    temperature: float,
    level: int = ALL,
) -> Float[Tensor, "rows outputs"]:
    """As `kernels.scores.scores`; `ids` are within the vocabulary."""
    inverse = c_float(1 / temperature).value
    policy_logits, reference_logits = _unit_stride(policy_logits), _unit_stride(reference_logits)
    found = policy_logits.new_zeros(len(ids), len(OUTPUTS))
    with torch.cuda.device_of(policy_logits):  # type: ignore[no-untyped-call]
        ours, theirs = _normaliser(policy_logits, inverse), _normaliser(reference_logits, inverse)
        own = [x.gather(1, ids.long()[:, None])[:, 0] for x in (policy_logits, reference_logits)]
        for column, (logit, normaliser) in enumerate(zip(own, (ours, theirs), strict=True)):
            found[:, column] = logit.double() * inverse - normaliser.over(inverse)
        if level > LOGPROBS_ONLY:
            found[:, 2:] = _divergences(
                *(policy_logits, reference_logits, ours, theirs, own, inverse), with_js=level == ALL
            )
    return found


def top_terms(
    policy_logits: Float[Tensor, "rows vocab"],
    reference_logits: Float[Tensor, "rows vocab"],
    *,
    k: int,
    temperature: float,
) -> TopTerms:
    """As `kernels.scores.top_terms`: torch selects among keys that order items by term, then by place."""
    inverse = c_float(1 / temperature).value
    policy_logits, reference_logits = _unit_stride(policy_logits), _unit_stride(reference_logits)
    rows, vocab = policy_logits.shape
    with torch.cuda.device_of(policy_logits):  # type: ignore[no-untyped-call]
        sides = [(x, _normaliser(x, inverse)) for x in (policy_logits, reference_logits)]
        (_, ours), (_, theirs) = sides
        apart = (ours.over(inverse) - theirs.over(inverse)).float()
        largest = [policy_logits.new_empty(0, k, dtype=torch.int64)]
        step = max(1, KEY_BYTES // (8 * vocab))
        for some in (slice(first, first + step) for first in range(0, rows, step)):
            keys = torch.empty_like(
                policy_logits[some], dtype=torch.int64, memory_format=torch.contiguous_format
            )
            kernels.keys[(len(keys), triton.cdiv(vocab, kernels.PART.value))](
                *(policy_logits[some], reference_logits[some]),
                *(policy_logits.stride(0), reference_logits.stride(0), vocab, inverse),
                *(ours.most[some], theirs.most[some]),
                *(ours.log_mass[some].float(), theirs.log_mass[some].float(), apart[some], keys),
                num_warps=WARPS,
            )
            largest.append(keys.topk(k).values)
        found = torch.cat(largest)
    items = 2**31 - 1 - (found & 0xFFFFFFFF)
    policy_logprob, reference_logprob = (
        (x.gather(1, items).double() * inverse - n.over(inverse)[:, None]).float() for x, n in sides
    )
    terms = (found >> 32).int().view(torch.float32)
    return TopTerms(items.int(), policy_logprob, reference_logprob, terms)


def gradient(
    policy_logits: Float[Tensor, "rows vocab"],
    reference_logits: Float[Tensor, "rows vocab"] | None,
    ids: Int[Tensor, " rows"],
    *,
    weights: LossWeights,
    entropy: Float[Tensor, " rows"],
    kl: Float[Tensor, " rows"],
    temperature: float,
    out: Float[Tensor, "rows vocab"],
) -> None:
    """As `kernels.scores.gradient`: (w·(onehot − p) − w_H·p(ln p + H) + w_KL·p(δ − KL)) / T."""
    inverse = c_float(1 / temperature).value
    rows, vocab = policy_logits.shape
    other = policy_logits if reference_logits is None else reference_logits
    assert all(x.is_contiguous() for x in (policy_logits, other, out))
    if not rows:
        return
    with torch.cuda.device_of(policy_logits):  # type: ignore[no-untyped-call]
        ours = _normaliser(policy_logits, inverse)
        apart = ours.over(inverse) - _normaliser(other, inverse).over(inverse)
        kernels.gradient[(rows, triton.cdiv(vocab, kernels.PART.value))](
            *(policy_logits, other, ids.long().contiguous(), out, vocab, inverse),
            *(ours.most, ours.log_mass.float(), apart.float()),
            *(x.contiguous() for x in (*weights, entropy, kl)),
            HAS_REFERENCE=reference_logits is not None,
            num_warps=WARPS,
        )


def _unit_stride(logits: Tensor) -> Tensor:
    """The same with each row in one piece."""
    return logits if logits.stride(1) == 1 else logits.contiguous()


def _normaliser(logits: Tensor, inverse_temperature: float) -> Normaliser:
    rows, vocab = logits.shape
    parts = triton.cdiv(vocab, kernels.PART.value)
    most = logits.new_empty(rows, parts)
    mass = logits.new_empty(rows, parts, dtype=torch.float64)
    if rows:
        kernels.masses[(rows, parts)](
            logits, logits.stride(0), vocab, inverse_temperature, most, mass, num_warps=WARPS
        )
    highest = most.amax(1)
    share = ((most - highest[:, None]).double() * inverse_temperature).exp()
    return Normaliser(highest, _joined((mass * share)[..., None])[:, 0].log())


def _divergences(
    policy_logits: Tensor,
    reference_logits: Tensor,
    ours: Normaliser,
    theirs: Normaliser,
    own: list[Tensor],
    inverse_temperature: float,
    *,
    with_js: bool,
) -> Float[Tensor, "rows sums"]:
    rows, vocab = policy_logits.shape
    parts = triton.cdiv(vocab, kernels.PART.value)
    apart = ours.over(inverse_temperature) - theirs.over(inverse_temperature)
    sums = policy_logits.new_empty(rows, parts, kernels.SUMS.value, dtype=torch.float64)
    if rows:
        kernels.sums[(rows, parts)](
            *(policy_logits, reference_logits, policy_logits.stride(0), reference_logits.stride(0), vocab),
            *(inverse_temperature, ours.most, theirs.most, ours.log_mass.float(), theirs.log_mass.float()),
            *(apart.float(), *own, sums),
            WITH_JS=with_js,
            num_warps=WARPS,
        )
    found = _joined(sums)
    for name, logit in zip(("policy_rank", "reference_rank"), own, strict=True):
        larger = found[:, OUTPUTS.index(name) - 2]
        larger.copy_(torch.where(logit.isnan(), torch.nan, 1 + larger))  # NaN has no rank
    return found


def _joined(parts: Float[Tensor, "rows parts width"]) -> Float[Tensor, "rows width"]:
    """Σ over the parts, one after the other whatever the number of rows: torch does not promise that."""
    rows, n_parts, width = parts.shape
    total = parts.new_empty(rows, width)
    if rows:
        kernels.join[(rows,)](parts, n_parts, width, total, num_warps=1)
    return total
