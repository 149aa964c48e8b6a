"""Rewards by HTTP, from a real server on loopback: batches, retries, signatures, and what is no answer."""

import json
import time
from collections.abc import Iterator

import pytest

from jobs.outbound import Outbound
from jobs.signatures import new_secret
from rlhf_core.config.rewards import HttpReward, LengthReward, RewardPart, WeightedReward, urls_of
from rlhf_core.errors import RewardError
from rlhf_core.rewards import make_reward
from tests.contracts.webhook_receiver import Receiver, verified
from worker.reward_endpoints import RewardEndpoints

TEXTS = ["a", "bb", "ccc", "dddd", "eeeee"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        receiver.body = lengths
        yield receiver


def lengths(body: bytes) -> bytes:
    asked = json.loads(body)
    assert len(asked["prompts"]) == len(asked["completions"])
    return json.dumps({"rewards": [len(text) for text in asked["completions"]]}).encode()


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def endpoints(receiver: Receiver, waits: list[float]) -> RewardEndpoints:
    return RewardEndpoints(Outbound([receiver.host]), wait=waits.append)


def asked(endpoints: RewardEndpoints, config: HttpReward) -> list[float]:
    return make_reward(config, endpoints=endpoints)(["p"] * len(TEXTS), TEXTS, [1] * len(TEXTS))


def test_completions_go_in_batches(receiver: Receiver, endpoints: RewardEndpoints) -> None:
    assert asked(endpoints, HttpReward(url=receiver.url, batch_size=2)) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [len(json.loads(body)["completions"]) for _, body in receiver.got] == [2, 2, 1]
    assert "webhook-signature" not in receiver.got[0][0]


def test_an_endpoint_may_be_a_part_of_a_sum(receiver: Receiver, endpoints: RewardEndpoints) -> None:
    asking = RewardPart(name="asked", weight=2.0, reward=HttpReward(url=receiver.url))
    short = RewardPart(name="short", weight=1.0, reward=LengthReward(target_tokens=1))
    reward = WeightedReward(parts=(asking, short))
    assert urls_of(reward) == (receiver.url,)
    assert make_reward(reward, endpoints=endpoints)(["p"], ["ccc"], [2]) == [2 * 3 - 1.0]


def test_a_busy_endpoint_is_asked_again(
    receiver: Receiver, endpoints: RewardEndpoints, waits: list[float]
) -> None:
    receiver.answers = [(503, {}), (429, {"Retry-After": "7"}), (500, {"Retry-After": "9999"})]
    assert asked(endpoints, HttpReward(url=receiver.url, retries=3)) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert waits == [0.5, 7.0, 60.0]
    assert len({body for _, body in receiver.got}) == 1


@pytest.mark.parametrize(("status", "requests"), [(500, 3), (429, 3), (302, 1), (400, 1), (204, 1)])
def test_the_job_fails_when_it_goes_on(
    receiver: Receiver, endpoints: RewardEndpoints, status: int, requests: int
) -> None:
    receiver.answers = [(status, {"Location": receiver.url})] * 9
    with pytest.raises(RewardError, match=f"status {status}") as caught:
        asked(endpoints, HttpReward(url=receiver.url, retries=2))
    assert len(receiver.got) == requests
    assert receiver.host not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"SECRET",
        b"[1, 2, 3, 4, 5]",
        b'{"rewards": [1, 2, 3, 4]}',
        b'{"rewards": [1, 2, 3, 4, "SECRET"]}',
        b'{"rewards": [1, 2, 3, 4, null]}',
        b'{"rewards": [1, 2, 3, 4, true]}',
        b'{"rewards": [1, 2, 3, 4, NaN]}',
        b'{"rewards": [1, 2, 3, 4, 1e999]}',
        b'{"rewards": "SECRET"}',
        b'{"SECRET": []}',
    ],
)
def test_what_is_no_answer_is_not_quoted(receiver: Receiver, endpoints: RewardEndpoints, body: bytes) -> None:
    receiver.body = lambda _: body
    with pytest.raises(RewardError, match="5 finite numbers") as caught:
        asked(endpoints, HttpReward(url=receiver.url))
    assert "SECRET" not in str(caught.value)


def test_requests_are_signed_with_the_operators_secret(receiver: Receiver) -> None:
    secret = new_secret()
    asked(RewardEndpoints(Outbound([receiver.host]), secret), HttpReward(url=receiver.url))
    assert verified(secret, *receiver.got[0], time.time())


def test_an_endpoint_in_our_network_is_not_asked(receiver: Receiver, waits: list[float]) -> None:
    with pytest.raises(RewardError, match="https, on port 443"):
        asked(RewardEndpoints(Outbound(), wait=waits.append), HttpReward(url=receiver.url))
    assert (receiver.got, waits) == ([], [])


def test_the_core_alone_asks_nobody(receiver: Receiver) -> None:
    with pytest.raises(RewardError, match="worker only"):
        make_reward(HttpReward(url=receiver.url))
