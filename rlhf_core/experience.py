"""What the policy did and how likely it was: sampling completions, and scoring their tokens under both models."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlhf_core.causal_lm import CausalLM
from rlhf_core.chunked import chunked_scores
from rlhf_core.config.ppo import PPOConfig, RolloutConfig
from rlhf_core.kl import k1
from rlhf_core.kl_weights import WeightedKL, WeightTable, weight_table, weighted_scores
from rlhf_core.packing import pack
from rlhf_core.rollout import Rollout, generate
from rlhf_core.stopping import StopStrings, require_producible
from rlhf_core.truncation import Truncation


@runtime_checkable
class Codec(Protocol):
    """Text to ids and back."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a completion."""
        ...

    @property
    def pad_id(self) -> int:
        """Any id: padding is masked."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of a completion."""
        ...


@runtime_checkable
class TrainablePolicy(Protocol):
    """A policy with weights to train and its frozen reference."""

    @property
    def hidden_size(self) -> int:
        """Width of the trunk's output."""
        ...

    @property
    def codec(self) -> Codec:
        """The policy's tokenizer."""
        ...

    def policy(self) -> AbstractContextManager[CausalLM]:
        """The policy, while the context is entered."""
        ...

    def reference(self) -> AbstractContextManager[CausalLM]:
        """The reference, while the context is entered."""
        ...

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """What the optimizer updates, by name."""
        ...


@runtime_checkable
class OwnValueTrunk(Protocol):
    """A policy whose value function has trained weights of its own below the head."""

    def value_trunk(self) -> AbstractContextManager[CausalLM]:
        """The value function's trunk, while the context is entered; also a backward pass through it needs that."""
        ...

    def value_parameters(self) -> dict[str, nn.Parameter]:
        """What the value loss moves besides the head, by name."""
        ...


class Experience(NamedTuple):
    """A rollout under the policy that made it; per-token values are 0 where `rollout.response_mask` is False."""

    rollout: Rollout
    logprob: Float[Tensor, "batch response"]
    k1: Float[Tensor, "batch response"]
    kl: Float[Tensor, "batch response"]  # exact, over the full vocabulary
    entropy: Float[Tensor, "batch response"]
    value: Float[Tensor, "batch response"]
    # One position before each token, row by row without padding; kept only where a loss needs it.
    reference_hidden: Float[Tensor, "tokens hidden"] | None = None
    weighted: WeightedKL | None = None  # only where `kl.weights` asks for it


def device_of(policy: TrainablePolicy) -> torch.device:
    """Where the policy's weights are."""
    return next(iter(policy.trainable_parameters().values())).device


def weights_of(policy: TrainablePolicy, config: PPOConfig) -> WeightTable | None:
    """`kl.weights` for this policy's vocabulary. Raises UnknownToken."""
    if config.kl.weights is None:
        return None
    with policy.policy() as model:
        return weight_table(
            config.kl.weights,
            policy.codec,
            vocab_size=model.vocab_size,
            longest_response=config.rollout.max_new_tokens,
            device=model.device,
        )


def value_parameters(policy: TrainablePolicy) -> dict[str, nn.Parameter]:
    """The value function's own weights below its head; none if it reads the policy's hidden states."""
    return policy.value_parameters() if isinstance(policy, OwnValueTrunk) else {}


def value_hidden(
    policy: TrainablePolicy, batch: Rollout, hidden: Float[Tensor, "tokens hidden"]
) -> Float[Tensor, "tokens hidden"]:
    """What the value head reads: its own trunk's output, or the policy's `hidden`, detached."""
    if not isinstance(policy, OwnValueTrunk):
        return hidden.detach()
    with policy.value_trunk() as model:
        return response_hidden(model, batch)


def sample(
    policy: TrainablePolicy, texts: Sequence[str], config: RolloutConfig, random: torch.Generator
) -> Rollout:
    """One completion per text. Raises UnknownToken and UnusableStop for what cannot end one."""
    codec, strings, token_ids = policy.codec, config.stop, config.stop_token_ids
    with policy.policy() as model:
        require_producible(
            strings, token_ids, vocab_size=model.vocab_size, encode=codec.encode, decode=codec.decode
        )
        return generate(
            model,
            [codec.encode(text) for text in texts],
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            eos_ids=codec.eos_ids.union(token_ids),
            pad_id=codec.pad_id,
            generator=random,
            truncation=Truncation.of(config),
            stop=StopStrings(strings, codec.decode) if strings else None,
        )


def assess(
    policy: TrainablePolicy,
    value_head: nn.Linear,
    rollout: Rollout,
    minibatches: Sequence[Int[Tensor, " _"]],
    temperature: float,
    *,
    keep_reference: bool = False,
    weights: WeightTable | None = None,
) -> Experience:
    """Log-probabilities, exact KL, entropy and value of every response token under the present policy.

    `keep_reference` keeps the reference's hidden states too: tokens × width, in float32. `weights` adds the
    weighted KL.
    """
    shape = rollout.response_mask.shape
    logprob, d, kl, entropy, value = (
        torch.zeros(shape, dtype=rollout.sampled_logprob.dtype, device=rollout.input_ids.device)
        for _ in range(5)
    )
    weighted = () if weights is None else tuple(torch.zeros_like(kl) for _ in WeightedKL._fields)
    kept: Tensor | None = None
    places = token_places(rollout.response_mask) if keep_reference else None
    for rows in minibatches:
        batch = rollout.rows(rows)
        ids = batch.response_ids[batch.response_mask]
        with torch.no_grad():
            with policy.policy() as model:
                hidden = response_hidden(model, batch)
                policy_logits = model.logits
            value_reads = value_hidden(policy, batch, hidden)
            with policy.reference() as model:
                theirs = response_hidden(model, batch)
                given = (hidden, theirs, policy_logits, model.logits, ids)
                charged: tuple[Tensor, ...] = ()
                if weights is None:
                    scores = chunked_scores(*given, temperature=temperature)
                else:
                    scores, charged = weighted_scores(*given, weights, temperature=temperature)
            if places is not None:
                if kept is None:
                    kept = theirs.new_empty(int(rollout.response_mask.sum()), theirs.shape[-1])
                kept[places[rows][batch.response_mask]] = theirs
            for target, flat in (
                (logprob, scores.policy_logprob),
                (d, k1(scores.policy_logprob, scores.reference_logprob)),
                (kl, scores.kl),
                (entropy, scores.entropy),
                (value, value_head(value_reads).squeeze(-1)),
                *zip(weighted, charged, strict=True),
            ):
                target[rows] = target[rows].masked_scatter(batch.response_mask, flat)
    found = Experience(rollout, logprob, d, kl, entropy, value, kept)
    if weights is None:
        return found
    of_positions = weights.of_positions[: shape[1]].to(kl)
    return found._replace(weighted=WeightedKL(*(of_positions * column for column in weighted)))


def token_places(mask: Bool[Tensor, "batch response"]) -> Int[Tensor, "batch response"]:
    """Each real token's place among all real tokens, row by row; −1 for the others."""
    return torch.where(mask, mask.flatten().cumsum(0).view(mask.shape) - 1, -1)


def response_hidden(model: CausalLM, batch: Rollout) -> Float[Tensor, "tokens hidden"]:
    """The trunk's output one position before each response token: its distribution before the head."""
    return pack(batch, packs=model.packs).predicting(model)
