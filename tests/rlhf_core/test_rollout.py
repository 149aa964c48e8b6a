"""Sampling: masks by lengths (oracle T20), padding changes nothing (T7), greedy text as transformers writes it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf_core.causal_lm import CausalLM
from rlhf_core.config.ppo import LoraConfig, ModelConfig
from rlhf_core.errors import InputTooLong
from rlhf_core.experience import response_hidden
from rlhf_core.policies import LoraPolicy, new_policy
from rlhf_core.rollout import LEAVE_AT, _inverse_cdf, generate, response_ids

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
    return new_policy(str(tiny_model), ModelConfig(name="tiny", lora=LoraConfig(rank=2)), seed=0)


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


@pytest.fixture
def shapes(policy: LoraPolicy) -> Iterator[list[int]]:
    """Rows of every call of the trunk."""
    seen: list[int] = []
    with policy.policy() as model:
        hook = model.trunk.register_forward_hook(
            lambda _, __, output: seen.append(len(output.last_hidden_state))
        )
    yield seen
    hook.remove()


def test_who_has_left_the_batch_changes_no_token(policy: LoraPolicy, shapes: list[int]) -> None:
    """Against the same model, said to have a cache whose rows cannot be picked: all are computed to the end."""
    with policy.policy() as model:
        rollouts = [
            generate(
                replace(model, caches=caches),
                [list(range(5, 8 + row % 4)) for row in range(12)],
                max_new_tokens=20,
                temperature=1.0,
                eos_ids=range(60),
                pad_id=0,
                generator=torch.Generator().manual_seed(5),
            )
            for caches in (True, False)
        ]
    ours, all_rows = rollouts
    steps = ours.response_mask.shape[1]
    left, stayed = shapes[:steps], shapes[steps:]
    assert stayed == [12] * steps
    unfinished = ours.response_mask.sum(dim=0).tolist()
    assert len(set(unfinished)) > 4  # they end at several places
    assert all(LEAVE_AT * rows < n <= rows for n, rows in zip(unfinished, left, strict=True))
    assert torch.equal(ours.input_ids, all_rows.input_ids)
    assert torch.equal(ours.response_mask, all_rows.response_mask)
    assert torch.equal(ours.ended, all_rows.ended)
    torch.testing.assert_close(ours.sampled_logprob, all_rows.sampled_logprob, rtol=0, atol=2e-5)
    first = next(step for step, rows in enumerate(left) if rows < 12)
    assert torch.equal(ours.sampled_logprob[:, :first], all_rows.sampled_logprob[:, :first])


def test_the_head_runs_for_unfinished_rows_alone(policy: LoraPolicy) -> None:
    rows: list[int] = []
    with policy.policy() as model:
        hook = model.head.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
        rollout = generate(
            replace(model, caches=False),
            [[5, 6]] * 9,
            max_new_tokens=8,
            temperature=1.0,
            eos_ids=range(60),
            pad_id=0,
            generator=torch.Generator().manual_seed(1),
        )
        hook.remove()
    assert rows == rollout.response_mask.sum(dim=0).tolist()
    assert rows[-1] < rows[0] == 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_draw_falls_on_each_token_as_often_as_it_is_probable(dtype: torch.dtype) -> None:
    """800 draws at the middles of 800 equal parts of [0, 1): counts are 800 p. Impossible ones are never drawn."""
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.125, 0.375, 0.0], dtype=dtype)
    draws = (torch.arange(800, dtype=torch.float64) + 0.5) / 800
    tokens = _inverse_cdf(probabilities.expand(800, -1), draws)
    assert tokens.bincount(minlength=6).tolist() == [0, 400, 0, 100, 300, 0]
    edges = torch.tensor([0.0, 0.5, 0.625, 1 - 2.0**-53], dtype=torch.float64)
    assert _inverse_cdf(probabilities.expand(4, -1), edges).tolist() == [1, 3, 4, 4]
    # Normalised in float32 a distribution may add up to less than 1: the last token takes no more than its share.
    short = torch.tensor([0.25, 0.25], dtype=dtype).expand(800, -1)
    assert _inverse_cdf(short, draws).bincount().tolist() == [400, 400]
