"""Rewards by name, and the contract that holds a reward to finite numbers."""

import math

import pytest
from pydantic import ValidationError

from rlhf_core.config.rewards import (
    KeywordReward,
    LengthReward,
    RegexReward,
    RewardConfig,
    RewardPart,
    SentimentReward,
    WeightedReward,
)
from rlhf_core.errors import RewardError
from rlhf_core.rewards import WeightedSum, checked_scores, make_reward


@pytest.mark.parametrize(
    ("config", "completion", "tokens", "expected"),
    [
        # −|tokens − target| / target
        (LengthReward(target_tokens=8), "…", 8, 0.0),
        (LengthReward(target_tokens=8), "…", 2, -0.75),
        (LengthReward(target_tokens=8), "…", 12, -0.5),
        # whole words, any case: "cats" is not "cat"
        (KeywordReward(keywords=("cat", "dog")), "The CAT and the cats", 5, 0.5),
        # a word may end in what is no letter
        (KeywordReward(keywords=("c++",)), "I like C++!", 4, 1.0),
        (KeywordReward(keywords=("c++",)), "I like C", 4, 0.0),
        (RegexReward(pattern=r"\d{3}"), "room 101", 3, 1.0),
        (RegexReward(pattern=r"^\d"), "room 101", 3, 0.0),
    ],
)
def test_a_reward_by_name(config: RewardConfig, completion: str, tokens: int, expected: float) -> None:
    assert make_reward(config)(["The "], [completion], [tokens]) == [expected]


def test_sentiment_orders_texts_as_people_do() -> None:
    good, plain, bad = make_reward(SentimentReward())(
        ["The hotel room was"] * 3,
        [" lovely and clean.", " on the first floor.", " awful and dirty."],
        [4] * 3,
    )
    assert bad < 0 < good
    assert bad < plain < good


def test_a_runaway_pattern_is_an_error_not_a_hang() -> None:
    reward = make_reward(RegexReward(pattern=r"(a+)+$", timeout_s=0.05))
    with pytest.raises(RewardError, match="took over"):
        reward([""], ["a" * 5000 + "!"], [1])


@pytest.mark.parametrize("returned", [None, "1", [1.0], [1.0, None], [1.0, "1"], [1.0, True], [1.0, 1j]])
def test_what_is_no_list_of_numbers_is_refused(returned: object) -> None:
    with pytest.raises(RewardError):
        checked_scores(lambda *_: returned, ["a", "b"], ["a", "b"], [1, 1])  # type: ignore[arg-type,return-value]


def test_nan_and_infinity_are_numbers_for_the_caller_to_refuse() -> None:
    scores = checked_scores(lambda *_: [math.nan, -(10**400)], ["a", "b"], ["a", "b"], [1, 1])
    assert math.isnan(scores[0])
    assert scores[1] == -math.inf  # an integer that no float holds


class Unheard(Exception):
    """Nothing that anybody lists."""


@pytest.mark.parametrize("error", [ZeroDivisionError, Unheard, RuntimeError, SystemExit, StopIteration])
def test_a_reward_that_raises_is_named(error: type[BaseException]) -> None:
    def reward(*_: object) -> list[float]:
        raise error("because")

    with pytest.raises(RewardError, match=f"{error.__name__}: because"):
        checked_scores(reward, ["a"], ["a"], [1])


def test_a_machine_without_memory_is_not_the_rewards_fault() -> None:
    def reward(*_: object) -> list[float]:
        raise MemoryError

    with pytest.raises(MemoryError):
        checked_scores(reward, ["a"], ["a"], [1])


CATS = RewardPart(name="cats", weight=2.0, reward=KeywordReward(keywords=("cat",)))
SHORT = RewardPart(name="short", weight=-0.5, reward=LengthReward(target_tokens=4))


def test_a_weighted_sum_is_the_sum_of_its_parts() -> None:
    reward = make_reward(WeightedReward(parts=(CATS, SHORT)))
    assert isinstance(reward, WeightedSum)
    texts = (["", ""], ["a cat", "a dog"], [4, 2])
    # cats: 1, 0; short: −|4 − 4|/4 = 0, −|2 − 4|/4 = −.5; 2·1 − .5·0 = 2, 2·0 − .5·(−.5) = .25
    assert reward.parts(*texts) == {"cats": [1.0, 0.0], "short": [0.0, -0.5]}
    assert reward(*texts) == [2.0, 0.25]


def test_a_part_that_fails_is_named() -> None:
    with pytest.raises(RewardError, match="part short: the reward function must return a list of 1 numbers"):
        WeightedSum({"short": (1.0, lambda *_: [])})([""], [""], [1])


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((CATS, SHORT, CATS), "two share one"),
        ((), "at least 1 item"),
        (({"name": "gold", "weight": 1.0, "reward": {"kind": "sentiment"}},), "these metrics exist already"),
        (({"name": "Ca/ts", "weight": 1.0, "reward": {"kind": "sentiment"}},), "pattern"),
        (({"name": "a", "weight": 1.0, "reward": {"kind": "weighted", "parts": [CATS]}},), "'weighted'"),
    ],
)
def test_a_weighted_sum_that_makes_no_sense_is_refused(parts: object, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        WeightedReward.model_validate({"parts": parts})
