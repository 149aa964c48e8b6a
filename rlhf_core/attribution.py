"""Where the KL of texts is: tokens, positions, token classes, vocabulary items; and entropy and rank change.

numpy in float64, without torch. All arrays have one entry per scored token of all texts, one text after the other.
A share is a part of all their KL: NaN where that is 0 or infinite. Shares say where KL(policy ‖ reference) is on
these texts, not what training did to cause it.
"""

import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from rlhf_core.statistics import Estimate, ratio_estimate

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
TokenClass = Literal[
    "special", "whitespace", "character_part", "digits", "punctuation", "word_start", "word_continuation"
]
SPECIAL = re.compile(
    r"<\|.*\|>|</?s>|<(pad|unk|bos|eos|mask|start_of_turn|end_of_turn)>|\[(CLS|SEP|PAD|MASK)\]"
)
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def kl_of_others(
    kl: npt.NDArray[np.floating[Any]], terms: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float32]:
    """Of each token the part of KL(policy ‖ reference) that its top terms [tokens, k] leave to all other items.

    With them it is `kl`, to float32's rounding; never negative, for no term is. NaN where `kl` is not finite.
    """
    with np.errstate(invalid="ignore"):  # infinity less infinity
        others = kl.astype(np.float64) - terms.astype(np.float64).sum(axis=-1)
    return np.where(np.isfinite(kl), np.maximum(others, 0.0), np.nan).astype(np.float32)


class Share(NamedTuple):
    """A group of tokens and its part of all KL."""

    n_tokens: int
    kl: float
    mean: float  # per token
    share: float


class PositionShare(NamedTuple):
    """The tokens at positions `first` … `last` among the scored ones of their text, which count from 0."""

    first: int
    last: int
    of: Share


class ItemShare(NamedTuple):
    """A vocabulary item, over the tokens that had it among their top terms."""

    id: int
    n_tokens: int
    kl: float  # Σ of its terms
    share: float
    gain: float  # Σ (policy's probability − reference's)


class VocabularyShares(NamedTuple):
    """Which items carry the KL; `coverage` is the share of all KL that the top terms account for."""

    coverage: float
    items: list[ItemShare]  # by kl, largest first
    gainers: list[ItemShare]  # by gain, what the policy likes better first
    losers: list[ItemShare]  # by gain, what it likes less first


class EntropyChange(NamedTuple):
    """Mean entropies per token, and their difference policy − reference with its error."""

    policy: float
    reference: float
    change: Estimate


class RankChange(NamedTuple):
    """How the texts' tokens moved among all, reference → policy; rank 1 is the likeliest."""

    risen: float  # share of the tokens that are likelier for the policy by rank
    fallen: float
    unchanged: float
    median_ratio: float  # of policy_rank / reference_rank: below 1 they rose


def top_tokens(kl: Array, count: int) -> list[int]:
    """Indices of the tokens with the largest KL, largest first, the earlier one first among equals."""
    order: list[int] = np.argsort(-kl, kind="stable")[:count].tolist()
    return order


def shares(values: Array, total: float) -> Array:
    """values / total; NaN where the total is 0 or infinite, for then it has no parts."""
    return values / total if np.isfinite(total) and total != 0 else np.full_like(values, np.nan)


def kl_by_position(kl: Array, position: IntArray) -> list[PositionShare]:
    """KL at positions 0, 1, 2–3, 4–7, 8–15, … from the start of the scored part; empty ones are left out."""
    bucket = np.frexp(position)[1].astype(np.int64)  # the number of binary digits
    groups = _by_group(kl, bucket)
    return [PositionShare(1 << k >> 1, (1 << k) - 1 if k else 0, of) for k, of in groups.items()]


def kl_by_class(kl: Array, pieces: Sequence[str]) -> dict[TokenClass, Share]:
    """KL of each token class that occurs, largest first."""
    names: tuple[TokenClass, ...] = get_args(TokenClass)
    class_of = {piece: names.index(token_class(piece)) for piece in set(pieces)}
    groups = _by_group(kl, np.array([class_of[piece] for piece in pieces], dtype=np.int64))
    ordered = sorted(groups.items(), key=lambda group: -group[1].kl)
    return {names[index]: share for index, share in ordered}


def token_class(piece: str) -> TokenClass:
    """What kind of token a piece of text is, from the piece alone.

    special: no text of its own, or a well-known marker such as <|im_end|> or </s>. whitespace: nothing else.
    character_part: a part of a character (U+FFFD). digits, punctuation (with symbols): nothing else but space
    around. word_start: anything else after a space. word_continuation: anything else; so the first word of a
    text or line counts here, and all words of a script that has no spaces.
    """
    core = piece.strip()
    if not piece or SPECIAL.fullmatch(core):
        return "special"
    if not core:
        return "whitespace"
    if REPLACEMENT in core:
        return "character_part"
    kinds = {unicodedata.category(character)[0] for character in core}
    marked = kinds - {"M", "C"}  # joiners and variation selectors, as in emoji
    if marked == {"N"}:
        return "digits"
    if marked and marked <= {"P", "S"}:
        return "punctuation"
    return "word_start" if piece[0].isspace() else "word_continuation"


def kl_by_item(ids: IntArray, terms: Array, gains: Array, *, total: float, count: int) -> VocabularyShares:
    """Which vocabulary items carry the KL, from the top terms of each token.

    Args:
        ids: [tokens, k] the items.
        terms: [tokens, k] their parts of the token's KL.
        gains: [tokens, k] policy's probability − reference's.
        total: all KL of the tokens.
        count: the most items in each list.
    """
    unique, inverse = np.unique(ids.ravel(), return_inverse=True)
    kl, gain = _sums(inverse, terms.ravel()), _sums(inverse, gains.ravel())
    n_tokens, share = np.bincount(inverse), shares(kl, total)

    def listed(order: Iterable[int]) -> list[ItemShare]:
        return [
            ItemShare(int(unique[i]), int(n_tokens[i]), float(kl[i]), float(share[i]), float(gain[i]))
            for i in order
        ]

    rising = np.argsort(gain, kind="stable")
    return VocabularyShares(
        coverage=float(shares(np.array([terms.sum()]), total)[0]),
        items=listed(top_tokens(kl, count)),
        gainers=listed(i for i in rising[::-1][:count] if gain[i] > 0),
        losers=listed(i for i in rising[:count] if gain[i] < 0),
    )


def entropy_change(
    entropy: Array, entropy_ref: Array, text: IntArray, clusters: Sequence[Hashable]
) -> EntropyChange:
    """Mean entropies per token and the change, a ratio estimate over texts.

    Args:
        entropy: of the policy at each token.
        entropy_ref: of the reference.
        text: the index of each token's text.
        clusters: a label for each text.
    """
    n_tokens = np.bincount(text, minlength=len(clusters)).astype(np.float64)
    change = _sums(text, entropy - entropy_ref, len(clusters))
    return EntropyChange(
        float(entropy.mean()), float(entropy_ref.mean()), ratio_estimate(change, n_tokens, clusters)
    )


def rank_change(policy_rank: Array, reference_rank: Array) -> RankChange:
    """How the texts' tokens moved among all."""
    log_ratio = np.log(policy_rank) - np.log(reference_rank)
    return RankChange(
        risen=float((log_ratio < 0).mean()),
        fallen=float((log_ratio > 0).mean()),
        unchanged=float((log_ratio == 0).mean()),
        median_ratio=float(np.exp(np.median(log_ratio))),
    )


def _by_group(kl: Array, group: IntArray) -> dict[int, Share]:
    """Groups by number; those without a token are left out."""
    n_tokens, sums = np.bincount(group), _sums(group, kl)
    share = shares(sums, float(kl.sum()))
    return {
        int(k): Share(int(n_tokens[k]), float(sums[k]), float(sums[k] / n_tokens[k]), float(share[k]))
        for k in np.flatnonzero(n_tokens)
    }


def _sums(group: IntArray, values: Array, n_groups: int = 0) -> Array:
    """Σ values of each group by number."""
    return np.bincount(group, values, minlength=n_groups).astype(np.float64, copy=False)
