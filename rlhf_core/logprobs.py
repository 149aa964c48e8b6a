"""From logits to the log-probabilities of tokens.

The logits at position t−1 score token t. A temperature divides the logits of policy and reference alike: the
policy that is sampled, trained and held on the leash is softmax(logits / temperature).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def token_logprobs(
    logits: Float[Tensor, "*b vocab"], ids: Int[Tensor, "*b"], *, temperature: float = 1.0
) -> Float[Tensor, "*b"]:
    """ln softmax(logits / temperature)[ids], in nats and in the dtype of the logits."""
    return gather_tokens((logits / temperature).log_softmax(-1), ids)


def gather_tokens(logprobs: Float[Tensor, "*b vocab"], ids: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The entry of each token in its own distribution's log-probabilities."""
    return logprobs.gather(-1, ids.long().unsqueeze(-1)).squeeze(-1)


def rank(logits: Float[Tensor, "*b vocab"], ids: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """1 + the number of tokens with a larger logit than this one; NaN for a logit that is NaN."""
    own = gather_tokens(logits, ids)
    return torch.where(own.isnan(), own, 1 + (logits > own.unsqueeze(-1)).sum(-1))


def entropy(logits: Float[Tensor, "*b vocab"], *, temperature: float = 1.0) -> Float[Tensor, "*b"]:
    """H(π) = −Σ_v π(v) ln π(v) in nats, π = softmax(logits / temperature). A logit of −∞ contributes 0."""
    return entropy_of((logits / temperature).log_softmax(-1))


def entropy_of(logprobs: Float[Tensor, "*b vocab"]) -> Float[Tensor, "*b"]:
    """H(π) = −Σ_v π(v) ln π(v) in nats, from normalised log-probabilities."""
    # Finite, because 0 · −∞ would be NaN in the value and in the gradient.
    finite = logprobs.clamp(min=torch.finfo(logprobs.dtype).min)
    return -(logprobs.exp() * finite).sum(-1)
