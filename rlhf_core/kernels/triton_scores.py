"""What scores.c says of rows of logits, on a CUDA device. Importing this needs Triton.

A row is cut into parts of PART items, one program each, so that a few rows fill the device. Two sweeps: `_masses`
for the log-sum-exps, `_sums` for everything over them. A lane adds at most PART / BLOCK numbers in float32; lanes
and then parts are joined in float64, in a fixed order: a row's result depends on nothing but the row.

The terms are those of `kl.kl_terms`, but δ is (a − b)/T minus the difference of the log-sum-exps, which is taken
in float64: its rounding is relative to δ itself, not to the log-probabilities.

TRITON_INTERPRET=1 runs the same kernels on the CPU, without a driver (tests/gpu/test_kernels.py).
"""

from ctypes import c_float
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.kernels.scores import ALL, LOGPROBS_ONLY

PART = tl.constexpr(16384)
BLOCK = tl.constexpr(1024)
WARPS = 8
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
SUMS = (
    "kl",
    "kl_ref",
    "entropy",
    "cross_entropy",
    "tv",
    "entropy_ref",
    "policy_rank",
    "reference_rank",
    "js",
)
N_SUMS = tl.constexpr(len(SUMS))


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
) -> dict[str, Float[Tensor, " rows"]]:
    """Each of `kernels.scores.OUTPUTS`, in nats (TV, ranks: no unit); what `level` leaves out is 0.

    Logits are float32; `ids` are within the vocabulary.
    """
    inverse = c_float(1 / temperature).value
    policy_logits, reference_logits = _unit_stride(policy_logits), _unit_stride(reference_logits)
    with torch.cuda.device_of(policy_logits):  # type: ignore[no-untyped-call]
        ours, theirs = _normaliser(policy_logits, inverse), _normaliser(reference_logits, inverse)
        own = [x.gather(1, ids.long()[:, None])[:, 0] for x in (policy_logits, reference_logits)]
        found = dict.fromkeys(SUMS, torch.zeros_like(own[0])) | {
            "policy_logprob": own[0].double() * inverse - ours.over(inverse),
            "reference_logprob": own[1].double() * inverse - theirs.over(inverse),
        }
        if level > LOGPROBS_ONLY:
            found |= _divergences(policy_logits, reference_logits, ours, theirs, own, inverse, level == ALL)
    return {name: values.float() for name, values in found.items()}


def write_gradient(
    policy_logits: Float[Tensor, "rows vocab"],
    reference_logits: Float[Tensor, "rows vocab"] | None,
    ids: Int[Tensor, " rows"],
    *,
    of_logprob: Float[Tensor, " rows"],
    of_entropy: Float[Tensor, " rows"],
    of_kl: Float[Tensor, " rows"],
    entropy: Float[Tensor, " rows"],
    kl: Float[Tensor, " rows"],
    temperature: float,
) -> None:
    """Write over the policy's logits a loss's gradient with respect to them, given its gradient to each quantity.

    (of_logprob·(onehot − p) − of_entropy·p(ln p + H) + of_kl·p(δ − KL)) / T. `entropy` and `kl` are the rows' own;
    without a reference `of_kl` is not looked at. The policy's logits are contiguous.
    """
    assert policy_logits.is_contiguous()
    if not len(policy_logits):
        return
    inverse = c_float(1 / temperature).value
    rows, vocab = policy_logits.shape
    other = policy_logits if reference_logits is None else _unit_stride(reference_logits)
    with torch.cuda.device_of(policy_logits):  # type: ignore[no-untyped-call]
        ours = _normaliser(policy_logits, inverse)
        apart = ours.over(inverse) - _normaliser(other, inverse).over(inverse)
        _gradient[(rows, triton.cdiv(vocab, PART.value))](
            *(policy_logits, other, ids.long().contiguous()),
            *(policy_logits.stride(0), other.stride(0), vocab, inverse),
            *(ours.most, ours.log_mass.float(), apart.float()),
            *(x.contiguous() for x in (of_logprob, of_entropy, of_kl, entropy, kl)),
            HAS_REFERENCE=reference_logits is not None,
            num_warps=WARPS,
        )


def _unit_stride(logits: Tensor) -> Tensor:
    """The same with each row in one piece."""
    return logits if logits.stride(1) == 1 else logits.contiguous()


def _normaliser(logits: Tensor, inverse_temperature: float) -> Normaliser:
    rows, vocab = logits.shape
    parts = triton.cdiv(vocab, PART.value)
    most = logits.new_empty(rows, parts)
    mass = logits.new_empty(rows, parts, dtype=torch.float64)
    if rows:
        _masses[(rows, parts)](
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
    with_js: bool,
) -> dict[str, Tensor]:
    rows, vocab = policy_logits.shape
    parts = triton.cdiv(vocab, PART.value)
    apart = ours.over(inverse_temperature) - theirs.over(inverse_temperature)
    sums = policy_logits.new_empty(rows, parts, len(SUMS), dtype=torch.float64)
    if rows:
        _sums[(rows, parts)](
            *(policy_logits, reference_logits, policy_logits.stride(0), reference_logits.stride(0), vocab),
            *(inverse_temperature, ours.most, theirs.most, ours.log_mass.float(), theirs.log_mass.float()),
            *(apart.float(), *own, sums),
            WITH_JS=with_js,
            num_warps=WARPS,
        )
    found = dict(zip(SUMS, _joined(sums).unbind(1), strict=True))
    for name, logit in zip(("policy_rank", "reference_rank"), own, strict=True):
        found[name] = torch.where(logit.isnan(), torch.nan, 1 + found[name])
    return found


def _joined(parts: Float[Tensor, "rows parts width"]) -> Float[Tensor, "rows width"]:
    """Σ over the parts, one after the other whatever the number of rows: torch does not promise that."""
    rows, n_parts, width = parts.shape
    total = parts.new_empty(rows, width)
    if rows:
        _join[(rows,)](parts, n_parts, width, total, num_warps=1)
    return total


# Kernels. Lanes past the end of a row read −∞, which adds nothing to any sum.


@triton.jit
@no_type_check
def _masses(logits, stride, vocab, inverse_temperature, most, mass):
    """Of each part the largest logit and Σ e^((x − largest)/T), lane by lane in one sweep."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first = part * PART
    highest = tl.full([BLOCK], LOWEST, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(first, tl.minimum(first + PART, vocab), BLOCK):
        items = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * stride + items, mask=items < vocab, other=-float("inf"))
        share = tl.exp(-tl.abs(x - highest) * inverse_temperature)  # of the lower in the higher
        higher = x > highest
        total = tl.where(higher, total * share + 1, total + share)
        highest = tl.where(higher, x, highest)
    top = tl.max(highest, 0)
    total *= tl.exp((highest - top) * inverse_temperature)
    place = row * tl.num_programs(1) + part
    tl.store(most + place, top)
    tl.store(mass + place, tl.sum(total.to(tl.float64), 0))


@triton.jit
@no_type_check
def _join(parts, n_parts, width, total):
    row, lanes = tl.program_id(0).to(tl.int64), tl.arange(0, 16)
    found = tl.zeros([16], tl.float64)
    for part in range(n_parts):
        found += tl.load(parts + (row * n_parts + part) * width + lanes, mask=lanes < width, other=0.0)
    tl.store(total + row * width + lanes, found, mask=lanes < width)


@triton.jit
@no_type_check
def _series(d):
    """(even, odd) with expm1(−d) + d = even − odd and expm1(d) − d = even + odd, for |d| < 1."""
    d2 = d * d
    even = d2 * (1 / 3628800) + 1 / 40320
    even = even * d2 + 1 / 720
    even = even * d2 + 1 / 24
    odd = d2 * (1 / 39916800) + 1 / 362880
    odd = odd * d2 + 1 / 5040
    odd = odd * d2 + 1 / 120
    return (even * d2 + 0.5) * d2, (odd * d2 + 1 / 6) * d2 * d


@triton.jit
@no_type_check
def _js_term(p, q, d, near):
    """½ (p ln(p/m) + q ln(q/m)), m = (p + q)/2."""
    s2 = d * d * 0.25
    series = s2 * (-559 / 5443200) + 443 / 1209600
    series = series * s2 - 1 / 720
    series = series * s2 + 1 / 144
    series = (series * (s2 * s2) + 0.5) * s2
    high, low = tl.maximum(p, q), tl.minimum(p, q)
    far = -(high + low) * tl.log((1 + low / high) * 0.5) - low * tl.abs(d)
    far = tl.where(low == 0, high * 0.69314718, far)
    far = tl.where(high == 0, 0.0, far * 0.5)
    return tl.where(near, tl.sqrt(p * q) * series, far)


@triton.jit
@no_type_check
def _sums(
    policy, reference, policy_stride, reference_stride, vocab,
    inverse_temperature, policy_most, reference_most, policy_mass, reference_mass,
    apart, policy_own, reference_own, sums, WITH_JS: tl.constexpr,
):  # fmt: skip
    """Of each part what it adds to each of `SUMS`; `apart` is the log-sum-exps' difference."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    most_a, most_b = tl.load(policy_most + row), tl.load(reference_most + row)
    mass_a, mass_b = tl.load(policy_mass + row), tl.load(reference_mass + row)
    own_a, own_b, lse_apart = tl.load(policy_own + row), tl.load(reference_own + row), tl.load(apart + row)
    kl = tl.zeros([BLOCK], tl.float32)
    kl_ref, entropy, cross, tv, entropy_ref, js = kl, kl, kl, kl, kl, kl
    rank_a = tl.zeros([BLOCK], tl.int32)
    rank_b = rank_a
    first = part * PART
    for start in range(first, tl.minimum(first + PART, vocab), BLOCK):
        items = start + tl.arange(0, BLOCK)
        a = tl.load(policy + row * policy_stride + items, mask=items < vocab, other=-float("inf"))
        b = tl.load(reference + row * reference_stride + items, mask=items < vocab, other=-float("inf"))
        la = (a - most_a) * inverse_temperature - mass_a
        lb = (b - most_b) * inverse_temperature - mass_b
        p, q = tl.exp(la), tl.exp(lb)
        d = (a - b) * inverse_temperature - lse_apart
        near = tl.abs(d) < 1
        even, odd = _series(d)
        kl += tl.where(near, p * (even - odd), tl.where(p == 0, q, p * d - p + q))
        kl_ref += tl.where(near, q * (even + odd), tl.where(q == 0, p, p - q - q * d))
        entropy -= tl.where(p == 0, 0.0, p * la)
        cross -= tl.where(p == 0, 0.0, p * lb)
        entropy_ref -= tl.where(q == 0, 0.0, q * lb)
        tv += tl.abs(tl.where(near, p * (d - (even - odd)), p - q))
        rank_a += (a > own_a).to(tl.int32)
        rank_b += (b > own_b).to(tl.int32)
        if WITH_JS:
            js += _js_term(p, q, d, near)
    here = sums + (row * tl.num_programs(1) + part) * N_SUMS
    tl.store(here + 0, tl.sum(kl.to(tl.float64), 0))
    tl.store(here + 1, tl.sum(kl_ref.to(tl.float64), 0))
    tl.store(here + 2, tl.sum(entropy.to(tl.float64), 0))
    tl.store(here + 3, tl.sum(cross.to(tl.float64), 0))
    tl.store(here + 4, tl.sum(tv.to(tl.float64), 0) * 0.5)
    tl.store(here + 5, tl.sum(entropy_ref.to(tl.float64), 0))
    tl.store(here + 6, tl.sum(rank_a, 0).to(tl.float64))
    tl.store(here + 7, tl.sum(rank_b, 0).to(tl.float64))
    tl.store(here + 8, tl.sum(js.to(tl.float64), 0))


@triton.jit
@no_type_check
def _gradient(
    policy, reference, ids, policy_stride, reference_stride, vocab, inverse_temperature,
    policy_most, policy_mass, apart, of_logprob, of_entropy, of_kl, entropy, kl, HAS_REFERENCE: tl.constexpr,
):  # fmt: skip
    """Each logit of the policy becomes the loss's derivative with respect to it."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    most, mass, lse_apart = tl.load(policy_most + row), tl.load(policy_mass + row), tl.load(apart + row)
    own, spread, leash = tl.load(of_logprob + row), tl.load(of_entropy + row), tl.load(of_kl + row)
    row_entropy, row_kl, token = tl.load(entropy + row), tl.load(kl + row), tl.load(ids + row)
    first = part * PART
    for start in range(first, tl.minimum(first + PART, vocab), BLOCK):
        items = start + tl.arange(0, BLOCK)
        a = tl.load(policy + row * policy_stride + items, mask=items < vocab, other=-float("inf"))
        la = (a - most) * inverse_temperature - mass
        p = tl.exp(la)
        slope = -own - spread * (la + row_entropy)
        if HAS_REFERENCE:
            b = tl.load(reference + row * reference_stride + items, mask=items < vocab, other=-float("inf"))
            d = (a - b) * inverse_temperature - lse_apart
            slope += tl.where(leash == 0, 0.0, leash * (d - row_kl))
        slope = tl.where(p == 0, 0.0, p * slope) + tl.where(items == token, own, 0.0)
        tl.store(policy + row * policy_stride + items, slope * inverse_temperature, mask=items < vocab)
