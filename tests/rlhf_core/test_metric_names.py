"""Every metric of a real run is described, every alias names one of them, and the docs show both tables."""

from pathlib import Path

import pytest

from rlhf_core.config.ppo import PPOConfig
from rlhf_core.metric_names import ALIASES, MEANINGS, UNITS
from rlhf_core.policies import new_policy
from rlhf_core.ppo import train
from rlhf_core.rewards import make_reward
from rlhf_core.update import fresh_state

PROMPTS = ("The cat", "A lovely", "The quick brown", "Naïve")
DOCS = Path(__file__).parents[2] / "docs" / "algorithms.md"


@pytest.fixture(scope="module")
def reported(tiny_model: Path) -> set[str]:
    options = PPOConfig.model_validate(
        {
            "model": {"name": "tiny", "lora": {"rank": 2}},
            "data": {"prompts": PROMPTS, "eval_prompts": PROMPTS[:2]},
            "reward": {"kind": "length", "target_tokens": 4},
            "rollout": {"batch_size": 4, "max_new_tokens": 6},
            "kl": {"beta": 0.1, "controller": {"kind": "pi"}},
            "optimization": {"steps": 2, "learning_rate": 0.01, "minibatches": 2},
            "scores": {"missing_eos_penalty": 0.1, "whiten": True, "clip": 0.5},
            "evaluation": {"every_steps": 1, "gold_reward": {"kind": "keyword", "keywords": ["the"]}},
        }
    )
    policy = new_policy(str(tiny_model), options.model, seed=0)
    steps = train(
        policy,
        fresh_state(policy, options),
        options,
        prompts=PROMPTS,
        eval_prompts=PROMPTS[:2],
        reward=make_reward(options.reward),
        gold=make_reward(options.evaluation.gold_reward),
    )
    return {name for step in steps for name in step.metrics}


def test_units_are_those_of_described_metrics() -> None:
    assert set(UNITS) <= set(MEANINGS)
    per_sequence = {name for name, meaning in MEANINGS.items() if "nats per sequence" in meaning}
    assert per_sequence <= {name for name, unit in UNITS.items() if unit == "nats/sequence"}


def test_every_metric_of_a_run_is_described(reported: set[str]) -> None:
    assert reported - set(MEANINGS) == set()


def test_every_alias_names_a_metric_that_a_run_reports(reported: set[str]) -> None:
    assert {alias.metric for names in ALIASES.values() for alias in names.values()} - reported == set()


def test_the_docs_show_each_metric_with_what_others_call_it() -> None:
    """Fails with the rows that are missing, ready to be put into the table."""
    rows = [
        " | ".join(
            [f"| `{name}`", meaning, *(of(trainer, name) for trainer in ("TRL", "verl", "OpenRLHF"))]
        ).rstrip()
        + " |"
        for name, meaning in MEANINGS.items()
    ]
    shown = DOCS.read_text(encoding="utf-8").splitlines()
    assert [row for row in rows if row not in shown] == []


def of(trainer: str, metric: str) -> str:
    """What the trainer calls it, and in brackets what that is instead."""
    return ", ".join(
        f"`{name}`" + (f" ({alias.theirs})" if alias.theirs else "")
        for name, alias in ALIASES[trainer].items()
        if alias.metric == metric
    )
