"""Sampling completions from the policy: a KV-cache loop over one batch, full softmax at one temperature."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_core.causal_lm import CausalLM
from rlhf_core.errors import InputTooLong
from rlhf_core.truncation import Truncation, truncate


class Rollout(NamedTuple):
    """Prompts (left-padded) and sampled responses (right-padded) as one batch.

    Column `prompt_width + t` of `input_ids` is response token t; the logits one column before predict it.
    """

    input_ids: Int[Tensor, "batch time"]
    attention_mask: Int[Tensor, "batch time"]
    position_ids: Int[Tensor, "batch time"]
    response_mask: Bool[Tensor, "batch response"]  # True up to and including the stop token
    sampled_logprob: Float[Tensor, "batch response"]  # of the generation path, at the sampling temperature
    ended: Bool[Tensor, " batch"]  # by a stop token, not by length
    prompt_width: int

    @property
    def response_ids(self) -> Int[Tensor, "batch response"]:
        """The sampled tokens; padding behind the stop token."""
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
    """The sampled tokens of each sequence, up to and including its stop token."""
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
) -> Rollout:
    """Sample one completion per prompt; without a generator, take the most likely token instead.

    The log-probabilities are those of the full softmax, whatever `truncation` leaves to be sampled.

    Raises:
        InputTooLong: a prompt and `max_new_tokens` together exceed the model's context.
        FloatingPointError: the logits hold NaN or +∞.
    """
    width = max(len(prompt) for prompt in prompts)
    if width + max_new_tokens > model.context:
        raise InputTooLong(
            f"a prompt of {width} tokens and {max_new_tokens} new ones exceed the context of {model.context}"
        )
    device = model.device
    tokens = torch.full((len(prompts), width), pad_id, device=device)
    attention = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
        attention[row, width - len(prompt) :] = 1
    stops = torch.tensor(sorted(eos_ids), dtype=torch.long, device=device)

    new_tokens, logprobs, masks = [], [], []
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    step_ids, position_ids, cache = tokens, _positions(attention), None
    for _ in range(max_new_tokens):
        output = model.trunk(
            input_ids=step_ids,
            attention_mask=attention,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        logits = model.logits(output.last_hidden_state[:, -1]) / temperature
        token, logprob = _sample(logits, generator, truncation)
        masks.append(alive)
        new_tokens.append(torch.where(alive, token, pad_id))
        logprobs.append(torch.where(alive, logprob, 0.0))
        attention = torch.cat([attention, alive[:, None].to(attention.dtype)], dim=1)
        position_ids = position_ids[:, -1:] + 1
        alive = alive & ~torch.isin(token, stops)
        if not alive.any():
            break
        step_ids = new_tokens[-1][:, None]

    return Rollout(
        input_ids=torch.cat([tokens, torch.stack(new_tokens, dim=1)], dim=1),
        attention_mask=attention,
        position_ids=_positions(attention),
        response_mask=torch.stack(masks, dim=1),
        sampled_logprob=torch.stack(logprobs, dim=1),
        ended=~alive,
        prompt_width=width,
    )


def _positions(attention: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """0, 1, 2, … over the real tokens, whatever stands to their left."""
    return (attention.cumsum(dim=1) - 1).clamp(min=0)


def _sample(
    logits: Float[Tensor, "batch vocab"], generator: torch.Generator | None, truncation: Truncation | None
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    logprobs = torch.log_softmax(logits, dim=-1)
    if logprobs[:, 0].isnan().any():  # one NaN or +∞ makes the whole row NaN; a kernel that samples it aborts
        raise FloatingPointError("logits")
    if generator is None:
        token = logprobs.argmax(dim=-1)
    else:
        sampled_from = logprobs if truncation is None else truncate(logprobs, truncation)
        token = torch.multinomial(sampled_from.exp(), 1, generator=generator).squeeze(1)
    return token, logprobs.gather(1, token[:, None]).squeeze(1)
