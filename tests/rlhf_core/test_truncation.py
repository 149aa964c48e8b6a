"""Truncated sampling: what it leaves, what it does to estimates of KL (oracle T4), and that metrics say so."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf_core.config.ppo import PPOConfig, RolloutConfig
from rlhf_core.experience import sample
from rlhf_core.kl import divergences, k1, k3
from rlhf_core.ppo import train
from rlhf_core.truncation import Truncation, truncate
from rlhf_core.update import fresh_state
from tests.rlhf_core.test_fixed_points import TabularPolicy
from tests.rlhf_core.test_fixed_points import config as tabular_config

P, Q = (torch.tensor(p, dtype=torch.float64) for p in ([0.5, 0.3, 0.2], [0.4, 0.4, 0.2]))


def left(probabilities: list[float], **options: Any) -> list[int]:
    logits = torch.tensor([probabilities], dtype=torch.float64).log()
    return truncate(logits, Truncation(**options))[0].isfinite().nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 99}, [0, 1, 2, 3]),
        ({"top_p": 0.01}, [1]),  # the most likely token always stays
        ({"top_p": 0.4}, [1]),  # .45 reach it
        ({"top_p": 0.5}, [1, 3]),
        ({"top_p": 0.9}, [0, 1, 3]),  # .45 + .3 + .2 = .95
        ({"top_p": 0.99}, [0, 1, 2, 3]),
        ({"min_p": 0.6}, [1, 3]),  # .6 · .45 = .27
        ({"min_p": 0.4}, [0, 1, 3]),  # .4 · .45 = .18
        ({"min_p": 0.99}, [1]),
        ({"top_k": 3, "top_p": 0.75}, [1, 3]),  # .45/.95 + .3/.95 = .789: what top_k left is normalised
        ({"top_k": 3, "top_p": 0.8}, [0, 1, 3]),
        ({"top_p": 0.9, "min_p": 0.6}, [1, 3]),
    ],
)
def test_what_is_left_of_four_tokens(options: dict[str, Any], expected: list[int]) -> None:
    assert left([0.2, 0.45, 0.05, 0.3], **options) == expected


def test_of_equal_tokens_the_first_stay() -> None:
    assert left([0.25] * 4, top_k=2) == [0, 1]


@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=8),
    st.builds(
        Truncation,
        top_k=st.none() | st.integers(1, 9),
        top_p=st.none() | st.floats(0.001, 0.999),
        min_p=st.none() | st.floats(0.001, 0.999),
    ),
)
def test_what_stays_keeps_its_logit_and_is_at_least_as_likely_as_what_goes(
    row: list[float], options: Truncation
) -> None:
    logits = torch.tensor([row], dtype=torch.float64)
    found = truncate(logits, options)
    stays = found.isfinite()
    assert torch.equal(found[stays], logits[stays])
    assert stays[0, logits[0].argmax()]
    assert logits[stays].min() >= logits[~stays].max() if (~stays).any() else True


def test_t4_no_estimate_of_kl_survives_truncation() -> None:
    """Top-2 of p = (.5, .3, .2) samples from p′ = (.625, .375, 0); KL(p‖q) = .02527."""
    truncated = truncate(P.log()[None], Truncation(top_k=2))[0].softmax(0)
    assert truncated.tolist() == pytest.approx([0.625, 0.375, 0], abs=1e-15)
    drawn = truncated > 0

    def mean(estimator: Any, logprob: Tensor) -> float:
        return float((truncated * estimator(logprob, Q.log()))[drawn].sum())

    # .625 ln(.5/.4) + .375 ln(.3/.4): p's own log-probabilities
    assert mean(k1, P.log()) == pytest.approx(0.03158394, abs=1e-8)
    # .625 ln(.625/.4) + .375 ln(.375/.4): those of p′ give KL(p′‖q), which k3 misses by 1 − q(supp p′) = .2
    assert mean(k1, truncated.log()) == pytest.approx(0.25472749, abs=1e-8)
    assert mean(k3, truncated.log()) == pytest.approx(0.05472749, abs=1e-8)


def test_the_k1_of_greedy_text_is_no_kl() -> None:
    """p = (.4, .35, .25) says its first token always, at which q = (.5, .3, .2): k1 = ln(.4/.5) < 0 < KL."""
    p, q = (torch.tensor(x, dtype=torch.float64).log() for x in ([0.4, 0.35, 0.25], [0.5, 0.3, 0.2]))
    assert k1(p, q)[0].item() == pytest.approx(-0.2231435513, abs=1e-10)
    # .4 ln(4/5) + .35 ln(7/6) + .25 ln(5/4)
    assert divergences(p, q).kl.item() == pytest.approx(0.0204812052, abs=1e-10)


def test_generation_samples_what_is_left_and_reports_the_full_softmax() -> None:
    policy = TabularPolicy([P.tolist()])
    config = RolloutConfig(max_new_tokens=1, top_k=2, allow_truncated_sampling=True)
    n = 4000
    rollout = sample(policy, ["."] * n, config, torch.Generator().manual_seed(0))
    ids = rollout.response_ids[:, 0]
    counts = ids.bincount(minlength=3)
    assert counts[2] == 0
    assert abs(int(counts[0]) / n - 0.625) < 4 * math.sqrt(0.625 * 0.375 / n)
    torch.testing.assert_close(rollout.sampled_logprob[:, 0], P.log()[ids], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "rollout",
    [{}, {"top_p": 0.6}, {"min_p": 0.5}, {"top_k": 2}],
    ids=lambda rollout: "".join(rollout) or "full",
)
def test_a_truncated_run_says_so(rollout: dict[str, Any]) -> None:
    """p = (.5, .3, .2): each of the three leaves the first two tokens."""
    options = tabular_config({}, beta=0.5, tokens=1, steps=1, batch=64).model_dump()
    options["rollout"] |= rollout | {"allow_truncated_sampling": True}
    config = PPOConfig.model_validate(options)
    policy = TabularPolicy([P.tolist()])
    (step,) = train(
        policy,
        fresh_state(policy, config),
        config,
        prompts=["."],
        eval_prompts=[],
        reward=lambda _, completions, __: [float(text) for text in completions],
    )
    assert step.metrics["rollout/truncated"] == bool(rollout)
    said = {sampled.completion for sampled in step.samples}
    assert said == ({"0", "1"} if rollout else {"0", "1", "2"})
