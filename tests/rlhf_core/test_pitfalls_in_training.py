"""Pitfalls that only whole steps of training show; the numbers are those of the list in test_pitfalls.py."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlhf_core import ppo
from rlhf_core.rollout import Rollout
from tests.rlhf_core import tiny_policies
from tests.rlhf_core.test_fixed_points import OPTIMUM, REFERENCE, SCORES, TabularPolicy, run, total_variation
from tests.rlhf_core.test_fixed_points import config as tabular_config
from tests.rlhf_core.test_packing import padded
from tests.rlhf_core.test_update import begin, config, drift, steps


@pytest.mark.parametrize("kl", [{"penalty": "k1"}, {"penalty": "exact"}], ids=str)
def test_01_the_leash_at_a_temperature_holds_for_both_models(kl: dict[str, str]) -> None:
    """1: at T = .5 the loop starts at KL 0 and lands on ref_T · e^{score/β}, not on ref · e^{score/β}.

    ref_T ∝ ref² = (.16, .16, .04), times (e², 1, e): (.81479, .11027, .07494), .0645 from the optimum at T = 1.
    """
    plain = tabular_config(kl, beta=0.5, tokens=1, steps=20, batch=256)
    options = plain.model_copy(update={"rollout": plain.rollout.model_copy(update={"temperature": 0.5})})
    policy = TabularPolicy([REFERENCE])
    reference = (policy._policy.head.weight.detach()[:, 0] / 0.5).softmax(0)
    first, *_ = run(policy, options, lambda ids: SCORES[ids[0]])
    assert first.metrics["kl/sequence"] == first.metrics["kl/k1_sequence"] == 0.0
    assert first.metrics["policy/generation_mismatch"] < 1e-12
    assert first.metrics["policy/entropy"] == pytest.approx(-float(reference @ reference.log()), abs=1e-12)

    landed = (policy._policy.head.weight.detach()[:, 0] / 0.5).softmax(0)
    optimum = torch.tensor([0.81479, 0.11027, 0.07494], dtype=torch.float64)
    assert total_variation(landed, optimum) < 0.03 < total_variation(optimum, OPTIMUM) / 2


def test_01_the_first_ratio_at_a_temperature_is_one(tiny_model: Path) -> None:
    """1: on a real model, to the bit; and generation is at the same temperature up to float32's rounding."""
    plain = config({"penalty": "k1"}, epochs=1, minibatches=1, steps=1)
    options = plain.model_copy(update={"rollout": plain.rollout.model_copy(update={"temperature": 0.7})})
    policy, state = begin(tiny_model, options)
    (step,) = steps(policy, state, options)
    assert step.metrics["policy/ratio_max"] == 1.0
    assert step.metrics["policy/approx_kl"] == step.metrics["kl/sequence"] == 0.0
    assert step.metrics["policy/generation_mismatch"] < 1e-4


def test_07_bfloat16_rounds_neither_logits_nor_small_steps(tmp_path: Path) -> None:
    """7: the head multiplies in float32, and a step far below a weight's spacing in bfloat16 moves it."""
    folder = tiny_policies.build(tmp_path)["gpt2"]
    options = tiny_policies.config(folder, steps=1, lora=None, dtype="bfloat16")
    rates = {"learning_rate": 1e-6, "epochs": 1}
    options = options.model_copy(update={"optimization": options.optimization.model_copy(update=rates)})
    policy, state = tiny_policies.begin(options)
    before = {name: p.detach().clone() for name, p in policy.trainable_parameters().items()}
    with policy.policy() as model, torch.no_grad():
        hidden = 8 * model.trunk(input_ids=tiny_policies.IDS, use_cache=False).last_hidden_state[0]
        logits = model.logits(hidden)
        exact = hidden.double() @ model.head.weight.double().T
    assert exact.abs().max() > 16  # where bfloat16's numbers are .125 apart
    torch.testing.assert_close(logits.double(), exact, rtol=1e-6, atol=1e-5)

    list(tiny_policies.steps(policy, state, options))
    for name, weight in policy.trainable_parameters().items():
        if name.endswith("mlp.c_fc.weight"):
            assert (weight != before[name]).double().mean() > 0.9
            assert (weight.bfloat16() != before[name].bfloat16()).double().mean() < 0.01


def soiled(rollout: Rollout) -> Rollout:
    """Other ids and NaN where nothing was said."""
    pads = rollout.attention_mask == 0
    assert pads[:, : rollout.prompt_width].any()
    assert pads[:, rollout.prompt_width :].any()
    return rollout._replace(
        input_ids=torch.where(pads, 5, rollout.input_ids),
        sampled_logprob=torch.where(rollout.response_mask, rollout.sampled_logprob, math.nan),
    )


@pytest.mark.parametrize("kl", [{"penalty": "k1"}, {"penalty": "exact"}], ids=str)
def test_13_pads_change_no_metric_and_no_weight_of_a_step(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, kl: dict[str, str]
) -> None:
    """13: what stands in them not a bit (T19), more columns of them the rounding of wider sums at most (T22)."""
    metrics, weights = [], []
    real = ppo.roll_out
    for pads in (lambda rollout: rollout, soiled, padded):
        monkeypatch.setattr(ppo, "roll_out", lambda *a, pads=pads, **more: pads(real(*a, **more)))
        options = config(kl, steps=1)
        policy, state = begin(tiny_model, options)
        drift(policy)
        (step,) = steps(policy, state, options)
        metrics.append(step.metrics)
        weights.append(torch.cat([p.detach().flatten() for p in policy.trainable_parameters().values()]))
    assert metrics[1] == metrics[0]
    assert torch.equal(weights[1], weights[0])
    assert metrics[2] == pytest.approx(metrics[0], rel=1e-5, abs=1e-6)
    assert metrics[0]["kl/sequence"] > 0


def test_15_reported_means_are_over_the_tokens_of_uneven_minibatches(tiny_model: Path) -> None:
    """15: as long as nothing moves, six minibatches of 1 to 8 tokens report what one of all tokens does."""
    found, still = [], {"learning_rate": 1e-12, "value_learning_rate": 1e-12}
    for minibatches in (1, 6):
        options = config(epochs=1, minibatches=minibatches, steps=1, **still)
        policy, state = begin(tiny_model, options)
        drift(policy)
        (step,) = steps(policy, state, options)
        lengths = [sample.data["length"] for sample in step.samples]
        assert len(set(lengths)) > 2
        found.append(step.metrics)
    for name in ("loss/entropy", "loss/kl", "value/loss"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-5)
    assert found[0]["policy/entropy"] == pytest.approx(-100 * found[0]["loss/entropy"], rel=1e-5)


def test_19_adams_epsilon_is_added_to_the_root_after_the_bias_correction(tiny_model: Path) -> None:
    """19: Δ = −lr m̂/(√v̂ + ε), ε = 1e-8, β = (.9, .999), no weight decay: torch's form, and the paper's.

    The first step has m̂ = g and v̂ = g². With g = ε it is lr/2; ε beside the uncorrected root, as in TensorFlow,
    makes it lr/(1 + 1/√.001) = .03 lr, and ε below the root lr · 1e-4.
    """
    options = config(learning_rate=0.01)
    policy, state = begin(tiny_model, options)
    rates = options.optimization.learning_rate, options.optimization.value_learning_rate
    zeros = [
        next(p for n, p in policy.trainable_parameters().items() if "lora_B" in n),
        state.value_head.weight,
    ]

    def step(gradient: float) -> list[Tensor]:
        for weight in zeros:
            weight.grad = torch.full_like(weight, gradient)
        before = [weight.detach().clone() for weight in zeros]
        state.optimizer.step()
        return [weight.detach() - old for weight, old in zip(zeros, before, strict=True)]

    for moved, rate in zip(step(1e-8), rates, strict=True):
        torch.testing.assert_close(moved, torch.full_like(moved, -rate / 2), rtol=1e-5, atol=0)
    # m̂ = (.9 · .1 + .1 · 3) ε / (1 − .9²) = .39 ε/.19, v̂ = (.999 · .001 + .001 · 9) ε² / (1 − .999²)
    size = (0.39 / 0.19) / (math.sqrt(0.009999 / 0.001999) + 1)
    for moved, rate in zip(step(3e-8), rates, strict=True):
        torch.testing.assert_close(moved, torch.full_like(moved, -rate * size), rtol=1e-5, atol=0)
