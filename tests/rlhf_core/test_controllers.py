import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.config.kl import AdaptiveBeta, FixedBeta, KLConfig, PIBeta, ScheduledBeta
from rlhf_core.controllers import (
    AdaptiveController,
    Controller,
    FixedController,
    PIController,
    ScheduledController,
    controller_from_state,
    make_controller,
)
from rlhf_core.errors import CheckpointError

KLS = (12.0, 12.0, 7.0, 5.0, 1.0)
# Ziegler, target 6, n = 512, horizon 10⁴: clip(12/6 − 1) = .2, so β·(1 + .2·.0512) = .15·1.01024 = .151536, …
ADAPTIVE = (0.151536, 0.15308772864, 0.154394077257728, 0.1530765811317954, 0.15150907694100582)
# PI, Kp .2, Ki .1: x = ln 2, .693…, ln(7/6), ln(5/6), −1 (clipped); first β = .1·exp(.1·ln 2) = .1·2^.1, …
PI = (0.10717734625, 0.11486983550, 0.10473311892, 0.09614801115, 0.07387342076)
# From .1 to .5 over 4 steps: .1 + .4·(1/4, 2/4, 3/4, 1), then it stays
LINEAR = (0.2, 0.3, 0.4, 0.5, 0.5)
# .5 − .4·(1 + cos πx)/2 = .3 − .2 cos πx at x = 1/4, 2/4, 3/4, 1: cos = √½, 0, −√½, −1
COSINE = (0.3 - 0.2 * 0.5**0.5, 0.3, 0.3 + 0.2 * 0.5**0.5, 0.5, 0.5)

FIXED_CONFIG = KLConfig(beta=0.15, controller=FixedBeta())
ADAPTIVE_CONFIG = KLConfig(beta=0.15, controller=AdaptiveBeta(target_nats_per_sequence=6.0, horizon=10_000))
PI_CONFIG = KLConfig(beta=0.1, controller=PIBeta(target_nats_per_sequence=6.0))
LINEAR_CONFIG, COSINE_CONFIG = (
    KLConfig(beta=0.1, controller=ScheduledBeta(shape=shape, final_beta=0.5, steps=4))
    for shape in ("linear", "cosine")
)


def path(controller: Controller, kls: tuple[float, ...]) -> list[float]:
    betas = []
    for kl in kls:
        controller = controller.update(kl, 512)
        betas.append(controller.beta)
    return betas


@pytest.mark.parametrize(
    ("kl", "beta"), [(0.0, 0.148464), (6.0, 0.15), (7.0, 0.15128), (7.2, 0.151536), (1e9, 0.151536)]
)
def test_adaptive_step(kl, beta):
    assert path(make_controller(ADAPTIVE_CONFIG), (kl,)) == pytest.approx([beta], abs=1e-12)


@pytest.mark.parametrize(
    ("config", "betas", "tolerance"),
    [
        (FIXED_CONFIG, (0.15,) * 5, 0.0),
        (LINEAR_CONFIG, LINEAR, 1e-15),
        (COSINE_CONFIG, COSINE, 1e-15),
        (ADAPTIVE_CONFIG, ADAPTIVE, 1e-12),
        (PI_CONFIG, PI, 5e-12),
    ],
    ids=["fixed", "linear", "cosine", "adaptive", "pi"],
)
@pytest.mark.parametrize("saved_after", range(5))
def test_path_and_the_same_tail_after_save_and_load(config, betas, tolerance, saved_after):
    undisturbed = path(make_controller(config), KLS)
    assert undisturbed == pytest.approx(betas, abs=tolerance)

    controller = make_controller(config)
    for kl in KLS[:saved_after]:
        controller = controller.update(kl, 512)
    restored = controller_from_state(json.loads(json.dumps(controller.state_dict())))
    assert restored == controller
    assert path(restored, KLS[saved_after:]) == undisturbed[saved_after:]


def test_kinds():
    configs = (FIXED_CONFIG, LINEAR_CONFIG, ADAPTIVE_CONFIG, PI_CONFIG)
    kinds = [type(make_controller(config)) for config in configs]
    assert kinds == [FixedController, ScheduledController, AdaptiveController, PIController]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_pi_stays_within_its_bounds(kls):
    config = KLConfig(beta=0.1, controller=PIBeta(beta_min=0.05, beta_max=0.2))
    assert all(0.05 <= beta <= 0.2 for beta in path(make_controller(config), tuple(kls)))


@pytest.mark.parametrize("config", [ADAPTIVE_CONFIG, PI_CONFIG], ids=["adaptive", "pi"])
def test_nan_is_not_swallowed(config):
    assert math.isnan(make_controller(config).update(math.nan, 512).beta)


def test_more_sequences_than_the_horizon_are_refused():
    with pytest.raises(ValueError, match="10001 sequences"):
        make_controller(ADAPTIVE_CONFIG).update(6.0, 10_001)


@pytest.mark.parametrize("state", [{}, {"kind": "bang-bang", "beta": 1.0}, {"kind": "fixed", "gamma": 1.0}])
def test_foreign_state_is_refused(state):
    with pytest.raises(CheckpointError):
        controller_from_state(state)
