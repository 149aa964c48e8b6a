"""Rewards by name: plain functions from prompts and completions to one number each. Never code over HTTP."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import regex
from textblob.en.sentiments import PatternAnalyzer

from rlhf_core.classifier import Classifiers
from rlhf_core.config.rewards import (
    ClassifierReward,
    HttpReward,
    KeywordReward,
    LengthReward,
    RegexReward,
    RewardConfig,
    SentimentReward,
    WeightedReward,
)
from rlhf_core.errors import RewardError

# (prompts, completions, tokens per completion) -> one score per completion
RewardFunction = Callable[[Sequence[str], Sequence[str], Sequence[int]], list[float]]
# what asks an endpoint: the caller brings it, for the core knows no web
Endpoints = Callable[[HttpReward], RewardFunction]


class WeightedSum:
    """Σ weight · reward: a reward that can also say what each of its parts gave."""

    def __init__(self, parts: Mapping[str, tuple[float, RewardFunction]]) -> None:
        self._parts = dict(parts)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], tokens: Sequence[int]
    ) -> list[float]:
        """The sum for each completion. Raises RewardError."""
        return self.total(self.parts(prompts, completions, tokens))

    def parts(
        self, prompts: Sequence[str], completions: Sequence[str], tokens: Sequence[int]
    ) -> dict[str, list[float]]:
        """What each part gives, before its weight. Raises RewardError, naming the part."""
        found = {}
        for name, (_, reward) in self._parts.items():
            try:
                found[name] = checked_scores(reward, prompts, completions, tokens)
            except RewardError as error:
                raise RewardError(f"part {name}: {error}") from error
        return found

    def total(self, parts: Mapping[str, Sequence[float]]) -> list[float]:
        """Σ weight · score of each completion."""
        weights = [weight for weight, _ in self._parts.values()]
        columns = zip(*(parts[name] for name in self._parts), strict=True)
        return [sum(weight * score for weight, score in zip(weights, row, strict=True)) for row in columns]


def make_reward(
    config: RewardConfig, classifiers: Classifiers | None = None, endpoints: Endpoints | None = None
) -> RewardFunction:
    """The reward function that a config names; rewards that share `classifiers` load each once.

    Raises:
        ModelLoadError: a classifier cannot be loaded or has no such label.
        RewardError: it is an `http` reward, and there are no `endpoints`.
    """
    classifiers = classifiers or Classifiers()
    if isinstance(config, WeightedReward):
        return WeightedSum(
            {
                part.name: (part.weight, make_reward(part.reward, classifiers, endpoints))
                for part in config.parts
            }
        )
    if isinstance(config, ClassifierReward):
        return _classifier(config, classifiers)
    if isinstance(config, HttpReward):
        if endpoints is None:
            raise RewardError("an http reward is asked by the worker only")
        return endpoints(config)
    return _REWARDS[type(config)](config)


def checked_scores(reward: RewardFunction, *args: Sequence[Any]) -> list[float]:
    """Call a reward and hold it to its contract; NaN and infinity are the caller's to refuse.

    Raises:
        RewardError: it raised, or did not return one number per completion.
        MemoryError: not the reward's fault.
    """
    try:
        scores = reward(*args)
    except (RewardError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # foreign code: this is an edge of the process
        raise RewardError(f"the reward function raised {type(error).__name__}: {str(error)[:300]}") from error
    if not isinstance(scores, list) or len(scores) != len(args[1]):
        raise RewardError(f"the reward function must return a list of {len(args[1])} numbers")
    return [_number(score) for score in scores]


def _number(score: object) -> float:
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        raise RewardError(f"the reward function returned {repr(score)[:100]}, which is no number")
    try:
        return float(score)
    except OverflowError:
        return math.inf if score > 0 else -math.inf


def _sentiment(_: SentimentReward) -> RewardFunction:
    analyzer = PatternAnalyzer()

    def reward(prompts: Sequence[str], completions: Sequence[str], _: Sequence[int]) -> list[float]:
        texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        return [float(analyzer.analyze(text).polarity) for text in texts]

    return reward


def _length(config: LengthReward) -> RewardFunction:
    def reward(_: Sequence[str], __: Sequence[str], tokens: Sequence[int]) -> list[float]:
        return [-abs(n - config.target_tokens) / config.target_tokens for n in tokens]

    return reward


def _keyword(config: KeywordReward) -> RewardFunction:
    patterns = [
        regex.compile(rf"(?<!\w){regex.escape(word)}(?!\w)", regex.IGNORECASE) for word in config.keywords
    ]

    def reward(_: Sequence[str], completions: Sequence[str], __: Sequence[int]) -> list[float]:
        return [sum(bool(p.search(text)) for p in patterns) / len(patterns) for text in completions]

    return reward


def _regex(config: RegexReward) -> RewardFunction:
    try:
        pattern = regex.compile(config.pattern)
    except regex.error as error:
        raise RewardError(f"the pattern is not a regular expression: {error}") from error

    def found(text: str) -> float:
        try:
            return float(pattern.search(text, timeout=config.timeout_s) is not None)
        except TimeoutError as error:
            raise RewardError(f"the pattern took over {config.timeout_s} s on one completion") from error

    def reward(_: Sequence[str], completions: Sequence[str], __: Sequence[int]) -> list[float]:
        return [found(text) for text in completions]

    return reward


def _classifier(config: ClassifierReward, classifiers: Classifiers) -> RewardFunction:
    scores = classifiers.label_scores(config)

    def reward(prompts: Sequence[str], completions: Sequence[str], _: Sequence[int]) -> list[float]:
        return scores([prompt + completion for prompt, completion in zip(prompts, completions, strict=True)])

    return reward


_REWARDS: dict[type, Callable[[Any], RewardFunction]] = {
    SentimentReward: _sentiment,
    LengthReward: _length,
    KeywordReward: _keyword,
    RegexReward: _regex,
}
