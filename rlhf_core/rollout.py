"""Sampling completions from the policy: a KV-cache loop over one batch, full softmax at one temperature.

A sequence leaves the batch some time after it has ended. The random number of a token belongs to its step and row:
who has left does not change it.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_core.causal_lm import CausalLM
from rlhf_core.errors import EmptyInput, InputTooLong
from rlhf_core.stopping import StopStrings
from rlhf_core.truncation import Truncation, truncate

LEAVE_AT = 7 / 8  # of the rows in the cache go on: the others leave; each time costs a copy of what stays
WHOLE = 2.0**46  # a probability of 1 as an integer: those of a vocabulary add up within 63 bits


class Rollout(NamedTuple):
    """Prompts (left-padded) and sampled responses (right-padded) as one batch.

    Column `prompt_width + t` of `input_ids` is response token t; the logits one column before predict it.
    """

    input_ids: Int[Tensor, "batch time"]
    attention_mask: Int[Tensor, "batch time"]
    position_ids: Int[Tensor, "batch time"]
    response_mask: Bool[Tensor, "batch response"]  # True up to and including the token that ends it
    sampled_logprob: Float[Tensor, "batch response"]  # of the generation path, at the sampling temperature
    ended: Bool[Tensor, " batch"]  # by EOS, a stop token or a stop string, not by length
    prompt_width: int

    @property
    def response_ids(self) -> Int[Tensor, "batch response"]:
        """The sampled tokens; padding behind the last."""
        return self.input_ids[:, self.prompt_width :]

    def rows(self, index: Int[Tensor, " rows"]) -> "Rollout":
        """Some of the sequences, padded as they were."""
        return Rollout(
            input_ids=self.input_ids[index],
            attention_mask=self.attention_mask[index],
            position_ids=self.position_ids[index],
            response_mask=self.response_mask[index],
            sampled_logprob=self.sampled_logprob[index],
            ended=self.ended[index],
            prompt_width=self.prompt_width,
        )


def response_ids(rollout: Rollout) -> list[list[int]]:
    """The sampled tokens of each sequence, up to and including the one that ends it."""
    return [ids[mask].tolist() for ids, mask in zip(rollout.response_ids, rollout.response_mask, strict=True)]


@torch.no_grad()
def generate(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_ids: Collection[int],
    pad_id: int,
    generator: torch.Generator | None,
    truncation: Truncation | None = None,
    stop: StopStrings | None = None,
) -> Rollout:
    """Sample one completion per prompt; without a generator, take the most likely token instead.

    The log-probabilities are those of the full softmax, whatever `truncation` leaves to be sampled. A completion
    ends with one of `eos_ids`, or with the token that completes a string of `stop`, which is of this batch alone.

    Raises:
        EmptyInput: a prompt has no token; nothing would predict its completion.
        InputTooLong: a prompt and `max_new_tokens` together exceed the model's context.
        FloatingPointError: the logits hold NaN or +∞.
    """
    width, count, device = max(len(prompt) for prompt in prompts), len(prompts), model.device
    if not all(len(prompt) for prompt in prompts):
        raise EmptyInput("a prompt has no token: the tokenizer makes nothing of it")
    if width + max_new_tokens > model.context:
        raise InputTooLong(
            f"a prompt of {width} tokens and {max_new_tokens} new ones exceed the context of {model.context}"
        )
    prompt_ids, attention = _left_padded(prompts, pad_id, device)
    stops = torch.tensor(sorted(eos_ids), dtype=torch.long, device=device)

    ids = torch.full((count, max_new_tokens), pad_id, device=device)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    logprobs = torch.zeros_like(ids, dtype=torch.float64)
    unfinished = torch.arange(count, device=device)
    decoding, draws, length = _Decoding(model, prompt_ids, attention), None, 0
    while length < max_new_tokens and len(unfinished):
        logits = decoding.next_logits() / temperature
        if generator is not None:
            draws = torch.rand(count, generator=generator, dtype=torch.float64, device=device)[unfinished]
        token, logprob = _sample(logits, draws, truncation)
        now = (unfinished, length)
        ids[now], logprobs[now], mask[now] = token, logprob.double(), True
        goes_on = ~torch.isin(token, stops)
        if stop is not None:
            goes_on &= ~stop.completed_by(unfinished, token)
        unfinished, length = unfinished[goes_on], length + 1
        decoding.append(token, goes_on)

    mask = mask[:, :length]
    attention = torch.cat([attention, mask.to(attention.dtype)], dim=1)
    return Rollout(
        input_ids=torch.cat([prompt_ids, ids[:, :length]], dim=1),
        attention_mask=attention,
        position_ids=_positions(attention),
        response_mask=mask,
        sampled_logprob=logprobs[:, :length].to(logits.dtype),
        ended=torch.ones_like(mask[:, 0]).index_fill(0, unfinished, value=False),
        prompt_width=width,
    )


class _Decoding:
    """The rows in the cache: those that go on, and some that have ended and not left yet."""

    def __init__(
        self, model: CausalLM, prompt_ids: Int[Tensor, "batch time"], attention: Int[Tensor, "batch time"]
    ) -> None:
        self._model = model
        self._cache: Any = None
        self._step_ids, self._attention, self._positions = prompt_ids, attention, _positions(attention)
        self._going_on = torch.arange(
            len(prompt_ids), device=prompt_ids.device
        )  # among the rows in the cache

    def next_logits(self) -> Float[Tensor, "unfinished vocab"]:
        """The trunk over what was appended last; the head for the rows that go on."""
        output = self._model.trunk(
            input_ids=self._step_ids,
            attention_mask=self._attention,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = output.past_key_values
        return self._model.logits(output.last_hidden_state[:, -1][self._going_on])

    def append(self, token: Int[Tensor, " unfinished"], goes_on: Bool[Tensor, " unfinished"]) -> None:
        """A token for each row that went on; which of them still do."""
        column = self._step_ids[:, -1].index_copy(0, self._going_on, token)
        self._step_ids, self._positions = column[:, None], self._positions[:, -1:] + 1
        self._attention = torch.cat([self._attention, torch.ones_like(self._attention[:, :1])], dim=1)
        self._going_on = self._going_on[goes_on]
        if self._model.caches and 0 < len(self._going_on) <= LEAVE_AT * len(column):
            stay = self._going_on
            self._cache.batch_select_indices(stay)
            self._step_ids, self._positions = self._step_ids[stay], self._positions[stay]
            self._attention = self._attention[stay]
            self._going_on = torch.arange(len(stay), device=stay.device)


def _left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Int[Tensor, "batch time"], Int[Tensor, "batch time"]]:
    """Ids, and 1 where they are."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id)
    attention = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention[row, width - len(prompt) :] = 1
    return ids.to(device), attention.to(device)


def _positions(attention: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """0, 1, 2, … over the real tokens, whatever stands to their left."""
    return (attention.cumsum(dim=1) - 1).clamp(min=0)


def _sample(
    logits: Float[Tensor, "batch vocab"],
    draws: Float[Tensor, " batch"] | None,
    truncation: Truncation | None,
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Tokens and their log-probabilities; `draws` in [0, 1), or None for the most likely tokens."""
    logprobs = torch.log_softmax(logits, dim=-1)
    if logprobs[:, 0].isnan().any():  # one NaN or +∞ makes the whole row NaN, and no token its own
        raise FloatingPointError("logits")
    if draws is None:
        token = logprobs.argmax(dim=-1)
    else:
        sampled_from = logprobs if truncation is None else truncate(logprobs, truncation)
        token = _inverse_cdf(sampled_from.exp(), draws)
    return token, logprobs.gather(1, token[:, None]).squeeze(1)


def _inverse_cdf(
    probabilities: Float[Tensor, "batch vocab"], draws: Float[Tensor, " batch"]
) -> Int[Tensor, " batch"]:
    """The first token whose cumulated probability exceeds the draw.

    Cumulated in integers, whose sum no order of addition rounds: the same on every device, and an item of
    probability 0 is never drawn. What is lost of each probability is less than 1.5e-14.
    """
    cumulated = (probabilities * WHOLE).long().cumsum(dim=1)
    drawn = (draws * cumulated[:, -1]).long()  # below the last: a draw below 1 rounds to no whole
    return torch.searchsorted(cumulated, drawn[:, None], right=True).squeeze(1)
