"""The run's configuration: small sections, refusals that say why, and no choice that training does not know."""

import ast
import json
import math
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import BaseModel, ValidationError

import rlhf_core.config.base
from jobs.outbound import Outbound
from rlhf_core.classifier import Classifiers
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.policies import new_policy
from rlhf_core.ppo import train
from rlhf_core.rewards import Endpoints, make_reward
from rlhf_core.update import fresh_state
from tests.contracts.webhook_receiver import Receiver
from tests.rlhf_core.config_branches import Branch, Values, branches_of, sections_of, with_values
from tests.tiny_classifiers import save_decoder, save_encoder
from worker.reward_endpoints import RewardEndpoints

PROMPTS = ("The cat", "A lovely", "The quick brown")
SMALLEST: dict[str, Any] = {
    "model": {"name": "tiny", "lora": {"rank": 2}},
    "data": {"prompts": PROMPTS},
    "reward": {"kind": "length", "target_tokens": 4},
    "rollout": {"batch_size": 4, "max_new_tokens": 4},
    "optimization": {"steps": 2, "minibatches": 2, "epochs": 1},
}

PARTS = [{"name": "short", "weight": 1.0, "reward": {"kind": "length", "target_tokens": 4}}]


def judged_by(path: str) -> dict[str, Values]:
    """Companions of a reward's branches, wherever it stands."""
    return {
        f"{path}=length": {f"{path}.target_tokens": 4},
        f"{path}=keyword": {f"{path}.keywords": ["the"]},
        f"{path}=regex": {f"{path}.pattern": "a"},
        f"{path}=classifier": {f"{path}.model": "one output"},
        f"{path}.label=str": {f"{path}.label": "good", f"{path}.model": "three labels"},
        f"{path}.label=int": {f"{path}.label": 2, f"{path}.model": "three labels"},
        f"{path}=http": {f"{path}.url": "http://endpoint.test/"},
        f"{path}=weighted": {f"{path}.parts": PARTS},
    }


# What a branch needs beside itself to be a valid job.
COMPANIONS: dict[str, Values] = {
    **judged_by("reward"),
    **judged_by("evaluation.gold_reward"),
    "scores.clip=float": {"scores.clip": 0.5},
    "kl.loss=k2": {"kl.penalty": "none"},
    "kl.loss=k3": {"kl.penalty": "none"},
    "kl.loss=ratio_k1": {"kl.penalty": "none"},
    "kl.controller=schedule": {"kl.controller.final_beta": 0.2, "kl.controller.steps": 2},
    "kl.limit=KLLimit": {"kl.limit.max_nats_per_sequence": 100.0},
    "kl.weights=KLWeights": {
        "kl.weights.tokens": [{"token": "eos", "weight": 0.0}, {"token": 5, "weight": 0.5}],
        "kl.weights.positions": [{"start": 0, "end": 1, "weight": 2.0}],
    },
    "rollout.top_k=int": {"rollout.top_k": 20, "rollout.allow_truncated_sampling": True},
    "rollout.top_p=float": {"rollout.top_p": 0.9, "rollout.allow_truncated_sampling": True},
    "rollout.min_p=float": {"rollout.min_p": 0.1, "rollout.allow_truncated_sampling": True},
    "loss.dual_clip=float": {"loss.dual_clip": 3.0},
    "loss.value_clip_range=float": {"loss.value_clip_range": 0.2},
    "optimization.target_kl=float": {"optimization.target_kl": 0.1},
    "evaluation.every_steps=int": {"evaluation.every_steps": 1},
    "evaluation.best_of_n=int": {"evaluation.best_of_n": 3, "data.eval_prompts": PROMPTS[:1]},
}
ELSEWHERE = {  # no part of a step
    "data.": "the worker reads prompts and texts before training: tests/worker; test_pretraining_mix",
}
BRANCHES = [b for b in branches_of(PPOConfig) if not b.name.startswith(tuple(ELSEWHERE))]


def config_of(branch: Branch) -> PPOConfig:
    values: Values = dict(branch.values)
    for name in (branch.name, *branch.enclosing):
        values |= {
            path: value for path, value in COMPANIONS.get(name, {}).items() if values.get(path, ...) is ...
        }
    unknown = [path for path, value in values.items() if value is ...]
    assert not unknown, f"{branch.name} needs a value: add it to COMPANIONS"
    return PPOConfig.model_validate(with_values(SMALLEST, values))


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Classifiers:
    folder = tmp_path_factory.mktemp("classifiers")
    paths = {
        "one output": save_decoder(folder / "decoder"),
        "three labels": save_encoder(folder / "encoder"),
    }
    return Classifiers({name: str(path) for name, path in paths.items()})


@pytest.fixture(scope="module")
def endpoints() -> Iterator[Endpoints]:
    """Asks a real server instead of the one that COMPANIONS names: how many characters have the completions?"""
    with Receiver() as receiver:
        receiver.body = lambda body: json.dumps(
            {"rewards": [len(text) for text in json.loads(body)["completions"]]}
        ).encode()
        ask = RewardEndpoints(Outbound([receiver.host]))
        yield lambda config: ask(config.model_copy(update={"url": receiver.url}))


@pytest.mark.parametrize("branch", BRANCHES, ids=lambda branch: branch.name)
def test_trap_17_every_choice_is_run_by_steps_of_training(
    tiny_model: Path, classifiers: Classifiers, endpoints: Endpoints, branch: Branch
) -> None:
    """engines.md §2.10.17: an option that nobody has ever run."""
    config = config_of(branch)
    policy = new_policy(str(tiny_model), config.model, seed=0)
    state = fresh_state(policy, config)
    before = {name: p.detach().clone() for name, p in policy.trainable_parameters().items()}
    configured = make_reward(config.reward, classifiers, endpoints)
    gold = config.evaluation.gold_reward and make_reward(
        config.evaluation.gold_reward, classifiers, endpoints
    )

    def reward(*asked: Any) -> list[float]:
        return [score + row for row, score in enumerate(configured(*asked))]  # never all alike

    asked = {"prompts": PROMPTS, "eval_prompts": PROMPTS[:1], "reward": reward, "gold": gold}
    for step in train(policy, state, config, **asked):
        assert {name: value for name, value in step.metrics.items() if not math.isfinite(value)} == {}
    assert step.step == 2
    assert any(not torch.equal(p, before[name]) for name, p in policy.trainable_parameters().items())


def test_every_branch_is_found() -> None:
    class Left(BaseModel):
        kind: Literal["left"] = "left"
        shape: Literal["a", "b"] = "a"

    class Right(BaseModel):
        on: bool | None = None

    class Whole(BaseModel):
        side: Left | Right
        part: Right
        number: int | str = 3
        plain: float = 1.0

    assert [(b.name, b.values) for b in branches_of(Whole)] == [
        ("side=left", {"side": {"kind": "left"}}),
        ("side.shape=a", {"side": {"kind": "left"}, "side.shape": "a"}),
        ("side.shape=b", {"side": {"kind": "left"}, "side.shape": "b"}),
        ("side=Right", {"side": {}}),
        ("side.on=False", {"side": {}, "side.on": False}),
        ("side.on=True", {"side": {}, "side.on": True}),
        ("side.on=None", {"side": {}, "side.on": None}),
        ("part.on=False", {"part.on": False}),
        ("part.on=True", {"part.on": True}),
        ("part.on=None", {"part.on": None}),
        ("number=int", {"number": ...}),
        ("number=str", {"number": ...}),
    ]


def test_no_section_has_more_than_a_dozen_fields() -> None:
    sections = set(sections_of(PPOConfig))
    assert len(sections) > 15
    assert {s.__name__: len(s.model_fields) for s in sections if len(s.model_fields) > 12} == {}


REFUSED: list[tuple[Values, str]] = [  # what is asked for, and the words that say what is wrong with it
    ({"data.prompts": None}, "exactly one of prompts and prompts_file"),
    ({"data.eval_prompts": ["a"], "data.eval_prompts_file": "b"}, "at most one of eval_prompts"),
    ({"data.ptx_texts": ["a"], "data.ptx_texts_file": "b"}, "at most one of ptx_texts"),
    ({"loss.ptx_coefficient": 0.5}, r"ptx_coefficient \(0.5\) needs data.ptx_texts or data.ptx_texts_file"),
    ({"data.ptx_texts": ["a"]}, "need loss.ptx_coefficient above 0: no gradient"),
    ({"model.lora": None, "model.value_adapter": {}}, "value_adapter needs model.lora"),
    ({"reward": {"kind": "regex", "pattern": "("}}, "not a regular expression"),
    ({"rollout.batch_size": 5}, r"batch_size \(5\) must be a multiple of optimization.minibatches \(2\)"),
    ({"rollout.stop": ["a", "b\ufffd"]}, "U\\+FFFD stands for a part of a character"),
    ({"rollout.top_k": 3}, "top_k: truncated sampling does not sample from the policy.*k1 and k3.*ratio"),
    ({"rollout.top_p": 0.9, "rollout.min_p": 0.1}, "top_p, min_p: truncated sampling"),
    (
        {"kl.controller": {"kind": "adaptive", "horizon": 3}},
        r"batch_size \(4\) must not exceed .*horizon \(3\)",
    ),
    ({"kl.controller": {"kind": "pi", "beta_min": 2.0, "beta_max": 1.0}}, r"beta_min \(2.0\) must be below"),
    ({"kl.controller": {"kind": "pi"}, "kl.beta": 11.0}, r"beta \(11.0\) must be within \[0.0001, 10.0\]"),
    (
        {"kl.controller": {"kind": "pi"}, "kl.limit.max_nats_per_sequence": 6.0},
        r"limit.max_nats_per_sequence \(6.0\) must be above .* \(6.0\): a job on its target would end",
    ),
    (
        {"reward": {"kind": "weighted", "parts": [{**PARTS[0], "name": "gold"}]}},
        "must not be one of adjusted, gold, shaped",
    ),
    ({"reward": {"kind": "weighted", "parts": PARTS * 2}}, "every part needs a name of its own"),
    (
        {"scores.whiten": True, "rollout.batch_size": 1, "optimization.minibatches": 1},
        "scores.whiten needs rollout.batch_size ≥ 2",
    ),
    ({"evaluation.best_of_n": 4}, "best_of_n needs data.eval_prompts or data.eval_prompts_file"),
    (
        {
            "evaluation.best_of_n": 4,
            "data.eval_prompts": ["a"],
            "rollout.top_k": 3,
            "rollout.allow_truncated_sampling": True,
        },
        "best_of_n with truncated sampling: .* is then not the reference",
    ),
    ({"kl.penalty": "k3"}, "k3 in the reward: it hardly pulls near the reference"),
    ({"kl.penalty": "kl"}, "does not depend on its own token"),
    ({"kl.loss": "k1"}, "the mean of its gradient is zero"),
    ({"kl.penalty": "k1", "kl.loss": "k2"}, "charge beta .* twice"),
    ({"kl.penalty": "none", "kl.controller": {"kind": "pi"}}, "beta is charged nowhere"),
    ({"kl.weights": {}}, "give weights for tokens, positions or both"),
    ({"kl.weights.tokens": [{"token": 5, "weight": 0.0}, {"token": 5, "weight": 1.0}]}, "two weights"),
    (
        {"kl.weights.positions": [{"start": 2, "end": 2, "weight": 0.0}]},
        r"end \(2\) must be above start \(2\)",
    ),
    (
        {"kl.weights.positions": [{"start": 3, "weight": 0.0}, {"end": 4, "weight": 0.5}]},
        "position 3 has two weights",
    ),
    *(
        ({"kl.weights.positions": [{"weight": 0.0}], **kl}, "weights need penalty 'k1'.*only for k1")
        for kl in (
            {"kl.penalty": "hybrid"},
            {"kl.penalty": "exact"},
            {"kl.penalty": "none", "kl.loss": "k3"},
        )
    ),
    ({"optimization.warmup_steps": 2}, r"warmup_steps \(2\) must be below steps \(2\)"),
    ({"optimization.value_only_steps": 2}, r"value_only_steps \(2\) must be below steps \(2\)"),
]


def refusal(values: Values) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        PPOConfig.model_validate(with_values(SMALLEST, values))
    return caught.value


@pytest.mark.parametrize(
    ("values", "reason"), REFUSED, ids=lambda value: value[:24] if isinstance(value, str) else ""
)
def test_a_refusal_names_its_reason(values: Values, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        PPOConfig.model_validate(with_values(SMALLEST, values))


def test_every_refusal_of_ours_is_among_these() -> None:
    """Each `raise` in rlhf_core/config is reached by a row of the table."""
    reached = set()
    for values, _ in REFUSED:
        ours = [error["ctx"]["error"] for error in refusal(values).errors() if error["type"] == "value_error"]
        for error in ours:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            reached.add((Path(frame.filename).name, frame.lineno))
    raised = {
        (file.name, node.lineno)
        for file in Path(rlhf_core.config.base.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Raise)
    }
    assert raised - reached == set()
