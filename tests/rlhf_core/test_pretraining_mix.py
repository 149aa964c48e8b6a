"""The pretraining mix: the gradient of language modelling, whole or in parts, on texts that a run repeats."""

import copy
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_core import causal_lm, packing, update
from rlhf_core.causal_lm import CausalLM
from rlhf_core.checkpoint import read_checkpoint, write_checkpoint
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.errors import EmptyInput, InputTooLong, NonFiniteLoss
from rlhf_core.metric_names import MEANINGS
from rlhf_core.policies import Policy, new_policy
from rlhf_core.ppo import StepResult, train
from rlhf_core.pretraining_mix import texts_of, tokenize_texts
from rlhf_core.rewards import make_reward
from rlhf_core.update import TrainState, add_ptx_gradient, fresh_state
from tests.rlhf_core.test_checkpoint import digest

pytestmark = pytest.mark.usefixtures("no_shape_checks")
PROMPTS = ("The cat", "A lovely", "The quick brown", "Naïve")
TEXTS = (
    "The cat sat on the mat.",
    "A lovely morning by the sea; the coffee was good and the bread was warm.",
    "The quick brown fox",
    "東京 is big",
    "the lazy dog",
)
VOCAB, COEFFICIENT = 40, 0.7
IDS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3], [5, 8, 9, 7, 9], [3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3], [8, 3, 2]]


def config(*, coefficient: float = COEFFICIENT, max_tokens: int = 12, **optimization: Any) -> PPOConfig:
    mix: dict[str, Any] = {"ptx_texts": TEXTS, "ptx_max_tokens": max_tokens} if coefficient else {}
    return PPOConfig.model_validate(
        {
            "model": {"name": "tiny", "lora": {"rank": 2}},
            "data": {"prompts": PROMPTS, **mix},
            "reward": {"kind": "length", "target_tokens": 4},
            "rollout": {"batch_size": 4, "max_new_tokens": 6, "temperature": 0.5},
            "kl": {"beta": 0.1},
            "loss": {"ptx_coefficient": coefficient},
            "optimization": {"steps": 3, "learning_rate": 0.01, "ptx_batch_size": 3, **optimization},
        }
    )


class InFloat64:
    """A tiny Llama, all of whose weights are trained."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        sizes = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        self.model = LlamaForCausalLM(
            LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.3, max_position_embeddings=64)
        )
        self.model = self.model.eval().double()
        self.split = causal_lm.split(self.model)
        self.hidden_size = 16
        self.codec: Any = None

    @contextmanager
    def policy(self) -> Iterator[CausalLM]:
        yield self.split

    @contextmanager
    def reference(self) -> Iterator[CausalLM]:
        raise AssertionError("the pretraining mix has no reference")

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())


@pytest.mark.parametrize("micro_batch", [None, 2, 1])
def test_t14_the_gradient_is_that_of_the_definition_in_any_micro_batches(
    monkeypatch: pytest.MonkeyPatch, micro_batch: int | None
) -> None:
    """−0.7 · (1/24) Σ log softmax(logits)[token], one text at a time with all logits kept for autograd.

    24 tokens = 7 + 1 + 4 + 10 + 2; a mean per text or per micro-batch is another number.
    """
    policy = InFloat64()
    naive = copy.deepcopy(policy.model)
    total = torch.zeros((), dtype=torch.float64)
    for ids in IDS:
        logp = naive(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        total = total + logp[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].sum()
    (-COEFFICIENT * total / 24).backward()
    expected = torch.cat([p.grad.flatten() for p in naive.parameters()])

    shapes: list[tuple[int, ...]] = []
    real = packing.pack
    monkeypatch.setattr(
        "rlhf_core.experience.pack",
        lambda *a, **kw: (p := real(*a, **kw), shapes.append(tuple(p.ids.shape)))[0],
    )
    options = config()
    report = add_ptx_gradient(policy, fresh_state(policy, options), IDS, options, micro_batch=micro_batch)
    found = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
    assert float((found - expected).norm() / expected.norm()) <= 1e-9
    assert report["ptx/nats_per_token"] == pytest.approx(-total.item() / 24, rel=1e-12)
    assert report["loss/ptx"] == pytest.approx(COEFFICIENT * report["ptx/nats_per_token"], rel=1e-12)
    # Packed: all 24 tokens in one row; in pairs 7 + 1, 4 + 10 and 2; alone as they are.
    rows = {None: [(1, 24)], 2: [(1, 8), (1, 14), (1, 2)], 1: [(1, n) for n in (7, 1, 4, 10, 2)]}
    assert shapes == rows[micro_batch]


def begin(tiny_model: Path, options: PPOConfig) -> tuple[Policy, TrainState]:
    policy = new_policy(str(tiny_model), options.model, seed=0)
    return policy, fresh_state(policy, options)


def steps(policy: Policy, state: TrainState, options: PPOConfig, **more: Any) -> Iterator[StepResult]:
    more = {"ptx_texts": options.data.ptx_texts or ()} | more
    reward = make_reward(options.reward)
    return train(policy, state, options, prompts=PROMPTS, eval_prompts=[], reward=reward, **more)


def test_t14_micro_batches_change_no_gradient_of_a_step(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, PPO's terms and the mix together; without the mix the gradient is another."""
    gradients: list[Tensor] = []
    real = update.clip_gradients

    def recorded(policy: Any, state: Any, max_norm: float) -> float:
        gradients.append(torch.cat([p.grad.flatten() for p in policy.trainable_parameters().values()]))
        return real(policy, state, max_norm)

    monkeypatch.setattr(update, "clip_gradients", recorded)
    for coefficient, micro_batch in ((COEFFICIENT, None), (COEFFICIENT, 2), (0.0, None)):
        options = config(coefficient=coefficient, steps=1, epochs=1, minibatches=1)
        next(steps(*begin(tiny_model, options), options, micro_batch=micro_batch))
    whole, parts, without = gradients
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
    assert (whole - without).norm() > 0.1 * whole.norm()


def test_texts_come_in_passes_over_minibatches_epochs_and_steps(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 steps of 2 epochs of 2 minibatches of 3 texts are 24 draws of 5 texts: four passes and 4 of the next."""
    seen: list[list[int]] = []
    real = update.text_logprobs
    monkeypatch.setattr(
        update, "text_logprobs", lambda model, texts: seen.extend(texts) or real(model, texts)
    )
    options = config(steps=2)
    policy, state = begin(tiny_model, options)
    metrics = [step.metrics for step in steps(policy, state, options)]
    ids = tokenize_texts(policy, TEXTS, options)
    assert [len(text) for text in ids] == [min(len(policy.codec.encode(text)), 12) for text in TEXTS]
    assert len(seen) == 24
    passes = [seen[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(texts) == sorted(ids) for texts in passes)
    assert len({str(texts) for texts in passes}) > 1
    assert seen[12:15] == texts_of(0, ids, options, steps_done=1)
    assert metrics[1]["ptx/nats_per_token"] < metrics[0]["ptx/nats_per_token"]  # they are learnt
    assert {"loss/ptx", "ptx/nats_per_token"} <= metrics[0].keys() <= MEANINGS.keys()


def test_t26_resume_draws_the_same_texts(tiny_model: Path, tmp_path: Path) -> None:
    options = config(steps=2)
    policy, state = begin(tiny_model, options)
    lines = []
    for step in steps(policy, state, options):
        lines.append(step.metrics)
        if step.step == 1:
            (tmp_path / "saved").mkdir()
            write_checkpoint(tmp_path / "saved", policy, state)
    expected = digest(policy, state, tmp_path / "undisturbed")

    policy, state = read_checkpoint(tmp_path / "saved", options, source=str(tiny_model))
    resumed = [step.metrics for step in steps(policy, state, options)]
    assert json.dumps(resumed) == json.dumps(lines[1:])
    assert digest(policy, state, tmp_path / "resumed") == expected


def test_the_critics_warmup_leaves_the_texts_alone(tiny_model: Path) -> None:
    options = config(value_only_steps=1)
    policy, state = begin(tiny_model, options)
    before = {name: p.detach().clone() for name, p in policy.trainable_parameters().items()}
    run = steps(policy, state, options)
    assert "loss/ptx" not in next(run).metrics
    assert all(torch.equal(p, before[name]) for name, p in policy.trainable_parameters().items())
    assert "loss/ptx" in next(run).metrics


def test_no_optimizer_step_follows_a_loss_that_is_not_finite(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = config()
    policy, state = begin(tiny_model, options)
    before = [p.detach().clone() for p in policy.trainable_parameters().values()]
    real = update.text_logprobs
    monkeypatch.setattr(update, "text_logprobs", lambda *args: real(*args) * math.nan)
    with pytest.raises(NonFiniteLoss, match="step 1: loss/ptx is NaN"):
        next(steps(policy, state, options))
    assert all(
        torch.equal(p, old) for p, old in zip(policy.trainable_parameters().values(), before, strict=True)
    )


@pytest.mark.parametrize(
    ("texts", "max_tokens", "error", "message"),
    [
        (["the cat", ""], 12, EmptyInput, "ptx text 1 has 0 of the 2 tokens it needs"),
        (["the cat", "the cat", "a"], 12, EmptyInput, "ptx text 2 has 1 of the 2 tokens"),
        (["the cat " * 90], 97, InputTooLong, "ptx text 0: 97 tokens .* context of 96; lower .* \\(97\\)"),
        ([], 12, EmptyInput, "needs texts, and there is none"),
    ],
    ids=["empty", "one-token", "too-long", "none"],
)
def test_a_text_that_cannot_be_used_is_named_before_the_first_step(
    tiny_model: Path, texts: list[str], max_tokens: int, error: type[Exception], message: str
) -> None:
    options = config(max_tokens=max_tokens)
    policy, state = begin(tiny_model, options)
    with pytest.raises(error, match=message):
        next(steps(policy, state, options, ptx_texts=texts))
