"""Rewards that an HTTP endpoint gives: batched, signed, tried again a few times, through the guard."""

import time
from collections.abc import Callable, Sequence

import orjson
import uuid_utils

from jobs.outbound import Answer, Outbound
from jobs.outbound_urls import OutboundError
from jobs.settings import Settings
from jobs.signatures import signed_headers
from jobs.webhook_sender import retry_after_s
from rlhf_core.config.rewards import HttpReward
from rlhf_core.errors import RewardError
from rlhf_core.rewards import RewardFunction

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
WORTH_ANOTHER = frozenset({"timeout", "connect_failed", "bad_response"})


class RewardEndpoints:
    """Makes the reward function of an `http` reward."""

    def __init__(
        self, outbound: Outbound, secret: str | None = None, *, wait: Callable[[float], object] = time.sleep
    ) -> None:
        self._outbound, self._secret, self._wait = outbound, secret, wait

    def __call__(self, config: HttpReward) -> RewardFunction:
        """One score for each completion. Raises RewardError."""

        def reward(prompts: Sequence[str], completions: Sequence[str], _: Sequence[int]) -> list[float]:
            scores: list[float] = []
            for start in range(0, len(completions), config.batch_size):
                batch = slice(start, start + config.batch_size)
                scores += self._batch(config, prompts[batch], completions[batch])
            return scores

        return reward

    def _batch(self, config: HttpReward, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        body = orjson.dumps({"prompts": list(prompts), "completions": list(completions)})
        message_id = f"msg_{uuid_utils.uuid7().hex}"
        for tried in range(config.retries + 1):
            answer = self._ask(config, message_id, body)
            if isinstance(answer, Answer) and answer.status == 200:
                return scores_of(answer.body, len(completions))
            problem = f"status {answer.status}" if isinstance(answer, Answer) else answer.detail
            if not worth_another(answer):
                raise RewardError(f"the reward endpoint failed: {problem}")
            if tried < config.retries:
                asked = retry_after_s(answer.retry_after, time.time()) if isinstance(answer, Answer) else 0.0
                self._wait(min(max(FIRST_PAUSE_S * 2**tried, asked), LONGEST_PAUSE_S))
        raise RewardError(f"the reward endpoint failed {config.retries + 1} times, the last time: {problem}")

    def _ask(self, config: HttpReward, message_id: str, body: bytes) -> Answer | OutboundError:
        headers = {"Content-Type": "application/json", "User-Agent": "kleash-reward"}
        if self._secret is not None:
            headers |= signed_headers([self._secret], message_id, int(time.time()), body)
        try:
            return self._outbound.post(config.url, body, headers, timeout_s=config.timeout_s, read=True)
        except OutboundError as error:
            return error


def endpoints_of(settings: Settings) -> RewardEndpoints:
    """The deployment's."""
    secret = settings.reward_secret
    return RewardEndpoints(
        Outbound(settings.outbound_allow), None if secret is None else secret.get_secret_value()
    )


def worth_another(answer: Answer | OutboundError) -> bool:
    """True for what may pass: too busy, broken, slow, away."""
    if isinstance(answer, Answer):
        return answer.status == 429 or answer.status >= 500
    return answer.code in WORTH_ANOTHER


def scores_of(body: bytes, count: int) -> list[float]:
    """The numbers in `{"rewards": […]}`. Raises RewardError, which quotes nothing of the body."""
    wanted = f'the reward endpoint must answer {{"rewards": […]}} with {count} finite numbers'
    try:
        rewards = orjson.loads(body)["rewards"]
    except (ValueError, TypeError, KeyError):
        raise RewardError(wanted) from None
    numbers = isinstance(rewards, list) and all(type(reward) in (int, float) for reward in rewards)
    if not numbers or len(rewards) != count:
        raise RewardError(wanted)
    return [float(reward) for reward in rewards]
