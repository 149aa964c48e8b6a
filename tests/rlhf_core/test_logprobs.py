import math

import pytest
import torch

from rlhf_core.kl import divergences, k1
from rlhf_core.logprobs import entropy, predictors, token_logprobs

BIGRAM = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], dtype=torch.float64).log()
IDS = [0, 1, 2, 0, 1]
START = 2  # two tokens of prompt


def close(actual: torch.Tensor, expected: list[float], tolerance: float) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, [-0.40760596, -1.40760596, -2.40760596]),  # 2 − ln(e² + e + 1) = 2 − 2.40760596
        (0.7, [-0.2601184, -1.68868983, -3.11726126]),
        (0.5, [-0.14293163, -2.14293163, -4.14293163]),
    ],
)
def test_temperature_divides_the_logits(temperature, expected):
    logits = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64).expand(3, 3)
    logprobs = token_logprobs(logits, torch.arange(3), temperature=temperature)
    close(logprobs, expected, 5e-9)
    p = logprobs.exp()
    assert entropy(logits[0], temperature=temperature).item() == pytest.approx(
        -(p @ logprobs).item(), abs=1e-14
    )


def test_temperature_divides_the_logits_of_both_models():
    for temperature, kl in ((1.0, 0.1196297954), (0.7, 0.2190020876), (2.0, 0.0309906128)):
        policy, reference = (torch.tensor(x, dtype=torch.float64) for x in ([2.0, 1, 0], [1.0, 1, 0]))
        found = divergences(policy, reference, temperature=temperature).kl
        assert found.item() == pytest.approx(kl, abs=5e-11)


def test_a_logit_of_minus_infinity_is_a_probability_of_zero_also_for_gradients():
    logits = torch.tensor([0.0, 0.0, -math.inf], dtype=torch.float64, requires_grad=True)
    h = entropy(logits)
    assert h.item() == pytest.approx(math.log(2), abs=1e-15)
    h.backward()
    assert logits.grad is not None
    close(logits.grad, [0, 0, 0], 1e-15)  # the entropy of two equal items is at its maximum
    assert token_logprobs(logits, torch.tensor(2)).item() == -math.inf


@pytest.mark.parametrize(("left", "right", "rows"), [(0, 0, 1), (3, 0, 1), (0, 4, 1), (3, 4, 1), (3, 4, 5)])
def test_the_logits_before_a_token_score_it_whatever_the_padding(left, right, rows):
    """T7: a bigram model, whose logits at a position depend on the token there alone."""
    ids = torch.randint(3, (rows, left + len(IDS) + right), generator=torch.Generator().manual_seed(0))
    ids[0] = torch.tensor([2] * left + IDS + [1] * right)
    logits = BIGRAM[ids]
    response = slice(0, len(IDS) - START)
    before = predictors(logits, start=left + START)[0, response]
    targets = ids[0, left + START :][response]
    reference = torch.zeros(3, dtype=torch.float64).expand_as(before)

    # P(2|1) = .25, P(0|2) = .2, P(1|0) = .6
    logprobs = token_logprobs(before, targets)
    close(logprobs, [math.log(0.25), math.log(0.2), math.log(0.6)], 1e-14)
    d = k1(logprobs, token_logprobs(reference, targets))
    # ln(.25 · .2 · .6 · 27) = ln .81: negative, as a sampled KL may be.
    assert d.sum().item() == pytest.approx(math.log(0.81), abs=1e-14)
    assert d.sum().item() == pytest.approx(-0.2107210313, abs=5e-11)
    close(divergences(before, reference).kl, [0.0588915178, 0.1483417494, 0.2006665638], 5e-11)


def test_the_off_by_one_trap_would_be_seen():
    ids = torch.tensor([IDS])
    late = token_logprobs(BIGRAM[ids][:, START:], ids[:, START:])  # logits at t for token t
    # P(2|2) = .6, P(0|0) = .1, P(1|1) = .25: ln(.015 · 27)
    assert (late + math.log(3)).sum().item() == pytest.approx(-0.9038682119, abs=5e-11)


def test_nothing_predicts_token_0():
    with pytest.raises(ValueError, match="at least 1"):
        predictors(torch.zeros(1, 3), start=0)
