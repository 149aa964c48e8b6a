"""The update in micro-batches, and NaN or infinity caught before the optimizer is stepped."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_core import objective, ppo, update
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.errors import NonFiniteLoss
from rlhf_core.experience import Experience
from rlhf_core.policies import LoraPolicy, new_policy
from rlhf_core.rewards import make_reward
from rlhf_core.update import TrainState, fresh_state, in_micro_batches, token_means

PROMPTS = ["The cat", "A lovely", "The quick brown", "Naïve", "東京", "The dog"]


K2 = {"penalty": "none", "loss": "k2"}


def config(kl: dict[str, str] = K2, **optimization: Any) -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "model": {"name": "tiny", "lora": {"rank": 2}},
            "data": {"prompts": PROMPTS},
            "reward": {"kind": "length", "target_tokens": 4},
            "rollout": {"batch_size": 6, "max_new_tokens": 8},
            "kl": {"beta": 0.1, **kl},
            "loss": {"dual_clip": 3.0, "entropy_coefficient": 0.01},
            "optimization": {"steps": 2, "learning_rate": 0.01, "minibatches": 2, **optimization},
        }
    )


def begin(tiny_model: Path, options: PPOConfig) -> tuple[LoraPolicy, TrainState]:
    """Every eighth token ends a completion: with its own stop token alone, the model talks to the limit."""
    policy = new_policy(str(tiny_model), options.model, seed=0)
    policy.codec = replace(policy.codec, eos_ids=frozenset(range(0, len(policy.tokenizer), 8)))
    return policy, fresh_state(policy, options)


def drift(policy: LoraPolicy) -> None:
    """Away from the reference, so that the KL terms are not 0."""
    torch.manual_seed(0)
    for name, parameter in policy.trainable_parameters().items():
        if "lora_B" in name:
            parameter.data.normal_().mul_(0.1)


def steps(policy: LoraPolicy, state: TrainState, options: PPOConfig, **more: Any) -> Any:
    more = {"reward": make_reward(options.reward)} | more
    return ppo.train(policy, state, options, prompts=PROMPTS, eval_prompts=[], **more)


def moved(policy: LoraPolicy, state: TrainState) -> Tensor:
    parameters = [*policy.trainable_parameters().values(), *state.value_head.parameters()]
    return torch.cat([p.detach().flatten() for p in parameters])


def test_reported_means_are_over_tokens_and_those_of_gradients_over_minibatches() -> None:
    reports = [{"loss": 1.0, "grad/norm": 2.0}, {"loss": 4.0, "grad/norm": 4.0}]
    # (1 token · 1 + 3 tokens · 4) / 4; a third minibatch that an early stop spared counts nothing.
    assert token_means(reports, [1, 3, 5]) == {"loss": 13 / 4, "grad/norm": 3.0}


@pytest.mark.parametrize(
    ("micro_batch", "kl"),
    [
        (1, K2),
        (2, K2),
        (2, {"penalty": "hybrid"}),
        (1, {"penalty": "exact"}),
        (2, {"penalty": "exact"}),
        (2, {"penalty": "none", "loss": "k3"}),
        (2, {"penalty": "none", "loss": "ratio_k1"}),
    ],
    ids=str,
)
def test_t14_micro_batches_change_no_gradient(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: int, kl: dict[str, str]
) -> None:
    """The gradient of every optimizer step is that of the whole minibatch, up to the order of summation.

    Sequences have 1 to 8 tokens: a mean per micro-batch instead of the global count would be far off. Each
    tensor's error is held against its norm: terms cancel in single elements, whose sign may be all rounding.
    """
    gradients: list[list[Tensor]] = []
    real = update.clip_gradients

    def recorded(policy: Any, state: Any, max_norm: float) -> float:
        named = [*policy.trainable_parameters().values(), *state.value_head.parameters()]
        gradients.append([p.grad.clone() for p in named])
        return real(policy, state, max_norm)

    monkeypatch.setattr(update, "clip_gradients", recorded)
    reports = []
    for size in (None, micro_batch):
        options = config(kl, epochs=1, minibatches=1, steps=1)
        policy, state = begin(tiny_model, options)
        drift(policy)
        (step,) = steps(policy, state, options, micro_batch=size)
        assert len({sample.data["length"] for sample in step.samples}) > 2
        reports.append(step.metrics)
    for whole, parts in zip(*gradients, strict=True):
        assert whole.norm() > 1e-3
        assert (parts - whole).norm() <= 1e-4 * whole.norm()
    assert reports[1]["policy/ratio_max"] == 1.0  # assessed in the same packing: exactly
    torch.testing.assert_close(reports[1], reports[0], rtol=1e-3, atol=1e-5)


def test_rows_keep_their_order_in_micro_batches() -> None:
    found = in_micro_batches([torch.tensor([4, 1, 3]), torch.tensor([0, 2])], 2)
    assert [part.tolist() for part in found] == [[4, 1], [3], [0, 2]]


def poison(values: Tensor, number: float) -> Tensor:
    return torch.where(torch.arange(values.numel()).reshape(values.shape) == 0, number, values)


def in_experience(name: str, number: float) -> Callable[[pytest.MonkeyPatch], None]:
    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        real = ppo.assess

        def assess(*args: Any, **more: Any) -> Experience:
            experience = real(*args, **more)
            return experience._replace(**{name: poison(getattr(experience, name), number)})

        monkeypatch.setattr(ppo, "assess", assess)

    return apply


def in_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_core import rollout

    real = rollout._sample
    monkeypatch.setattr(rollout, "_sample", lambda logits, *rest: real(poison(logits, math.nan), *rest))


def in_loss(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        real = getattr(objective, name)
        monkeypatch.setattr(
            objective, name, lambda *a, **kw: real(*a, **kw)._replace(loss=torch.tensor(math.inf))
        )

    return apply


def in_gradient(of: Callable[[Any, TrainState], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        real = update.clip_gradients

        def clip_gradients(policy: Any, state: TrainState, max_norm: float) -> float:
            parameter = of(policy, state)
            parameter.grad = poison(parameter.grad, math.inf)
            return real(policy, state, max_norm)

        monkeypatch.setattr(update, "clip_gradients", clip_gradients)

    return apply


@pytest.mark.parametrize(
    ("fault", "tensor", "value"),
    [
        (in_logits, "logprob of the rollout", "NaN"),
        (in_experience("logprob", -math.inf), "logprob", "infinite"),
        (in_experience("k1", math.nan), "k1", "NaN"),
        (in_experience("value", math.nan), "value", "NaN"),
        (in_loss("policy_loss"), "loss/policy", "infinite"),
        (in_loss("value_loss"), "value/loss", "infinite"),
        (
            in_gradient(lambda policy, _: list(policy.trainable_parameters().values())[3]),
            "the gradient of base_model",
            "infinite",
        ),
        (in_gradient(lambda _, state: state.value_head.bias), "the gradient of value_head.bias", "infinite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_optimizer_step_follows_what_is_not_finite(
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
    tensor: str,
    value: str,
) -> None:
    options = config()
    policy, state = begin(tiny_model, options)
    run = steps(policy, state, options)
    next(run)
    before = moved(policy, state)
    fault(monkeypatch)
    with pytest.raises(NonFiniteLoss) as caught:
        next(run)
    assert caught.value.tensor.startswith(tensor)
    assert (caught.value.step, caught.value.value) == (2, value)
    assert torch.equal(moved(policy, state), before)
    assert str(copy.copy(caught.value)) == str(caught.value)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_caught_in_its_step(tiny_model: Path, score: float) -> None:
    options = config()
    policy, state = begin(tiny_model, options)
    before = moved(policy, state)
    with pytest.raises(NonFiniteLoss, match="step 1: reward is"):
        next(steps(policy, state, options, reward=lambda *args: [score] + [0.0] * (len(args[1]) - 1)))
    assert torch.equal(moved(policy, state), before)
    assert state.step == 0
