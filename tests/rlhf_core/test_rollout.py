"""Sampling: masks by lengths (oracle T20), padding changes nothing (T7), greedy text as transformers writes it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf_core.causal_lm import CausalLM
from rlhf_core.config.ppo import LoraConfig
from rlhf_core.errors import InputTooLong
from rlhf_core.experience import response_hidden
from rlhf_core.policies import LoraPolicy, new_lora_policy
from rlhf_core.rollout import generate, response_ids

EOS = 0


class ScriptedTrunk(nn.Module):
    """Says what it was told to, whatever it reads: hidden states are one-hot rows of the next token."""

    def __init__(self, script: list[list[int]]) -> None:
        super().__init__()
        self.script, self.turn = script, 0

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        tokens = torch.tensor([row[min(self.turn, len(row) - 1)] for row in self.script])
        self.turn += 1
        hidden = 1e4 * nn.functional.one_hot(tokens, 5).float()[:, None].expand(-1, input_ids.shape[1], -1)
        return SimpleNamespace(last_hidden_state=hidden, past_key_values=None)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([[1, EOS]], [[1, EOS]]),  # the stop token counts, nothing after it does
        ([[EOS]], [[EOS]]),  # it comes first: a response of one token
        ([[1, 2, 3, 4]], [[1, 2, 3]]),  # none: cut at the maximum length
        ([[1, 2, EOS]], [[1, 2, EOS]]),  # exactly at the maximum length
        ([[EOS], [1, 2, 3]], [[EOS], [1, 2, 3]]),  # one ends, the other goes on
    ],
)
def test_t20_a_response_is_what_was_said_up_to_the_stop_token(
    script: list[list[int]], expected: list[list[int]]
) -> None:
    head = nn.Linear(5, 5, bias=False)
    head.weight.data.copy_(torch.eye(5))
    rollout = generate(
        CausalLM(ScriptedTrunk(script), head, vocab_size=5, context=99),
        [[3]] * len(script),
        max_new_tokens=3,
        temperature=1.0,
        eos_ids={EOS},
        pad_id=EOS,  # padding with the stop token must not matter: masks come from lengths
        generator=torch.Generator().manual_seed(0),
    )
    assert response_ids(rollout) == expected
    assert rollout.ended.tolist() == [row[-1] == EOS for row in expected]
    assert rollout.response_mask.sum(dim=1).tolist() == [len(row) for row in expected]


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> LoraPolicy:
    return new_lora_policy(str(tiny_model), LoraConfig(rank=2), seed=0)


def sampled(policy: LoraPolicy, prompts: list[str], seed: int | None) -> Any:
    with policy.policy() as model:
        return generate(
            model,
            [policy.codec.encode(prompt) for prompt in prompts],
            max_new_tokens=12,
            temperature=0.7,
            eos_ids=policy.codec.eos_ids,
            pad_id=policy.codec.pad_id,
            generator=None if seed is None else torch.Generator().manual_seed(seed),
        )


def test_greedy_text_is_transformers_greedy_text(policy: LoraPolicy, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    prompts = ["The cat", "A lovely morning by the", "東京"]
    ours = response_ids(sampled(policy, prompts, None))
    for prompt, ids in zip(prompts, ours, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        theirs = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert ids == theirs[0, inputs["input_ids"].shape[1] :].tolist()


def test_the_cached_path_and_one_forward_agree_on_log_probabilities(policy: LoraPolicy) -> None:
    """Left padding, the KV cache and the temperature change nothing: |Δ log p| within float32 rounding."""
    rollout = sampled(policy, ["The cat", "A lovely morning by the sea; the coffee"], 3)
    with torch.no_grad(), policy.policy() as model:
        logits = model.logits(response_hidden(model, rollout)) / 0.7
    forward = logits.log_softmax(-1).gather(1, rollout.response_ids[rollout.response_mask][:, None])[:, 0]
    assert torch.allclose(forward, rollout.sampled_logprob[rollout.response_mask], atol=2e-5)


def test_a_prompt_that_leaves_no_room_is_refused(policy: LoraPolicy) -> None:
    with pytest.raises(InputTooLong, match="context of 96"):
        sampled(policy, ["The cat sat on the mat. " * 20], 0)
