"""Triton's side of triton_scores.py: one program per row and part of PART items, except `join`.

Lanes past the end of a row read −∞, which adds nothing to any sum.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl

from rlhf_core.kernels.scores import OUTPUTS

PART = tl.constexpr(16384)
BLOCK = tl.constexpr(1024)
SUMS = tl.constexpr(len(OUTPUTS) - 2)  # all but the log-probabilities, in this order
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


@triton.jit
@no_type_check
def masses(logits, stride, vocab, inverse_temperature, most, mass):
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
def join(parts, n_parts, width, total):
    """Of each row the sum over its parts, one after the other; one program per row."""
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
def _kl_term(p, q, d, near):
    even, odd = _series(d)
    return tl.where(near, p * (even - odd), tl.where(p == 0, q, p * d - p + q))


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
def sums(
    policy, reference, policy_stride, reference_stride, vocab,
    inverse_temperature, policy_most, reference_most, policy_mass, reference_mass,
    apart, policy_own, reference_own, sums, WITH_JS: tl.constexpr,
):  # fmt: skip
    """Of each part what it adds to each of `OUTPUTS` from KL on; `apart` is the log-sum-exps' difference."""
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
        kl += _kl_term(p, q, d, near)
        kl_ref += tl.where(near, q * (even + odd), tl.where(q == 0, p, p - q - q * d))
        entropy -= tl.where(p == 0, 0.0, p * la)
        cross -= tl.where(p == 0, 0.0, p * lb)
        entropy_ref -= tl.where(q == 0, 0.0, q * lb)
        tv += tl.abs(tl.where(near, p * (d - (even - odd)), p - q))
        rank_a += (a > own_a).to(tl.int32)
        rank_b += (b > own_b).to(tl.int32)
        if WITH_JS:
            js += _js_term(p, q, d, near)
    here = sums + (row * tl.num_programs(1) + part) * SUMS
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
def keys(
    policy, reference, policy_stride, reference_stride, vocab, inverse_temperature,
    policy_most, reference_most, policy_mass, reference_mass, apart, keys,
):  # fmt: skip
    """Of each item a number that is larger for a larger term of KL(π ‖ ref), of equal ones for the first."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    most_a, most_b = tl.load(policy_most + row), tl.load(reference_most + row)
    mass_a, mass_b = tl.load(policy_mass + row), tl.load(reference_mass + row)
    lse_apart = tl.load(apart + row)
    first = part * PART
    for start in range(first, tl.minimum(first + PART, vocab), BLOCK):
        items = start + tl.arange(0, BLOCK)
        a = tl.load(policy + row * policy_stride + items, mask=items < vocab, other=-float("inf"))
        b = tl.load(reference + row * reference_stride + items, mask=items < vocab, other=-float("inf"))
        p = tl.exp((a - most_a) * inverse_temperature - mass_a)
        q = tl.exp((b - most_b) * inverse_temperature - mass_b)
        d = (a - b) * inverse_temperature - lse_apart
        term = _kl_term(p, q, d, tl.abs(d) < 1)  # never negative: its bits are in its order
        key = (term.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (2147483647 - items).to(tl.int64)
        tl.store(keys + row * vocab + items, key, mask=items < vocab)


@triton.jit
@no_type_check
def gradient(
    policy, reference, ids, out, vocab, inverse_temperature,
    policy_most, policy_mass, apart, of_logprob, of_entropy, of_kl, entropy, kl, HAS_REFERENCE: tl.constexpr,
):  # fmt: skip
    """`out` may be the reference: a program reads an item of it before it writes it, and nobody else does."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    most, mass, lse_apart = tl.load(policy_most + row), tl.load(policy_mass + row), tl.load(apart + row)
    own, spread, leash = tl.load(of_logprob + row), tl.load(of_entropy + row), tl.load(of_kl + row)
    row_entropy, row_kl, token = tl.load(entropy + row), tl.load(kl + row), tl.load(ids + row)
    first = part * PART
    for start in range(first, tl.minimum(first + PART, vocab), BLOCK):
        items = start + tl.arange(0, BLOCK)
        at = row * vocab + items
        a = tl.load(policy + at, mask=items < vocab, other=-float("inf"))
        la = (a - most) * inverse_temperature - mass
        p = tl.exp(la)
        slope = -own - spread * (la + row_entropy)
        if HAS_REFERENCE:
            b = tl.load(reference + at, mask=items < vocab, other=-float("inf"))
            d = (a - b) * inverse_temperature - lse_apart
            slope += tl.where(leash == 0, 0.0, leash * (d - row_kl))
        slope = tl.where(p == 0, 0.0, p * slope) + tl.where(items == token, own, 0.0)
        tl.store(out + at, slope * inverse_temperature, mask=items < vocab)
