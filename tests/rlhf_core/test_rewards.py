"""Rewards by name, and the contract that holds a reward to finite numbers."""

import math

import pytest

from rlhf_core.config import KeywordReward, LengthReward, RegexReward, RewardConfig, SentimentReward
from rlhf_core.errors import RewardError
from rlhf_core.rewards import checked_scores, make_reward


@pytest.mark.parametrize(
    ("config", "completion", "tokens", "expected"),
    [
        # −|tokens − target| / target
        (LengthReward(target_tokens=8), "…", 8, 0.0),
        (LengthReward(target_tokens=8), "…", 2, -0.75),
        (LengthReward(target_tokens=8), "…", 12, -0.5),
        # whole words, any case: "cats" is not "cat"
        (KeywordReward(keywords=("cat", "dog")), "The CAT and the cats", 5, 0.5),
        (KeywordReward(keywords=("c++",)), "I like Python", 4, 0.0),
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


@pytest.mark.parametrize(
    "returned", [None, "1", [1.0], [1.0, None], [1.0, math.nan], [1.0, math.inf], [1.0, True]]
)
def test_what_is_no_list_of_finite_numbers_is_refused(returned: object) -> None:
    with pytest.raises(RewardError):
        checked_scores(lambda *_: returned, ["a", "b"], ["a", "b"], [1, 1])  # type: ignore[arg-type,return-value]


def test_a_reward_that_raises_is_named() -> None:
    def reward(*_: object) -> list[float]:
        raise ZeroDivisionError("division by zero")

    with pytest.raises(RewardError, match="ZeroDivisionError"):
        checked_scores(reward, ["a"], ["a"], [1])
