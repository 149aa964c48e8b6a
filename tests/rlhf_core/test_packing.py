"""Rollouts without padding: every number is that of the sequence alone (T7), whatever padding there was (T22)."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig

from rlhf_core import packing, ppo, update
from rlhf_core.causal_lm import CausalLM, split
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.experience import response_hidden
from rlhf_core.kl import divergences
from rlhf_core.logprobs import token_logprobs
from rlhf_core.packing import pack
from rlhf_core.policies import new_policy
from rlhf_core.rewards import make_reward
from rlhf_core.rollout import Rollout

RAGGED = [(3, 4), (9, 1), (1, 1), (2, 8), (5, 2), (1, 7)]  # tokens of prompt and response
ALIKE = [(3, 4), (2, 5), (6, 1)]
SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "llama": LlamaConfig(**SIZES, intermediate_size=64, initializer_range=0.3),
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3),
    "bloom": BloomConfig(**SIZES, initializer_range=0.3),  # ALiBi counts columns: it cannot be packed
}


def model_of(name: str) -> CausalLM:
    torch.manual_seed(0)
    return split(AutoModelForCausalLM.from_config(MODELS[name]).eval().requires_grad_(False))


def rollout_of(lengths: list[tuple[int, int]]) -> Rollout:
    prompts, responses = torch.tensor(lengths)[:, :, None].unbind(1)
    width = int(prompts.max())
    at = torch.arange(width + int(responses.max())) - width
    attention = ((at >= -prompts) & (at < responses)).long()
    mask = attention[:, width:].bool()
    ids = torch.randint(97, attention.shape, generator=torch.Generator().manual_seed(3))  # pads as well
    return Rollout(ids, attention, mask, torch.zeros(mask.shape), mask[:, -1], width)


def padded(rollout: Rollout) -> Rollout:
    """With three more columns of padding on the left and five on the right."""

    def pad(values: Any, left: int = 0, number: int = 0) -> Any:
        return torch.nn.functional.pad(values, (left, 5), value=number)

    return rollout._replace(
        input_ids=pad(rollout.input_ids, 3, 7),
        attention_mask=pad(rollout.attention_mask, 3),
        response_mask=pad(rollout.response_mask),
        sampled_logprob=pad(rollout.sampled_logprob),
        prompt_width=rollout.prompt_width + 3,
    )


@pytest.mark.parametrize("lengths", [RAGGED, ALIKE], ids=["ragged", "alike"])
@pytest.mark.parametrize("name", MODELS)
def test_a_sequence_among_others_is_as_if_alone(name: str, lengths: list[tuple[int, int]]) -> None:
    model, rollout = model_of(name), rollout_of(lengths)
    assert model.packs is (name != "bloom")
    expected = []
    for ids, real, (prompt, _) in zip(rollout.input_ids, rollout.attention_mask.bool(), lengths, strict=True):
        states = model.trunk(input_ids=ids[real][None], use_cache=False).last_hidden_state[0]
        expected.append(states[prompt - 1 : -1])  # the state before each response token
    found = response_hidden(model, rollout)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=2e-5)
    rows = len(pack(rollout, packs=model.packs).ids)
    assert rows == (1 if model.packs and lengths == RAGGED else len(lengths))
    assert torch.equal(response_hidden(model, padded(rollout)), found)  # T22, to the bit


BIGRAM = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], dtype=torch.float64).log()


class OneHot(torch.nn.Module):
    """A trunk that says which token stands at a position."""

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=torch.nn.functional.one_hot(input_ids, 3).double())


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize(("left", "right", "others"), [(0, 0, 0), (3, 0, 0), (0, 4, 0), (3, 4, 0), (3, 4, 4)])
def test_t7_the_state_before_a_token_scores_it(left: int, right: int, others: int, packs: bool) -> None:
    """0 1 | 2 0 1 in a bigram model: P(2|1) = .25, P(0|2) = .2, P(1|0) = .6. A place later Σk1 is −.9038682119."""
    ids = torch.tensor([[2] * left + [0, 1, 2, 0, 1] + [1] * right] * (1 + others))
    attention = torch.tensor([[0] * left + [1] * 5 + [0] * right] * (1 + others))
    mask = torch.tensor([[True] * 3 + [False] * right] * (1 + others))
    rollout = Rollout(ids, attention, mask, torch.zeros(mask.shape), mask[:, 0], prompt_width=left + 2)
    head = torch.nn.Linear(3, 3, bias=False, dtype=torch.float64)
    head.weight.data.copy_(BIGRAM.T)
    model = CausalLM(OneHot(), head, vocab_size=3, context=16, packs=packs)
    logits = model.logits(response_hidden(model, rollout)).detach()
    logprobs = token_logprobs(logits, rollout.response_ids[mask]).view(-1, 3)
    expected = torch.tensor([0.25, 0.2, 0.6], dtype=torch.float64).log().expand_as(logprobs)
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-14)
    # Σk1 against uniform is ln(.25 · .2 · .6 · 27) = ln .81: negative, as a sampled KL may be. The exact is not.
    assert float((logprobs[0] + math.log(3)).sum()) == pytest.approx(-0.2107210313, abs=5e-11)
    exact = divergences(logits[:3], torch.zeros_like(logits[:3])).kl
    steps = torch.tensor([0.0588915178, 0.1483417494, 0.2006665638], dtype=torch.float64)
    torch.testing.assert_close(exact, steps, rtol=0, atol=5e-11)


def test_rows_are_filled_up_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """6, 9, 1, 9, 6, 7 tokens are run: in 19 a row 9 + 9 + 1 and 7 + 6 + 6, without any padding.

    In 13 a row 9 + 1, 9, 7 + 6 and 6: four rows, no fewer tokens than one sequence in each of six rows of 9.
    """
    monkeypatch.setattr(packing, "PACKED_TOKENS", 19)
    packed = pack(rollout_of(RAGGED), packs=True)
    assert packed.ids.shape == (2, 19)
    starts = (packed.told_apart["position_ids"] == 0).nonzero().tolist()
    assert starts == [[0, 0], [0, 9], [0, 18], [1, 0], [1, 7], [1, 13]]
    monkeypatch.setattr(packing, "PACKED_TOKENS", 13)
    assert pack(rollout_of(RAGGED), packs=True).ids.shape == (6, 9)


PROMPTS = [
    "The cat",
    "A lovely morning by the sea",
    "The quick brown fox jumps over",
    "Naïve",
    "東京",
    "The dog",
]


def one_step(tiny_model: Path, **optimization: Any) -> Any:
    options = PPOConfig.model_validate(
        {
            "model": {"name": "tiny", "lora": {"rank": 2}},
            "data": {"prompts": PROMPTS},
            "reward": {"kind": "length", "target_tokens": 4},
            "rollout": {"batch_size": 12, "max_new_tokens": 8},
            "kl": {"beta": 0.1},
            "optimization": {"steps": 1, "learning_rate": 0.01, "epochs": 1, **optimization},
        }
    )
    policy = new_policy(str(tiny_model), options.model, seed=0)
    state = update.fresh_state(policy, options)
    reward = make_reward(options.reward)
    (step,) = ppo.train(policy, state, options, prompts=PROMPTS, eval_prompts=[], reward=reward)
    return step


def test_t22_columns_of_padding_change_no_metric(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trunk sees the same rows; what is left is the order in which wider tensors are summed."""
    metrics = [one_step(tiny_model, minibatches=2).metrics]
    real = ppo.roll_out
    monkeypatch.setattr(ppo, "roll_out", lambda *args, **more: padded(real(*args, **more)))
    metrics.append(one_step(tiny_model, minibatches=2).metrics)
    torch.testing.assert_close(*metrics, rtol=1e-5, atol=1e-6)


def test_t21_packed_minibatches_of_several_shapes_are_on_policy(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[Any] = []
    shapes: list[Any] = []
    real_update, real_pack = update.update_minibatch, packing.pack

    def recorded(*args: Any, **more: Any) -> Any:
        reports.append(real_update(*args, **more))
        return reports[-1]

    def packed(*args: Any, **more: Any) -> Any:
        result = real_pack(*args, **more)
        shapes.append(tuple(result.ids.shape))
        return result

    monkeypatch.setattr(update, "update_minibatch", recorded)
    monkeypatch.setattr("rlhf_core.experience.pack", packed)
    one_step(tiny_model, minibatches=3)
    assert len(reports) == 3
    assert (reports[0]["policy/ratio_max"], reports[0]["policy/approx_kl"]) == (1.0, 0.0)
    assert reports[0]["policy/clip_fraction"] == 0.0
    # Both models assess each minibatch, the update runs it once: always in the same shape.
    assert shapes[0:6:2] == shapes[1:6:2] == shapes[6:]
    assert len(set(shapes)) > 1
    assert {rows for rows, _ in shapes} == {1}
