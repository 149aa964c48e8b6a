"""The batcher with real models, one step at a time: what is scored together, once, and for whom."""

import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.errors import ScorerUnavailable
from jobs.scoring_wire import ItemError, ItemScores
from rlhf_core.models import WeightSource
from tests import tiny_models
from tests.worker.scorer.bench import PATIENCE_S, CountingLoader, drain, request, wait_until
from worker.scorer.answers import tokenized
from worker.scorer.batcher import Batcher
from worker.scorer.pairs import PairCache


def test_requests_for_one_pair_share_a_batch_and_keep_their_own_answers(tiny, pair_key, batcher):
    one = batcher.submit(request(tiny, "the cat sat on the mat"), pair_key)
    two = batcher.submit(request(tiny, "the dog sat on the log", "the mat sat on the cat"), pair_key)
    batcher.step()
    assert batcher.stats().batches == 1
    assert batcher.stats().items == 3
    tokenizer = tiny_models.PreTrainedTokenizerFast.from_pretrained(tiny.base)
    decoded = [tokenizer.decode(item.token_ids) for f in (one, two) for item in f.result(0).items]
    assert decoded == ["the cat sat on the mat", "the dog sat on the log", "the mat sat on the cat"]


def test_another_temperature_is_another_batch(tiny, pair_key, batcher):
    cold = batcher.submit(request(tiny, "the cat sat", temperature=0.5), pair_key)
    warm = batcher.submit(request(tiny, "the cat sat", temperature=1.0), pair_key)
    drain(batcher)
    assert batcher.stats().batches == 2
    kl_cold, kl_warm = (np.nansum(future.result(0).items[0].quantities["kl"]) for future in (cold, warm))
    assert kl_cold != pytest.approx(kl_warm, rel=0.01)


def test_strict_texts_go_alone_and_do_not_depend_on_the_company(tiny, pair_key, batcher):
    texts = ["the cat sat", "the dog sat on the log", "the mat"]
    together = batcher.submit(request(tiny, *texts, numerics="strict"), pair_key)
    drain(batcher)
    assert batcher.stats().batches == 3
    for text, item in zip(texts, together.result(0).items, strict=True):
        alone = batcher.submit(request(tiny, text, numerics="strict"), pair_key)
        drain(batcher)
        for name, values in alone.result(0).items[0].quantities.items():
            assert values.tobytes() == item.quantities[name].tobytes()


def test_equal_texts_are_scored_once_also_across_requests_and_clients(tiny, pair_key, batcher):
    one = batcher.submit(request(tiny, "the cat sat", "the dog", "the cat sat", client="a"), pair_key)
    two = batcher.submit(request(tiny, "the cat sat", quantities=("kl",), client="b"), pair_key)
    drain(batcher)
    stats = batcher.stats()
    lengths = {len(item.token_ids) for item in one.result(0).items}
    assert stats.tokens == sum(lengths)  # of the two texts that differ, once each
    assert (stats.items, stats.shared_items) == (4, 2)
    first, _, third = one.result(0).items
    (other,) = two.result(0).items
    assert first.quantities["kl"].tobytes() == third.quantities["kl"].tobytes()
    assert other.quantities["kl"].tobytes() == first.quantities["kl"].tobytes()
    assert list(other.quantities) == ["kl"]


def test_equal_tokens_with_another_prompt_are_not_equal(tiny, pair_key, batcher):
    whole = request(tiny, "the cat sat")
    split = whole.model_copy(
        update={"items": [whole.items[0].model_copy(update={"prompt": "the", "text": " cat sat"})]}
    )
    one, two = batcher.submit(whole, pair_key), batcher.submit(split, pair_key)
    drain(batcher)
    (all_scored,), (completion,) = one.result(0).items, two.result(0).items
    if all_scored.token_ids.tolist() == completion.token_ids.tolist():
        assert completion.scored.sum() <= all_scored.scored.sum()
    assert batcher.stats().shared_items == (completion.scored.sum() == all_scored.scored.sum())


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_sharing_changes_no_answer(tiny, pair_key, pairs, data):
    """Whatever waits together, a text's answer is its own within rounding (5e-6 nats on these models)."""
    words = st.lists(st.sampled_from(["the", " cat", " dog", " sat"]), min_size=3, max_size=5).map("".join)
    asked = data.draw(st.lists(st.lists(words, min_size=1, max_size=4), min_size=1, max_size=4))
    batcher = Batcher(pairs, max_batch_tokens=24, max_queued_tokens=10_000)
    futures = [batcher.submit(request(tiny, *texts), pair_key) for texts in asked]
    drain(batcher)
    for texts, future in zip(asked, futures, strict=True):
        for text, item in zip(texts, future.result(0).items, strict=True):
            alone = batcher.submit(request(tiny, text), pair_key)
            drain(batcher)
            expected = alone.result(0).items[0]
            assert item.token_ids.tolist() == expected.token_ids.tolist()
            np.testing.assert_allclose(item.quantities["kl"], expected.quantities["kl"], atol=5e-6)


def test_a_tokenised_request_does_not_wait_for_another_s_tokens(tiny, pair_key, batcher, monkeypatch):
    """The second thread is in the middle of a slow item while the first answers who is ready."""
    begun, may_end = threading.Event(), threading.Event()

    def slowly(pair, item):
        if item.text == "the dog":
            begun.set()
            assert may_end.wait(PATIENCE_S)
        return tokenized(pair, item)

    monkeypatch.setattr("worker.scorer.tokenizing.tokenized", slowly)
    batcher.preload(pair_key)
    ahead = threading.Thread(target=batcher.tokenize_ahead)
    ahead.start()
    try:
        ready = batcher.submit(request(tiny, "the cat", client="a"), pair_key)
        wait_until(lambda: batcher.stats().tokenize_s > 0)
        slow = batcher.submit(request(tiny, "the dog", client="b"), pair_key)
        assert begun.wait(PATIENCE_S)
        step = threading.Thread(target=batcher.step)
        step.start()
        assert ready.result(PATIENCE_S / 4).items
        assert not slow.done()
    finally:
        may_end.set()
        step.join()
        drain(batcher)
        batcher.close()
        ahead.join()
    assert slow.result(0).items


def test_an_item_that_cannot_be_scored_does_not_fail_the_others(tiny, pair_key, batcher):
    future = batcher.submit(request(tiny, "the cat", "", "x" * 400, "the dog", quantities=("kl",)), pair_key)
    drain(batcher)
    first, empty, long, last = future.result(0).items
    assert isinstance(first, ItemScores)
    assert list(first.quantities) == ["kl"]
    assert isinstance(last, ItemScores)
    assert (empty.code, long.code) == ("empty_input", "input_too_long")


def test_a_request_of_failures_alone_is_answered(tiny, pair_key, batcher):
    future = batcher.submit(request(tiny, ""), pair_key)
    batcher.step()
    assert [type(item) for item in future.result(0).items] == [ItemError]
    assert batcher.stats().batches == 0


def test_models_that_cannot_be_loaded_fail_their_own_requests_only(tiny, pair_key, batcher):
    nowhere = (WeightSource(str(tiny.root / "nothing")), pair_key[1])
    foreign = (WeightSource(str(tiny.base)), WeightSource(str(tiny.foreign)))
    missing = batcher.submit(request(tiny, "the cat"), nowhere)
    mixed = batcher.submit(request(tiny, "the cat"), foreign)
    good = batcher.submit(request(tiny, "the cat"), pair_key)
    drain(batcher)
    assert missing.exception(0).code == "model_load_failed"
    assert str(tiny.root) not in missing.exception(0).detail  # it goes to clients
    assert mixed.exception(0).code == "tokenizer_mismatch"
    assert good.result(0).items


def test_a_batch_that_breaks_fails_its_requests_and_the_queue_goes_on(tiny, pair_key):
    class Breaking(CountingLoader):
        def __call__(self, policy, reference, *, bodies):
            pair = super().__call__(policy, reference, bodies=bodies)
            if policy.base is None:
                pair.tokenizer = None  # the first use of it raises
            return pair

    batcher = Batcher(PairCache(Breaking(), memory_bytes=2**30), max_batch_tokens=256, max_queued_tokens=1000)
    broken = batcher.submit(request(tiny, "the cat"), (pair_key[1], pair_key[1]))
    good = batcher.submit(request(tiny, "the cat"), pair_key)
    drain(batcher)
    assert isinstance(broken.exception(0), ScorerUnavailable)
    assert good.result(0).items


def test_a_closed_batcher_finishes_what_it_has_and_takes_no_more(tiny, pair_key, batcher):
    future = batcher.submit(request(tiny, "the cat"), pair_key)
    batcher.close()
    with pytest.raises(ScorerUnavailable):
        batcher.submit(request(tiny, "the cat"), pair_key)
    batcher.run()  # returns once the queue is empty
    assert future.result(0).items


def test_a_reply_says_where_its_time_went(tiny, pair_key, batcher):
    future = batcher.submit(request(tiny, "the cat sat"), pair_key)
    drain(batcher)
    reply, stats = future.result(0), batcher.stats()
    assert 0 < reply.spent["tokenize"] == stats.tokenize_s
    assert 0 < reply.spent["compute"] == stats.compute_s
    assert reply.spent["queue"] == stats.queue_s >= stats.load_s > 0  # nothing was loaded before it came


def test_requests_are_tokenised_while_a_batch_is_computed(tiny, pair_key, loader):
    running, go_on = threading.Event(), threading.Event()

    def wait(*_):
        running.set()
        assert go_on.wait(PATIENCE_S)

    def held(*args, **bodies):
        pair = loader(*args, **bodies)
        pair._policy[0].causal_lm.trunk.register_forward_hook(wait)
        return pair

    batcher = Batcher(PairCache(held), max_batch_tokens=256, max_queued_tokens=1000)
    threads = [threading.Thread(target=body) for body in (batcher.run, batcher.tokenize_ahead)]
    first = batcher.submit(request(tiny, "the cat sat"), pair_key)
    for thread in threads:
        thread.start()
    assert running.wait(PATIENCE_S)  # the models' thread is held in its first batch
    before = batcher.stats()
    second = batcher.submit(request(tiny, "the dog sat", ""), pair_key)
    wait_until(lambda: batcher.stats().tokenize_s > before.tokenize_s)
    assert not first.done()
    go_on.set()
    assert [type(item) for item in second.result(PATIENCE_S).items] == [ItemScores, ItemError]
    assert (
        0
        < second.result(0).spent["tokenize"]
        == pytest.approx(batcher.stats().tokenize_s - before.tokenize_s)
    )
    batcher.close()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
