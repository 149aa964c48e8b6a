"""Signal and noise of gradients: by arithmetic, in the mean over many draws, and as a real step reports it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf_core import gradient_noise
from rlhf_core.gradient_noise import signal_to_noise, watched_gradients


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_by_arithmetic() -> None:
    # ḡ = (2, 1), |ḡ|² = 5; deviations ±(1, −1): s² = 4 / 1. Signal 5 − 4/2 = 3.
    assert signal_to_noise([vector(3, 0), vector(1, 2)]) == pytest.approx(3 / 4)
    # No mean at all: 0 − 2/2 = −1 over s² = 2.
    assert signal_to_noise([vector(1, 0), vector(-1, 0)]) == pytest.approx(-1 / 2)
    assert signal_to_noise([vector(1, 0)]) is None
    assert signal_to_noise([vector(1, 0)] * 3) is None


def test_numerator_and_denominator_are_unbiased() -> None:
    """g = G + noise with |G|² = 4 and tr Σ = 3 · 2² = 12: mean numerator 4, mean denominator 12; 20,000 draws."""
    random = torch.Generator().manual_seed(0)
    draws = vector(2, 0, 0) + 2 * torch.randn(20_000, 4, 3, generator=random, dtype=torch.float64)
    noise = draws.var(dim=1).sum(dim=1)
    ratios = torch.tensor([signal_to_noise(list(draw)) for draw in draws[:2000]])
    signal = ratios * noise[:2000]
    assert float(noise.mean()) == pytest.approx(12, rel=0.01)
    assert float(signal.mean()) == pytest.approx(4, abs=4 * float(signal.std()) / 2000**0.5)


def test_the_first_steps_are_watched_on_evenly_spread_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_noise, "COORDINATES", 3)
    weights, frozen = nn.Parameter(vector(0, 0, 0, 0, 0)), nn.Parameter(vector(0))
    optimizer = torch.optim.SGD([weights, frozen], lr=0.1)
    with watched_gradients(optimizer, [weights, frozen], first=2) as seen:
        for scale in (1, 2, 3):
            weights.grad = scale * vector(1, 2, 3, 4, 5)
            optimizer.step()
    optimizer.step()  # nobody looks any more
    assert [gradient.tolist() for gradient in seen] == [[1, 3, 5], [2, 6, 10]]  # 6 coordinates, every second
    assert weights.tolist() == pytest.approx([-0.9, -1.8, -2.7, -3.6, -4.5])  # 0.1 · (1 + 2 + 3 + 3) · g


def test_a_step_reports_that_of_its_first_epoch(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_core import ppo, update
    from tests.rlhf_core.test_update import begin, config, steps

    gradients: list[Tensor] = []
    real = update.clip_gradients

    def recorded(policy: Any, state: Any, max_norm: float) -> float:
        norm = real(policy, state, max_norm)
        gradients.append(
            torch.cat([p.grad.flatten() for p in policy.trainable_parameters().values()]).double()
        )
        return norm

    monkeypatch.setattr(update, "clip_gradients", recorded)
    options = config(steps=1, epochs=2, minibatches=3)
    (step,) = steps(*begin(tiny_model, options), options)
    assert len(gradients) == 6
    assert len(gradients[0]) < gradient_noise.COORDINATES  # so all of them are looked at
    assert step.metrics["grad/snr"] == ppo.signal_to_noise(gradients[:3])
