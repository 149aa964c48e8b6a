"""Weighted KL: its value; its gradient, by enumerating every sequence through the trainer's own functions."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf_core.chunked_logprobs import PolicyScores
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.experience import Experience, assess, weights_of
from rlhf_core.kl import divergences, weighted_kl
from rlhf_core.objective import Tokens, objective
from rlhf_core.rollout import Rollout
from rlhf_core.targets import make_targets
from tests.rlhf_core import test_fixed_points as tabular
from tests.rlhf_core.test_fixed_points import TabularPolicy
from tests.rlhf_core.test_sequence_gradients import P1, P2, Q1, Q2

pytestmark = pytest.mark.usefixtures("no_shape_checks")
Given = dict[str, Any]


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def weights(tokens: dict[str | int, float], positions: tuple[float, ...] = ()) -> Given:
    return {
        "tokens": [{"token": token, "weight": weight} for token, weight in tokens.items()],
        "positions": [{"start": t, "end": t + 1, "weight": weight} for t, weight in enumerate(positions)],
    }


def config(given: Given | None, *, steps: int = 2, **kl: Any) -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "model": {"name": "tiny", "lora": {"rank": 2}},
            "data": {"prompts": ["."]},
            "reward": {"kind": "sentiment"},
            "rollout": {"batch_size": 8, "max_new_tokens": 6},
            "kl": {"weights": given, **kl},
            "advantages": {"gae_lambda": 1.0, "whiten": False},
            "optimization": {"steps": steps, "learning_rate": 0.02, "minibatches": 2},
        }
    )


def test_t1_weighted_kl() -> None:
    p, q = f64(0.5, 0.3, 0.2).log(), f64(0.4, 0.4, 0.2).log()
    # h = p ln(p/q) − p + q: .5 ln 1.25 − .1 = .0115717757, .3 ln .75 + .1 = .0136953782, 0
    close(weighted_kl(p, q, f64(1, 0, 0.5)), f64(0.0115717757)[0], 5e-11)
    close(weighted_kl(p, q, f64(0, 2, 7)), f64(2 * (0.3 * math.log(0.75) + 0.1))[0], 1e-15)
    close(weighted_kl(p, q, f64(1, 1, 1)), divergences(p, q).kl, 1e-15)
    # The second item has p = .5, q = 1; what weighs nothing may be infinite.
    half = weighted_kl(f64(0.5, 0.5).log(), f64(0, 1).log(), f64(0, 1))
    close(half, f64(0.5 * math.log(0.5) + 0.5)[0], 1e-15)


# The gradient, through `assess`, `make_targets` and `objective`: every sequence weighted by its probability.

Tables = tuple[list[list[float]], list[list[float]]]  # reference and policy: at first, then after each token
T5: Tables = [Q1.tolist(), *Q2.tolist()], [P1.tolist(), *P2.tolist()]
THREE: Tables = (
    [[0.4, 0.4, 0.2]] * 4,
    [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5], [0.7, 0.2, 0.1]],
)
CASES: dict[str, tuple[Tables, int, Given]] = {
    "T1": (THREE, 1, weights({1: 0.0, 2: 0.5})),
    "T5, positions": (T5, 2, weights({}, (0.25, 2.0))),
    "T5, a token": (T5, 2, weights({0: 0.0})),
    "T5, both": (T5, 2, weights({1: 0.25}, (1.5, 0.5))),
    "three tokens": (THREE, 3, weights({1: 0.0, 2: 0.5}, (1.0, 0.0, 3.0))),
}


def moved(tables: Tables) -> TabularPolicy:
    """A policy at the second table, whose reference is the first."""
    policy = TabularPolicy(tables[0])
    with torch.no_grad():
        policy.trainable_parameters()["table"].copy_(f64(*tables[1]).log().T)
    return policy


def every_sequence(tables: Tables, length: int, given: Given) -> Experience:
    policy = moved(tables)
    spoken = torch.tensor(list(itertools.product(range(len(tables[0][0])), repeat=length)))
    ids = torch.cat([torch.zeros_like(spoken[:, :1]), spoken], dim=1)
    mask = torch.ones_like(spoken, dtype=torch.bool)
    none = torch.zeros(spoken.shape, dtype=torch.float64)
    rollout = Rollout(ids, torch.ones_like(ids), mask, none, mask[:, 0], prompt_width=1)
    torch.manual_seed(0)
    head = nn.Linear(policy.hidden_size, 1, dtype=torch.float64)  # a baseline moves no mean gradient
    parts = torch.arange(len(spoken)).tensor_split(2)
    return assess(policy, head, rollout, parts, 1.0, weights=weights_of(policy, config(given)))


def states_of(spoken: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(spoken[:, :1]), 1 + spoken[:, :-1]], dim=1)


def descended(seen: Experience, tables: Tables, given: Given) -> Tensor:
    """The gradient of the loss before the first step with β = 1 and no score."""
    found = make_targets(seen, torch.zeros(len(seen.k1)).double(), 1.0, config(given))
    logits = f64(*tables[1]).log().requires_grad_()
    spoken = seen.rollout.response_ids
    logprob = logits.log_softmax(1)[states_of(spoken), spoken]
    none = torch.zeros_like(logprob)
    losses = []
    for row in range(len(spoken)):
        tokens = Tokens(*(x[row] for x in (seen.logprob, none, seen.value, found.advantage, found.returns)))
        scores = PolicyScores(logprob[row], none[row], none[row])
        losses.append(
            objective(scores, seen.value[row], tokens, config(given), beta_in_loss=1.0, token_count=1).terms[
                "loss/policy"
            ]
        )
    probability = seen.logprob.sum(1).exp()
    close(probability.sum(), f64(1)[0])
    return torch.autograd.grad(probability @ torch.stack(losses), logits)[0]


def truth(seen: Experience, tables: Tables, given: Given) -> Tensor:
    """∇ Σ_y π(y) Σ_t w_t Σ_v w_v h_v: no estimator, no advantage."""
    logits, spoken = f64(*tables[1]).log().requires_grad_(), seen.rollout.response_ids
    of_tokens, of_positions = torch.ones(len(tables[0][0])).double(), torch.ones(spoken.shape[1]).double()
    for item in given["tokens"]:
        of_tokens[item["token"]] = item["weight"]
    for item in given["positions"]:
        of_positions[item["start"]] = item["weight"]
    policy, reference = logits.log_softmax(1), f64(*tables[0]).log()
    h = policy.exp() * (policy - reference) - policy.exp() + reference.exp()
    states = states_of(spoken)
    per_token = (h @ of_tokens)[states] * of_positions
    assert seen.weighted is not None
    close(seen.weighted.kl, per_token.detach())
    return torch.autograd.grad(policy[states, spoken].sum(1).exp() @ per_token.sum(1), logits)[0]


@pytest.mark.parametrize("name", CASES)
def test_the_weighted_k1_descends_the_weighted_kl_of_sequences(name: str) -> None:
    tables, length, given = CASES[name]
    seen = every_sequence(tables, length, given)
    found = descended(seen, tables, given)
    assert found.abs().max() > 0.01
    close(found, truth(seen, tables, given))


@pytest.mark.parametrize("name", CASES)
def test_the_weighted_k1_has_the_mean_of_the_weighted_kl(name: str) -> None:
    seen = every_sequence(*CASES[name])
    assert seen.weighted is not None
    charged = (seen.weighted.own + seen.weighted.of_state).sum(1)
    probability = seen.logprob.sum(1).exp()
    close(probability @ charged, probability @ seen.weighted.kl.sum(1))


@pytest.mark.parametrize("name", CASES)
def test_negative_control_without_the_states_part_prefixes_are_charged_wrongly(name: str) -> None:
    """w(y) d alone is right for one token, and for weights of positions; else E[w(y) d] is no weighted KL."""
    tables, length, given = CASES[name]
    seen = every_sequence(tables, length, given)
    assert seen.weighted is not None
    alone = seen._replace(weighted=seen.weighted._replace(of_state=torch.zeros_like(seen.k1)))
    off = (descended(alone, tables, given) - truth(seen, tables, given)).abs().max()
    if name in ("T1", "T5, positions"):
        assert off < 1e-9
    else:
        assert off > 0.01


def test_the_loop_lands_on_the_optimum_of_the_weighted_leash() -> None:
    """arg max Σ p r − β Σ w h: r_v − β w_v ln(p_v/q_v) is one λ for all v."""
    # w = (0, 1, .5): λ = r_0 = 1, so p_1 = .4 e^{−1/.5}, p_2 = .2 e^{−.5/.25}, and p_0 is the rest.
    expected = f64(1 - 0.6 * math.exp(-2), 0.4 * math.exp(-2), 0.2 * math.exp(-2))
    policy = TabularPolicy([tabular.REFERENCE])
    given: Any = {"penalty": "k1", "weights": weights({0: 0.0, 2: 0.5})}
    options = tabular.config(given, beta=tabular.BETA, tokens=1)
    tabular.run(policy, options, lambda ids: tabular.SCORES[ids[0]])
    assert tabular.total_variation(policy.probabilities(), expected) < 0.02
    assert tabular.total_variation(expected, tabular.OPTIMUM) > 0.15  # without weights
