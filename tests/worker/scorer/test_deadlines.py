"""No work for requests that nobody waits for."""

import pytest

from jobs.errors import DeadlineExceeded
from tests.worker.scorer.bench import drain, request
from worker.scorer.batcher import Batcher
from worker.scorer.pairs import PairCache


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_request_past_its_deadline_is_dropped_before_any_work(tiny, pair_key, pairs):
    clock = Clock()
    batcher = Batcher(pairs, max_batch_tokens=256, max_queued_tokens=1000, clock=clock)
    late = batcher.submit(request(tiny, "the cat sat"), pair_key, timeout_s=1.0)
    clock.now = 1.0
    batcher.step()
    assert isinstance(late.exception(0), DeadlineExceeded)
    stats = batcher.stats()
    assert (stats.expired_requests, stats.batches, stats.tokenize_s, stats.queued_tokens) == (1, 0, 0.0, 0)
    assert len(pairs) == 0  # not even loaded


def test_texts_that_are_left_when_the_time_is_up_are_not_scored(tiny, pair_key, pairs):
    clock = Clock()
    batcher = Batcher(pairs, max_batch_tokens=16, max_queued_tokens=1000, clock=clock)
    late = batcher.submit(
        request(tiny, *(f"the cat sat on the mat {n}" for n in range(9))), pair_key, timeout_s=5.0
    )
    batcher.step()
    scored = batcher.stats().items
    assert 0 < scored < 9
    clock.now = 5.0 + batcher.stats().compute_s
    in_time = batcher.submit(request(tiny, "hi!"), pair_key, timeout_s=5.0)
    drain(batcher)
    assert isinstance(late.exception(0), DeadlineExceeded)
    spent = late.exception(0).spent
    assert spent["compute"] > 0  # of its first batch
    assert sum(spent.values()) == pytest.approx(clock.now)  # it came at 0
    assert in_time.result(0).items
    assert batcher.stats().items == scored + 1


def test_what_expires_while_its_pair_is_loaded_is_not_scored(tiny, pair_key, loader):
    clock = Clock()

    def slow(*args, **bodies):
        clock.now += 10.0
        return loader(*args, **bodies)

    cache = PairCache(slow, memory_bytes=2**30)
    batcher = Batcher(cache, max_batch_tokens=256, max_queued_tokens=1000, clock=clock)
    late = batcher.submit(request(tiny, "the cat sat"), pair_key, timeout_s=5.0)
    batcher.step()
    assert isinstance(late.exception(0), DeadlineExceeded)
    assert batcher.stats().batches == 0


def test_abandoned_requests_are_dropped_unscored(tiny, pair_key, batcher):
    gone = batcher.submit(request(tiny, "the cat sat"), pair_key)
    stays = batcher.submit(request(tiny, "the dog sat"), pair_key)
    gone.cancel()
    drain(batcher)
    assert stays.result(0).items
    stats = batcher.stats()
    assert (stats.abandoned_requests, stats.items, stats.queued_tokens) == (1, 1, 0)


def test_an_equal_text_of_an_expired_request_is_still_scored_for_the_other(tiny, pair_key, pairs):
    clock = Clock()
    batcher = Batcher(pairs, max_batch_tokens=256, max_queued_tokens=1000, clock=clock)
    late = batcher.submit(request(tiny, "the cat sat"), pair_key, timeout_s=1.0)
    stays = batcher.submit(request(tiny, "the cat sat"), pair_key, timeout_s=9.0)
    clock.now = 2.0
    drain(batcher)
    assert isinstance(late.exception(0), DeadlineExceeded)
    assert len(stays.result(0).items) == 1
