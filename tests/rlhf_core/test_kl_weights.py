"""What a run with `kl.weights` charges and reports, and which tokens its weights mean."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf_core import experience, kl_weights, ppo
from rlhf_core.chunked import chunked_scores
from rlhf_core.config.kl import KLWeights
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.controllers import make_controller
from rlhf_core.errors import UnknownToken
from rlhf_core.experience import Experience, assess, response_hidden, sample, weights_of
from rlhf_core.kl import k1, weighted_kl
from rlhf_core.kl_weights import WeightTable, weight_table
from rlhf_core.policies import TokenizerCodec, new_policy
from rlhf_core.ppo import StepResult
from rlhf_core.targets import make_targets
from rlhf_core.update import fresh_state
from tests.rlhf_core.test_fixed_points import TabularPolicy
from tests.rlhf_core.test_weighted_gradients import (
    CASES,
    THREE,
    close,
    config,
    every_sequence,
    f64,
    moved,
    states_of,
    weights,
)
from tests.tiny_models import byte_level_tokenizer

pytestmark = pytest.mark.usefixtures("no_shape_checks")


def run(folder: Path, options: PPOConfig) -> tuple[list[StepResult], dict[str, Tensor]]:
    policy = new_policy(str(folder), options.model, seed=0)
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
    policy = new_policy(str(tiny_model), options.model, seed=0)
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
