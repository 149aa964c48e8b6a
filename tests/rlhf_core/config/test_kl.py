"""What a leash may not be, and that the refusal says why."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from rlhf_core.config.kl import KLConfig

PI = {"kind": "pi"}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"penalty": "kl"}, "does not depend on its own token, so as a reward alone it holds nothing back"),
        ({"penalty": "exact_reward"}, "kl.penalty 'exact' brings the loss that it needs"),
        ({"penalty": "k2"}, "its gradient is not that of KL(policy || reference)"),
        ({"penalty": "abs"}, "its gradient is not that of KL(policy || reference)"),
        ({"penalty": "k3"}, "pushes rare tokens ever further away"),
        ({"penalty": "none", "loss": "k1"}, "the mean of its gradient is zero"),
        ({"penalty": "none", "loss": "plain_k3"}, "its gradient is that of KL(reference || policy)"),
        ({"penalty": "none", "loss": "kl"}, "kl.penalty 'exact' has this loss"),
        ({"penalty": "none", "loss": "exact"}, "kl.penalty 'exact' has this loss"),
        ({"penalty": "k1", "loss": "k2", "beta": 0.3}, "'k1' and loss 'k2' would charge beta (0.3) twice"),
        ({"loss": "k3"}, "penalty 'k1' and loss 'k3' would charge beta (0.05) twice"),  # k1 is the default
        ({"penalty": "exact", "loss": "k2"}, "would charge beta (0.05) twice"),
        ({"penalty": "none", "controller": PI}, "controller 'pi' moves beta towards a target, but"),
        ({"penalty": "none", "controller": {"kind": "adaptive"}}, "beta is charged nowhere"),
    ],
    ids=str,
)
def test_a_leash_that_does_not_hold_is_refused_with_the_reason(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(reason)):
        KLConfig.model_validate(given)


@pytest.mark.parametrize("given", [{"penalty": "k9"}, {"penalty": ["k1"]}, {"penalty": None}, {"loss": {}}])
def test_what_nobody_guesses_is_refused_too(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Input should be"):
        KLConfig.model_validate(given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        *({"penalty": penalty, "controller": PI} for penalty in ("k1", "hybrid", "exact")),
        *({"penalty": "none", "loss": loss, "controller": PI} for loss in ("k2", "k3", "ratio_k1")),
        {"penalty": "none"},  # no leash, watched all the same
    ],
    ids=str,
)
def test_what_holds_is_taken(given: dict[str, Any]) -> None:
    config = KLConfig.model_validate(given)
    assert KLConfig.model_validate_json(config.model_dump_json()) == config


def test_the_schema_says_what_each_of_them_optimises() -> None:
    fields = KLConfig.model_json_schema()["properties"]
    assert "objective: sequence_kl" in fields["penalty"]["description"]
    assert "objective: per_token_kl" in fields["loss"]["description"]
