"""Which requests are let in, and whose turn it is."""

import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jobs.errors import ScorerOverloaded, ScoringRefused
from jobs.scoring_wire import ChatMessage, ModelSource, ScoreItem, ScoreRequest
from rlhf_core.batches import Capacity, next_batch
from rlhf_core.models import WeightSource
from rlhf_core.tokenization import TokenizedText
from tests.worker.scorer.bench import PATIENCE_S, drain, request
from worker.scorer.batcher import Batcher
from worker.scorer.pairs import PairCache
from worker.scorer.queue import FairQueue
from worker.scorer.tickets import BatchKey, Ticket, estimate_tokens, fair_order

MODEL = ModelSource(path="m")


def asks(*items, client=""):
    return ScoreRequest(policy=MODEL, reference=MODEL, items=list(items), client=client)


# -- admission ------------------------------------------------------------------------------------


def test_the_estimate_knows_each_form_of_input():
    assert estimate_tokens(asks(ScoreItem(text="x" * 30))) == 30 / 3 + 1
    assert estimate_tokens(asks(ScoreItem(prompt="é" * 3, text="x" * 6))) == 12 / 3 + 1  # é has two bytes
    assert estimate_tokens(asks(ScoreItem(token_ids=[5] * 17))) == 17
    chat = [ChatMessage(role="user", content="x" * 9), ChatMessage(role="assistant", content="x" * 6)]
    # The template writes the roles, of 4 and 9 bytes: 28 in all, and a third of a token counts as one.
    assert estimate_tokens(asks(ScoreItem(messages=chat))) == 10 + 2 * 4 + 1
    assert estimate_tokens(asks(ScoreItem(text="x" * 30), ScoreItem(token_ids=[5]))) == 11 + 1


def waiting(tokens, client="", key="pair"):
    """A ticket of which only the size is known."""
    return Ticket(asks(client=client), BatchKey(key, 1.0, "fast"), tokens, submitted=0.0, deadline=9e9)


def test_one_request_may_take_half_of_the_queue_and_no_more():
    queue = FairQueue(max_tokens=1000, max_requests=9)
    queue.admit(waiting(500), tokens_per_s=100.0)
    with pytest.raises(ScoringRefused) as refused:
        queue.admit(waiting(501, client="b"), tokens_per_s=100.0)
    assert (refused.value.code, refused.value.context) == ("input_too_long", {"limit": 500, "actual": 501})


def test_one_client_leaves_half_of_the_queue_to_the_others():
    queue = FairQueue(max_tokens=1000, max_requests=9)
    queue.admit(waiting(400, client="a"), tokens_per_s=100.0)
    with pytest.raises(ScorerOverloaded):
        queue.admit(waiting(101, client="a"), tokens_per_s=100.0)
    queue.admit(waiting(500, client="b"), tokens_per_s=100.0)
    with pytest.raises(ScorerOverloaded):
        queue.admit(waiting(101, client="c"), tokens_per_s=100.0)
    queue.admit(waiting(100, client="c"), tokens_per_s=100.0)  # 400 + 500 + 100


def test_the_number_of_requests_is_bounded_too():
    queue = FairQueue(max_tokens=1000, max_requests=2)
    for client in "ab":
        queue.admit(waiting(1, client=client), tokens_per_s=100.0)
    with pytest.raises(ScorerOverloaded):
        queue.admit(waiting(1, client="c"), tokens_per_s=100.0)


@pytest.mark.parametrize(("tokens_per_s", "low", "high"), [(50.0, 16, 24), (1.0, 48, 60), (1e6, 1, 1)])
def test_retry_after_is_the_queue_s_time_with_jitter_within_bounds(tokens_per_s, low, high):
    queue = FairQueue(max_tokens=2000, max_requests=9)
    queue.admit(waiting(1000, client="a"), tokens_per_s=tokens_per_s)
    answers = set()
    for _ in range(200):
        with pytest.raises(ScorerOverloaded) as refused:
            queue.admit(waiting(1, client="a"), tokens_per_s=tokens_per_s)  # 1000 / 50 = 20 s, ± 20 %
        answers.add(refused.value.retry_after_s)
    assert low <= min(answers) <= max(answers) <= high
    assert len(answers) > 1 or low == high  # clients do not come back all at once


def test_what_is_tokenised_counts_by_its_tokens(tiny, pair_key, batcher):
    future = batcher.submit(request(tiny, "the cat sat on the mat", "the dog"), pair_key)
    estimate = batcher.stats().queued_tokens
    assert estimate == 8 + 1 + 3 + 1  # ceil(22 / 3), ceil(7 / 3), and one each
    batcher.step()
    assert future.done()
    assert batcher.stats().queued_tokens == 0


# -- turns ----------------------------------------------------------------------------------------


def text(number, length):
    ids = np.full(length, number, dtype=np.int32)
    return TokenizedText(ids, ids, ids, 1)


def test_in_every_beginning_of_the_order_clients_have_about_as_many_tokens():
    big, small = waiting(0, "big"), waiting(0, "small")
    for n in range(6):
        big.add_text(n, text(n, 10))
    for n in range(2):
        small.add_text(n, text(100 + n, 25))
    order = [int(t.ids[0]) for _, t in fair_order([big, small], window=1000)]
    # tokens before: big 0 10 20 30 40 50, small 0 25; ties go to the leader
    assert order == [0, 100, 1, 2, 101, 3, 4, 5]


def test_a_client_fills_no_more_than_the_window():
    big = waiting(0, "big")
    for n in range(6):
        big.add_text(n, text(n, 10))
    assert len(fair_order([big], window=25)) == 3  # 0, 10 and 20 tokens before


class Turns(RuleBasedStateMachine):
    """Clients come, wait, give up and are scored, batch by batch as the batcher does it.

    The law: from the moment a client begins to wait, or has led, it leads again after at most one batch of each
    client that waits then; and when it leads, its oldest text is in the batch.
    """

    @initialize(packed=st.sampled_from([0, 40]))
    def begin(self, packed):
        self.queue = FairQueue(max_tokens=10**9, max_requests=10**9)
        self.capacity, self.number = Capacity(100, 100, packed), 0
        self.may_wait = {}  # client: batches of others that may still come before its own

    def clients(self):
        return {ticket.client for ticket in self.queue}

    @rule(
        client=st.sampled_from("abcde"),
        key=st.sampled_from(["one pair", "another"]),
        lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    )
    def ask(self, client, key, lengths):
        ticket = waiting(sum(lengths), client, key)
        for item, length in enumerate(lengths):
            self.number += 1
            ticket.add_text(item, text(self.number, length))
        self.may_wait.setdefault(client, len(self.clients() - {client}))
        self.queue.admit(ticket, tokens_per_s=1.0)

    @precondition(lambda self: len(self.queue))
    @rule(data=st.data())
    def give_up(self, data):
        gone = data.draw(st.sampled_from(list(self.queue)))
        self.queue.remove(lambda ticket: ticket is gone)
        self.forget_the_gone()

    @precondition(lambda self: len(self.queue))
    @rule()
    def score_a_batch(self):
        leader = self.queue.leader(lambda key: True)
        group = self.queue.group(leader)
        order = fair_order(group, window=1000)
        batch = next_batch([t for _, t in order], self.capacity, max_batch_tokens=80)
        oldest = next(iter(leader.open))
        assert leader is next(ticket for ticket in self.queue if ticket.client == leader.client)
        assert oldest in [order[place][0] for place in batch]
        for place in batch:
            for ticket in group:
                ticket.close_text(order[place][0])
        self.queue.remove(lambda ticket: not ticket.open)
        self.queue.end_turn(leader.client)
        for client in self.may_wait:
            self.may_wait[client] -= client != leader.client
        self.may_wait[leader.client] = len(self.clients() - {leader.client})
        self.forget_the_gone()

    def forget_the_gone(self):
        self.may_wait = {client: left for client, left in self.may_wait.items() if client in self.clients()}

    @invariant()
    def nobody_waits_longer_than_the_others_lead_once(self):
        assert all(left >= 0 for left in getattr(self, "may_wait", {}).values())

    @invariant()
    def the_queue_s_tokens_are_those_of_its_open_texts(self):
        if hasattr(self, "queue"):
            assert self.queue.tokens == sum(len(t.ids) for ticket in self.queue for t in ticket.open.values())


TestTurns = Turns.TestCase
TestTurns.settings = settings(max_examples=60, stateful_step_count=40)


def test_a_large_request_of_one_client_does_not_hold_up_another_client(tiny, pair_key, pairs):
    batcher = Batcher(pairs, max_batch_tokens=64, max_queued_tokens=1000)
    large = batcher.submit(
        request(tiny, *(f"the cat sat on the mat {n} " * 3 for n in range(16)), client="big"), pair_key
    )
    batcher.step()
    small = batcher.submit(request(tiny, "hi!", client="small"), pair_key)
    batcher.step()  # a batch of the client that waited before it, at most
    batcher.step()
    assert small.done()
    assert not large.done()
    drain(batcher)
    assert len(large.result(0).items) == 16


def test_within_a_client_the_first_to_come_is_the_first_to_be_scored(tiny, pair_key, pairs):
    batcher = Batcher(pairs, max_batch_tokens=8, max_queued_tokens=10_000)
    done = []
    for n in range(4):
        future = batcher.submit(request(tiny, f"the cat {n}", f"the dog {n}", f"the mat {n}"), pair_key)
        future.add_done_callback(lambda _, n=n: done.append(n))
    drain(batcher)
    assert done == [0, 1, 2, 3]


def test_a_single_text_passes_a_batch_of_256_in_a_running_scorer(tiny, pair_key, pairs):
    """It comes while a batch of the other runs: the batcher's thread says so, whatever the test's has missed."""
    batcher = Batcher(pairs, max_batch_tokens=64, max_queued_tokens=50_000)
    seen, score = [], batcher._score_texts

    def score_and_be_asked(*given, **more):
        if not seen:
            seen.append("came")
            small = batcher.submit(request(tiny, "hi!", client="small"), pair_key)
            small.add_done_callback(lambda _: seen.append((batcher.stats().batches, large.done())))
        return score(*given, **more)

    batcher._score_texts = score_and_be_asked
    texts = [f"reinforcement learning from human feedback {n}" for n in range(256)]
    large = batcher.submit(request(tiny, *texts, client="big"), pair_key)
    thread = threading.Thread(target=batcher.run)
    thread.start()
    try:
        assert len(large.result(PATIENCE_S).items) == 256
        _, (batches, all_done) = seen
        assert not all_done
        # The batch that ran, one that `big` leads, and the one that `small` leads.
        assert batches <= 3 < batcher.stats().batches
    finally:
        batcher.close()
        thread.join()


def test_a_pair_that_must_be_loaded_waits_while_those_in_memory_have_as_much_time(tiny, pair_key, loader):
    """Two clients with two pairs of which one fits: at most half of the time goes into loading."""

    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock = Clock()

    def slow(*args, **bodies):
        clock.now += 10.0
        return loader(*args, **bodies)

    batcher = Batcher(
        PairCache(slow, memory_bytes=1), max_batch_tokens=16, max_queued_tokens=10_000, clock=clock
    )
    other = (WeightSource(str(tiny.base)),) * 2
    for n in range(20):
        batcher.submit(request(tiny, f"the cat sat on {n}", client="a"), pair_key, timeout_s=1e6)
        batcher.submit(request(tiny, f"the cat sat on {n}", client="b"), other, timeout_s=1e6)
    while batcher.stats().waiting_requests:
        batcher.step()
        clock.now += 4.0  # a batch
    assert batcher.stats().items == 40
    # Two texts a batch, so 10 batches a client. The next load is allowed 10 s after the last: after 3 batches of
    # 4 s. Each client so has 3 + 3 + 3 + 1 of them, with a load before each; by turns alone it were 20 loads.
    assert (batcher.stats().batches, len(loader.loaded)) == (20, 8)
