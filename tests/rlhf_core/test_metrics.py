"""What a step reports of its rollouts: errors by arithmetic, shares of the KL, nothing from under the mask."""

import math

import pytest
import torch
from torch import Tensor

from rlhf_core import metrics, ppo
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.experience import Experience
from rlhf_core.metrics import RolloutSample, describe, kl_shares, samples_of, standard_errors
from rlhf_core.rollout import Rollout
from rlhf_core.targets import make_targets
from rlhf_core.update import fresh_state
from tests.rlhf_core.test_fixed_points import TabularPolicy


def rollout_of(lengths: list[int], ended: list[bool], *, columns: int = 0) -> Rollout:
    """Prompts of one token; `columns` of padding are appended to the longest response."""
    batch, width = len(lengths), max(lengths) + columns
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    attention = torch.cat([torch.ones(batch, 1, dtype=torch.bool), mask], dim=1).long()
    return Rollout(
        input_ids=torch.ones(batch, 1 + width, dtype=torch.long),
        attention_mask=attention,
        response_mask=mask,
        sampled_logprob=torch.zeros(batch, width, dtype=torch.float64),
        ended=torch.tensor(ended),
        prompt_width=1,
    )


def experience_of(
    rollout: Rollout, *, kl: list[list[float]], k1: list[list[float]] | None = None
) -> Experience:
    """Rows of the real tokens' values; the rest of the experience is 0."""

    def padded(rows: list[list[float]]) -> Tensor:
        width = rollout.response_mask.shape[1]
        return torch.tensor([row + [0.0] * (width - len(row)) for row in rows], dtype=torch.float64)

    zeros = torch.zeros_like(padded(kl))
    return Experience(rollout, zeros, padded(k1 or kl), padded(kl), zeros, zeros)


def test_standard_errors_are_over_sequences_and_by_prompt_where_prompts_repeat() -> None:
    rollout = rollout_of([2, 1, 1, 2], [True] * 4)
    found = experience_of(
        rollout, kl=[[0.5, 0.5], [3.0], [2.0], [1.0, 1.0]], k1=[[1.0, -2.0], [0.0], [1.0], [4.0, 0.0]]
    )
    scores = torch.tensor([1.0, 3.0, 2.0, 2.0], dtype=torch.float64)
    # Four prompts. ΣKL 1, 3, 2, 2: mean 2, sd² = 2/3, SE = sqrt(2/3/4). Σk1 −1, 0, 1, 4: mean 1, sd² = 14/3.
    assert standard_errors(found, scores, ["a", "b", "c", "d"]) == {
        "reward/se": pytest.approx(math.sqrt(1 / 6)),
        "kl/sequence_se": pytest.approx(math.sqrt(1 / 6)),
        "kl/k1_sequence_se": pytest.approx(math.sqrt(14 / 12)),
    }
    # Two prompts, means (1 + 3)/2 = (2 + 2)/2 = 2: no error. Of Σk1: −.5 and 2.5, sd² = 4.5, SE = sqrt(4.5/2).
    assert standard_errors(found, scores, ["a", "a", "b", "b"]) == {
        "reward/se": 0.0,
        "kl/sequence_se": 0.0,
        "kl/k1_sequence_se": pytest.approx(1.5),
    }
    assert standard_errors(found, scores, ["a"] * 4) == {}  # one cluster says nothing of its error


def test_shares_of_the_kl() -> None:
    # Ten tokens, ΣKL = 10. Stop tokens: the last of the first row (1), not that of the second, cut by length.
    rollout = rollout_of([5, 4, 1], [True, False, True])
    found = experience_of(rollout, kl=[[2.0, 1.0, 0.0, 0.0, 1.0], [0.5, 0.0, 0.5, 1.0], [4.0]])
    assert kl_shares(found) == {
        "kl/eos_share": pytest.approx((1 + 4) / 10),
        "kl/top_decile_share": pytest.approx(4 / 10),  # one token of ten
        # ⌈5/4⌉ = 2 tokens of the first row, one of the second, one of the third
        "kl/first_quarter_share": pytest.approx((3 + 0.5 + 4) / 10),
    }


def test_a_policy_that_is_its_reference_has_no_kl_to_share_out() -> None:
    assert kl_shares(experience_of(rollout_of([2], [True]), kl=[[0.0, 0.0]])) == {}


class Letters:
    """1 is a, 2 is b, 0 ends the text."""

    eos_ids, pad_id = frozenset({0}), 0

    def encode(self, text: str) -> list[int]:
        return [" ab".index(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(" ab"[token] for token in ids).replace(" ", "")


def test_a_sample_has_its_tokens_with_their_kl_while_the_step_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rollout = rollout_of([3, 2, 1], [True, False, True])
    rollout.input_ids[:, 1:] = torch.tensor([[1, 2, 0], [2, 2, 0], [0, 0, 0]])
    found = experience_of(
        rollout,
        kl=[[1 / 3, 0.25, 1.0], [0.5, 0.5], [2.0]],
        k1=[[1.0, -2.0, 0.5], [1.0, 1.0], [3.0]],
    )
    scores = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    monkeypatch.setattr(metrics, "TOKENS_KEPT", 4)
    first, second, third = samples_of(["p", "q", "r"], ["ab", "bb", ""], scores, found, Letters())
    assert (first.prompt, first.completion) == ("p", "ab")
    assert first.data == {
        "reward": 1.0,
        "kl": pytest.approx(1 / 3 + 0.25 + 1.0),
        "k1": pytest.approx(-0.5),
        "length": 3,
        "ended": True,
        "token_ids": [1, 2, 0],
        "token_texts": ["a", "b", ""],
        "token_kl": [0.3333333, 0.25, 1.0],
    }
    assert second.data == {"reward": 2.0, "kl": 1.0, "k1": 2.0, "length": 2, "ended": False}  # 3 + 2 > 4
    assert "token_kl" not in third.data  # nor is a shorter one taken out of turn


CONFIG = PPOConfig.model_validate(
    {
        "model": {"name": "tabular"},
        "data": {"prompts": ["."]},
        "reward": {"kind": "sentiment"},
        "rollout": {"batch_size": 64, "max_new_tokens": 3},
        "kl": {"controller": {"kind": "pi"}},
        "optimization": {"steps": 1},
    }
)


def everything(experience: Experience, returns: Tensor) -> tuple[dict[str, float], tuple[RolloutSample, ...]]:
    """All that a step reports of a rollout of three sequences."""
    scores, texts = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), ["p", "q", "r"]
    targets = make_targets(experience, scores, 0.1, CONFIG)._replace(returns=returns)
    told = describe(experience, targets, scores, 0.1, CONFIG)
    told |= standard_errors(experience, scores, texts) | kl_shares(experience)
    return told, samples_of(texts, texts, scores, experience, Letters())


def random_experience(rollout: Rollout) -> tuple[Experience, Tensor]:
    """As `assess` leaves it: 0 where masked. And returns."""
    draw = torch.Generator().manual_seed(0)
    columns = (
        torch.zeros_like(rollout.sampled_logprob).masked_scatter(
            rollout.response_mask,
            torch.rand(int(rollout.response_mask.sum()), generator=draw, dtype=torch.float64),
        )
        for _ in range(6)
    )
    *found, returns = columns
    return Experience(rollout, *found), returns


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -1e10])
def test_t19_garbage_under_the_mask_reaches_no_metric_and_no_sample(garbage: float) -> None:
    rollout = rollout_of([1, 3, 2], [True, False, True])
    clean, returns = random_experience(rollout)
    mask = rollout.response_mask

    def dirty(column: Tensor) -> Tensor:
        return torch.where(mask, column, garbage)

    soiled = Experience(
        rollout._replace(sampled_logprob=dirty(rollout.sampled_logprob)),
        *(dirty(column) for column in clean[1:6]),
    )
    assert everything(soiled, dirty(returns)) == everything(clean, returns)


def test_t22_columns_of_padding_change_no_metric_and_no_sample() -> None:
    lengths, ended = [1, 3, 2], [True, False, True]
    narrow, wide = (random_experience(rollout_of(lengths, ended, columns=n)) for n in (0, 5))
    told, samples = everything(*wide)
    assert told == pytest.approx(everything(*narrow)[0], rel=1e-14)
    assert samples == everything(*narrow)[1]


def test_t20_the_trainers_kl_includes_the_stop_token_and_nothing_after_it() -> None:
    """Token 0 ends a completion, and pads it. What would follow it has by far the largest KL."""
    reference = [
        [0.2, 0.4, 0.4],
        [0.5, 0.3, 0.2],
        [0.6, 0.2, 0.2],
        [0.1, 0.8, 0.1],
    ]  # at first; after 0, 1, 2
    present = [[0.3, 0.3, 0.4], [1e-6, 1e-6, 1 - 2e-6], [0.5, 0.3, 0.2], [0.4, 0.2, 0.4]]
    policy = TabularPolicy(reference)
    policy.eos_ids = frozenset({0})
    with torch.no_grad():
        policy.trainable_parameters()["table"].copy_(torch.tensor(present, dtype=torch.float64).log().T)
    before, step = ppo.train(
        policy,
        fresh_state(policy, CONFIG),
        CONFIG,
        prompts=["."],
        eval_prompts=["."] * 40,
        reward=lambda prompts, *_: [0.0] * len(prompts),
    )

    def terms(ids: list[int]) -> list[tuple[float, float]]:
        """Exact KL and k1 of each token: state 0, then 1 + the token before."""
        states = [0, *(1 + token for token in ids[:-1])]
        return [
            (
                sum(p * math.log(p / q) for p, q in zip(present[s], reference[s], strict=True)),
                math.log(present[s][token] / reference[s][token]),
            )
            for s, token in zip(states, ids, strict=True)
        ]

    spoken = [sample.data["token_ids"] for sample in step.samples]
    assert {len(ids) for ids in spoken} == {1, 2, 3}
    assert all(0 not in ids[:-1] for ids in spoken)
    expected = [terms(ids) for ids in spoken]
    kl, k1 = (math.fsum(pair[i] for row in expected for pair in row) for i in (0, 1))
    assert step.metrics["kl/sequence"] == pytest.approx(kl / 64, rel=1e-9)
    assert step.metrics["kl/k1_sequence"] == pytest.approx(k1 / 64, rel=1e-9)
    last = math.fsum(row[-1][0] for row, ids in zip(expected, spoken, strict=True) if ids[-1] == 0)
    assert step.metrics["kl/eos_share"] == pytest.approx(last / kl, rel=1e-9)
    assert before.evaluation is not None
    held_out = [[int(token) for token in text.split()] for text in before.evaluation.completions]
    sums = [math.fsum(pair[0] for pair in terms(ids)) for ids in held_out]
    assert before.evaluation.kl == pytest.approx(sums, rel=1e-9)
