import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.advantages import gae, token_rewards

NAN = math.nan
ALL3 = torch.ones(1, 3, dtype=torch.bool)


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_the_score_lands_on_the_last_real_token():
    # −β k = −.1·(.1, −.2, .3) = (−.01, .02, −.03); 2 − .03 = 1.97. The second row ends after two tokens.
    rewards = token_rewards(
        torch.tensor([2.0, 5.0], dtype=torch.float64),
        0.1 * rows([0.1, -0.2, 0.3], [0.1, -0.2, NAN]),
        torch.tensor([[True, True, True], [True, True, False]]),
    )
    close(rewards, rows([-0.01, 0.02, 1.97], [-0.01, 5.02, 0]))
    close(rewards[0].sum(), torch.tensor(1.98, dtype=torch.float64))  # the seed's score − β Σk = 2 − .1·.2


def test_a_gap_does_not_attract_the_score():
    mask = torch.tensor([[True, False, True, False]])
    rewards = token_rewards(rows([1])[0], rows([0, 9, 0, 9]), mask)
    assert rewards.tolist() == [[0, 0, 1, 0]]


def test_a_response_without_a_token_is_refused():
    with pytest.raises(ValueError, match="real token"):
        token_rewards(torch.tensor([1.0]), torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("gamma", "lam", "advantages"),
    [
        # r = (−.01, .02, 1.97), V = (.5, .6, .7): δ = r + γV' − V.
        (1.0, 1.0, [1.48, 1.39, 1.27]),  # 1.97 − .7; 1.99 − .6; 1.98 − .5
        (1.0, 0.95, [1.350175, 1.3265, 1.27]),  # δ₂ = .02 + .7 − .6 = .12; .12 + .95·1.27 = 1.3265
        (1.0, 0.0, [0.09, 0.12, 1.27]),  # δ itself
        (
            0.99,
            0.95,
            [1.3136426175, 1.307435, 1.27],
        ),  # .02 + .693 − .6 + .9405·1.27 = 1.307435; .084 + .9405·…
    ],
)
def test_gae(gamma, lam, advantages):
    values = rows([0.5, 0.6, 0.7])
    estimate = gae(rows([-0.01, 0.02, 1.97]), values, ALL3, gamma=gamma, lam=lam)
    close(estimate.advantages, rows(advantages))
    close(estimate.returns, rows(advantages) + values)


def test_published_cases():
    all4 = torch.ones(1, 4, dtype=torch.bool)
    end = rows([0, 0, 0, 1])
    # torchtune: A = (…, δ₃ = .9·1 = .9, δ₄ = 1 − 1 = 0), then ·.855; returns A + V.
    close(gae(end, end, all4, gamma=0.9, lam=0.95).returns, rows([0.6579225, 0.7695, 0.9, 1]))
    # λ = 0: (0 + 2 − 1, 0 + 3 − 2, 5 − 3)
    close(gae(rows([0, 0, 5]), rows([1, 2, 3]), ALL3, gamma=1.0, lam=0.0).advantages, rows([1, 1, 2]))


@settings(max_examples=50)
@given(
    st.lists(st.tuples(*[st.floats(-5, 5)] * 2), min_size=1, max_size=12),
    st.floats(0.5, 1),
)
def test_at_lambda_1_the_advantage_is_the_discounted_reward_to_go_minus_the_value(steps, gamma):
    r, v = rows(*map(list, zip(*steps, strict=True)))
    mask = torch.ones(1, len(steps), dtype=torch.bool)
    advantages = gae(r[None], v[None], mask, gamma=gamma, lam=1.0).advantages[0]
    for t in range(len(steps)):
        to_go = sum(gamma ** (s - t) * r[s].item() for s in range(t, len(steps)))
        assert advantages[t].item() == pytest.approx(to_go - v[t].item(), abs=1e-12)


@pytest.mark.parametrize("garbage", [NAN, math.inf, -1e10])
@pytest.mark.parametrize("gap", [[0], [1], [3], [1, 1, 2], [0, 3]])
def test_masked_tokens_anywhere_change_nothing_bit_for_bit(garbage, gap):
    r, v = [-0.01, 0.02, 1.97], [0.5, 0.6, 0.7]
    plain = gae(rows(r), rows(v), ALL3, gamma=0.99, lam=0.95)
    mask = [True] * 3
    for position in sorted(gap, reverse=True):
        for column, value in ((r, garbage), (v, garbage), (mask, False)):
            column.insert(position, value)
    real = torch.tensor([mask])
    estimate = gae(rows(r), rows(v), real, gamma=0.99, lam=0.95)
    assert torch.equal(estimate.advantages[real], plain.advantages[0])
    assert torch.equal(estimate.returns[real], plain.returns[0])
    assert estimate.advantages[~real].count_nonzero() == 0
    assert estimate.returns[~real].count_nonzero() == 0
