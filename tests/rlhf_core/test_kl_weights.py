"""Weighted KL: its gradient by enumeration of every sequence, what a run charges, and which tokens are meant."""

import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf_core import experience, kl_weights, ppo
from rlhf_core.chunked import chunked_scores
from rlhf_core.chunked_logprobs import PolicyScores
from rlhf_core.config.kl import KLWeights
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.controllers import make_controller
from rlhf_core.errors import UnknownToken
from rlhf_core.experience import Experience, assess, response_hidden, sample, weights_of
from rlhf_core.kl import divergences, k1, weighted_kl
from rlhf_core.kl_weights import WeightTable, weight_table
from rlhf_core.objective import Tokens, objective
from rlhf_core.policies import TokenizerCodec, new_lora_policy
from rlhf_core.ppo import StepResult
from rlhf_core.rollout import Rollout
from rlhf_core.targets import make_targets
from rlhf_core.update import fresh_state
from tests.rlhf_core.test_fixed_points import TabularPolicy
from tests.rlhf_core.test_sequence_gradients import P1, P2, Q1, Q2
from tests.tiny_models import byte_level_tokenizer

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
    positions = torch.arange(length + 1).expand_as(ids)
    none = torch.zeros(spoken.shape, dtype=torch.float64)
    rollout = Rollout(ids, torch.ones_like(ids), positions, mask, none, mask[:, 0], prompt_width=1)
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


# What a run charges.


def run(folder: Path, options: PPOConfig) -> tuple[list[StepResult], dict[str, Tensor]]:
    policy = new_lora_policy(str(folder), options.model.lora, seed=0)
    steps = ppo.train(
        policy,
        fresh_state(policy, options),
        options,
        prompts=["The cat", "A"],
        eval_prompts=[],
        reward=lambda prompts, *_: [float(i) for i in range(len(prompts))],
    )
    done = list(steps)
    return done, {name: p.detach().clone() for name, p in policy.trainable_parameters().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_weights_of_1_change_no_bit_and_weights_of_0_are_a_beta_of_0(tiny_model: Path) -> None:
    plain, trained = run(tiny_model, config(None, beta=0.5))
    ones, trained_with_ones = run(tiny_model, config(weights({"eos": 1.0, 7: 1.0}, (1.0,) * 6), beta=0.5))
    assert same(trained, trained_with_ones)
    for a, b in zip(plain, ones, strict=True):
        assert a.metrics == {name: b.metrics[name] for name in a.metrics}
        assert b.metrics["kl/weighted_sequence"] == b.metrics["kl/sequence"]
    free, trained_free = run(tiny_model, config(weights({}, (0.0,) * 6), beta=0.5))
    assert same(trained_free, run(tiny_model, config(None, beta=0.0))[1])
    assert not same(trained_free, trained)
    assert [step.metrics["kl/penalty"] for step in free] == [0.0, 0.0]
    assert [step.metrics["kl/weighted_sequence"] for step in free] == [0.0, 0.0]
    assert free[-1].metrics["kl/sequence"] > 0.01


def test_a_token_of_weight_0_is_not_charged_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token 0 ends a completion: however far its log-ratio, the advantage of saying it has none of it."""
    policy = moved(THREE)
    policy.eos_ids = frozenset({0})
    seen: list[tuple[Experience, Any]] = []

    def recorded(given: Experience, *rest: Any) -> Any:
        seen.append((given, make_targets(given, *rest)))
        return seen[-1][1]

    monkeypatch.setattr(ppo, "make_targets", recorded)
    options = config(weights({"eos": 0.0, 2: 0.5}), beta=0.5)
    asked: Any = {"prompts": ["."], "eval_prompts": [], "reward": lambda prompts, *_: [0.0] * len(prompts)}
    first = next(iter(ppo.train(policy, fresh_state(policy, options), options, **asked)))
    ((assessed, targets),) = seen
    ids, mask = assessed.rollout.response_ids, assessed.rollout.response_mask
    stops = mask & (ids == 0)
    assert int(stops.sum()) > 2
    assert (assessed.k1[stops].abs() > 0.2).all()
    assert (targets.advantage[stops] == 0).all()  # nothing follows, the score is 0 and so is the value head

    p, q = f64(*THREE[1])[states_of(ids)], f64(*THREE[0])[states_of(ids)]
    of_tokens = f64(0, 1, 0.5)
    charge = of_tokens[ids] * assessed.k1 + (q - p) @ of_tokens
    close(targets.penalty, torch.where(mask, 0.5 * charge, 0.0))
    assert first.metrics["kl/penalty"] == float(targets.penalty.sum(1).mean())
    exact = ((p * (p / q).log() - p + q) @ of_tokens).masked_fill(~mask, 0).sum(1).mean()
    assert first.metrics["kl/weighted_sequence"] == pytest.approx(float(exact), abs=1e-12)
    assert first.metrics["kl/weighted_sequence"] != pytest.approx(first.metrics["kl/sequence"], rel=0.1)


def test_controller_and_limit_see_the_kl_without_weights(tiny_model: Path) -> None:
    limit = {"max_nats_per_sequence": 100.0}
    options = config(weights({}, (0.0,) * 6), steps=3, controller={"kind": "pi"}, limit=limit)
    steps, _ = run(tiny_model, options)
    controller = make_controller(options.kl)
    for step in steps:
        assert step.metrics["kl/beta"] == controller.beta
        controller = controller.update(step.metrics["kl/sequence"], 8)
    assert len({step.metrics["kl/beta"] for step in steps}) > 1


@pytest.mark.parametrize("chunk_bytes", [1, 2**20])
def test_the_weighted_kl_of_a_model_is_the_sum_over_its_vocabulary(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    """Prompts of several lengths: positions count from the response's first token, padding has nothing."""
    for module in (kl_weights, experience):
        monkeypatch.setattr(
            module, "chunked_scores", functools.partial(chunked_scores, chunk_bytes=chunk_bytes)
        )
    options = config(weights({"eos": 0.0, 40: 3.0}, (0.5, 2.0)))
    policy = new_lora_policy(str(tiny_model), options.model.lora, seed=0)
    policy.codec = dataclasses.replace(policy.codec, eos_ids=frozenset(range(0, 300, 5)) - {40})
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in policy.trainable_parameters().values():
            weight += 0.05 * torch.randn_like(weight)
    texts = ["The cat", "A lovely morning by the sea", "A", "The quick brown fox"]
    rollout = sample(policy, texts, options.rollout, torch.Generator().manual_seed(3))
    mask, ids = rollout.response_mask, rollout.response_ids
    head = nn.Linear(policy.hidden_size, 1)
    table = weights_of(policy, options)
    seen = assess(policy, head, rollout, torch.arange(4).split(2), 0.7, weights=table)
    plain = assess(policy, head, rollout, torch.arange(4).split(2), 0.7)
    assert torch.equal(seen.kl, plain.kl)
    assert torch.equal(seen.logprob, plain.logprob)

    logprobs = []
    for model in (policy.policy, policy.reference):
        with torch.no_grad(), model() as entered:
            logits = entered.logits(response_hidden(entered, rollout)).double()
            logprobs.append((logits / 0.7).log_softmax(1))
    of_tokens = torch.ones(logprobs[0].shape[1], dtype=torch.float64)
    of_tokens[sorted(policy.codec.eos_ids)], of_tokens[40] = 0.0, 3.0
    place = torch.arange(mask.shape[1]).expand(mask.shape)[mask]
    of_positions = f64(0.5, 2, 1, 1, 1, 1)[place]
    assert seen.weighted is not None
    for found, expected in (
        (seen.weighted.kl, weighted_kl(*logprobs, of_tokens)),
        (seen.weighted.of_state, (logprobs[1].exp() - logprobs[0].exp()) @ of_tokens),
        (
            seen.weighted.own,
            of_tokens[ids[mask]] * k1(*(x.gather(1, ids[mask][:, None]).squeeze(1) for x in logprobs)),
        ),
    ):
        close(found[mask].double(), of_positions * expected, 2e-5)
        assert not found[~mask].any()
    assert (~mask).any()
    assert (seen.weighted.kl[mask] > 1e-3).any()


def test_t19_garbage_under_the_mask_is_charged_to_nobody() -> None:
    tables, length, given = CASES["T5, both"]
    clean = every_sequence(tables, length, given)
    mask = clean.rollout.response_mask.clone()
    mask[::2, 1] = False
    clean = clean._replace(rollout=clean.rollout._replace(response_mask=mask))
    assert clean.weighted is not None
    garbage = clean.weighted._make(torch.where(mask, column, math.nan) for column in clean.weighted)
    scores = torch.ones(4, dtype=torch.float64)
    expected = make_targets(clean, scores, 0.5, config(given))
    for a, b in zip(
        make_targets(clean._replace(weighted=garbage), scores, 0.5, config(given)), expected, strict=True
    ):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


# Which tokens are meant.


@pytest.fixture(scope="module", params=[False, True], ids=["no bos", "bos"])
def codec(request: pytest.FixtureRequest) -> TokenizerCodec:
    return TokenizerCodec(byte_level_tokenizer(300, bos=request.param), frozenset({0, 3}), 0)


def table_of(codec: Any, *tokens: str | int) -> WeightTable:
    given = KLWeights.model_validate(weights(dict.fromkeys(tokens, 0.5)))
    return weight_table(given, codec, vocab_size=300, longest_response=4, device=torch.device("cpu"))


def test_a_token_is_an_id_or_a_text_or_every_stop_token(codec: TokenizerCodec) -> None:
    letter = codec.tokenizer("z", add_special_tokens=False)["input_ids"]
    assert table_of(codec, "eos", 7, "z", "<｜begin｜>").listed.tolist() == [0, 3, 7, *letter, 1]
    found = table_of(codec, 7)
    assert found.of_tokens.nonzero().shape == (300, 1)
    assert (found.of_tokens != 1).nonzero().tolist() == [[7]]
    assert found.of_positions.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (["z", "zq"], "the text 'zq' is 2 tokens of this tokenizer, not one"),
        ([300], "300 is token 300, the model has 0 to 299"),
        (["<|end|>", "eos"], "'eos' is token 0, which has a weight already"),
    ],
)
def test_a_token_that_is_none_is_refused(codec: TokenizerCodec, tokens: list[Any], reason: str) -> None:
    with pytest.raises(UnknownToken, match=reason):
        table_of(codec, *tokens)


def test_a_model_without_stop_tokens_has_no_eos_to_weigh() -> None:
    with pytest.raises(UnknownToken, match="'eos': the model has no token that ends"):
        table_of(TabularPolicy([[0.5, 0.5]]), "eos")


def test_a_run_is_refused_before_it_begins(tiny_model: Path) -> None:
    with pytest.raises(UnknownToken, match=r"'The cat sat' is . tokens"):
        run(tiny_model, config(weights({"The cat sat": 0.0})))
