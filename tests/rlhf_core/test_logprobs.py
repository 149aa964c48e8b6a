import math

import pytest
import torch

from rlhf_core.kl import divergences
from rlhf_core.logprobs import entropy, token_logprobs


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
