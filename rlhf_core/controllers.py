"""Who sets β, the price of a nat of drift, from step to step.

Every controller is a frozen state; `update(kl, n)` returns the next one. `kl` is the mean exact KL of the
step's rollouts before the update, in nats per **sequence**; `n` is the number of sequences in the batch.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from rlhf_core.config.kl import AdaptiveBeta, FixedBeta, KLConfig, PIBeta, ScheduledBeta
from rlhf_core.errors import CheckpointError
from rlhf_core.schedules import between

State = dict[str, str | float | None]  # JSON-able


@dataclass(frozen=True, kw_only=True)
class FixedController:
    """β stays what it is."""

    kind: ClassVar[str] = "fixed"
    beta: float

    def update(self, kl: float, n: int) -> "FixedController":
        """The same state."""
        return self

    def state_dict(self) -> State:
        """What `controller_from_state` needs."""
        return _state(self)


@dataclass(frozen=True, kw_only=True)
class ScheduledController:
    """β as a function of the steps taken; the drift has no say."""

    kind: ClassVar[str] = "schedule"
    beta: float
    initial_beta: float
    final_beta: float
    shape: str
    steps: int
    done: int = 0

    def update(self, kl: float, n: int) -> "ScheduledController":
        """β_s = w(s/steps) · β_0 + (1 − w(s/steps)) · β_end; w(x) = 1 − x, or (1 + cos πx)/2."""
        done = self.done + 1
        beta = between(self.initial_beta, self.final_beta, shape=self.shape, done=done, over=self.steps)
        return replace(self, beta=beta, done=done)

    def state_dict(self) -> State:
        """What `controller_from_state` needs."""
        return _state(self)


@dataclass(frozen=True, kw_only=True)
class AdaptiveController:
    """Proportional control of β (Ziegler et al. 2019, §2.2)."""

    kind: ClassVar[str] = "adaptive"
    beta: float
    target_nats_per_sequence: float
    horizon: int

    def update(self, kl: float, n: int) -> "AdaptiveController":
        """β ← β (1 + clip(KL/target − 1, ±0.2) · n/horizon)."""
        if n > self.horizon:
            raise ValueError(f"{n} sequences per step exceed the controller's horizon of {self.horizon}")
        error = _clip(kl / self.target_nats_per_sequence - 1, -0.2, 0.2)
        return replace(self, beta=self.beta * (1 + error * n / self.horizon))

    def state_dict(self) -> State:
        """What `controller_from_state` needs."""
        return _state(self)


@dataclass(frozen=True, kw_only=True)
class PIController:
    """Proportional–integral control of ln β, in velocity form; β itself holds the integral."""

    kind: ClassVar[str] = "pi"
    beta: float
    target_nats_per_sequence: float
    proportional_gain: float
    integral_gain: float
    beta_min: float
    beta_max: float
    previous_error: float | None = None

    def update(self, kl: float, n: int) -> "PIController":
        """β ← clip(β · exp(Kp (x − x_prev) + Ki x), β_min, β_max), x = clip(ln(max(KL, 1e-6)/target), ±1)."""
        error = _clip(math.log(max(kl, 1e-6) / self.target_nats_per_sequence), -1.0, 1.0)
        previous = error if self.previous_error is None else self.previous_error
        change = self.proportional_gain * (error - previous) + self.integral_gain * error
        beta = _clip(self.beta * math.exp(change), self.beta_min, self.beta_max)
        return replace(self, beta=beta, previous_error=error)

    def state_dict(self) -> State:
        """What `controller_from_state` needs."""
        return _state(self)


Controller = FixedController | ScheduledController | AdaptiveController | PIController

_KINDS: dict[str, type[Controller]] = {
    kind.kind: kind for kind in (FixedController, ScheduledController, AdaptiveController, PIController)
}


def make_controller(config: KLConfig) -> Controller:
    """The controller's first state."""
    match config.controller:
        case FixedBeta():
            return FixedController(beta=config.beta)
        case ScheduledBeta() as schedule:
            options = schedule.model_dump(exclude={"kind"})
            return ScheduledController(beta=config.beta, initial_beta=config.beta, **options)
        case AdaptiveBeta(target_nats_per_sequence=target, horizon=horizon):
            return AdaptiveController(beta=config.beta, target_nats_per_sequence=target, horizon=horizon)
        case PIBeta() as pi:
            return PIController(beta=config.beta, **pi.model_dump(exclude={"kind"}))


def controller_from_state(state: dict[str, Any]) -> Controller:
    """The controller that `state_dict` described, which goes on as the saved one would have.

    Raises:
        CheckpointError: the state is not one of ours.
    """
    fields = dict(state)
    try:
        return _KINDS[fields.pop("kind")](**fields)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"no β controller has this state: {error}") from error


def _state(controller: Controller) -> State:
    return {"kind": controller.kind, **asdict(controller)}


def _clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)
