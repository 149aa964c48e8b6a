"""Several scorers behind one API, on real sockets: where requests go, also when one is not there."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jobs.errors import DeadlineExceeded, ScorerOverloaded, ScorerUnavailable, ScoringRefused
from jobs.scoring_wire import ItemError, ModelSource, ScoreItem, ScoreReply, ScoreRequest, encode_reply
from jobs.settings import Settings
from tests.api.blocking_scorer import blocking

PATIENCE_S = 60.0
NOWHERE = "http://127.0.0.1:9"


def request(pair=0):
    return ScoreRequest(
        policy=ModelSource(path=f"policy {pair}"),
        reference=ModelSource(path="b"),
        items=[ScoreItem(text="c")],
    )


class Replies:
    """A scorer that speaks the wire: it counts, and answers, refuses or breaks as it is told."""

    def __init__(self):
        self.posts, self.counting, self.behaviour = 0, threading.Lock(), "answers"
        self.arrived, self.may_answer = threading.Semaphore(0), threading.Event()
        self.may_answer.set()

    def handle(self, handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        with self.counting:
            self.posts += 1
        self.arrived.release()
        assert self.may_answer.wait(PATIENCE_S)
        if self.behaviour == "breaks":
            handler.connection.close()
        elif self.behaviour == "answers":
            reply = ScoreReply(
                items=[ItemError(code=self.name, detail="")],
                tokenizer_sha256="",
                vocab_size=1,
                weights_dtype="",
            )
            send(handler, 200, encode_reply(reply))
        else:
            status, code = {
                "drains": (503, "draining"),
                "is full": (503, "overloaded"),
                "refuses": (422, "odd"),
                "is late": (504, "deadline_exceeded"),
            }[self.behaviour]
            extra = {"Retry-After": "7"} if self.behaviour == "is full" else {}
            send(handler, status, b'{"code": "%s", "detail": "", "context": {}}' % code.encode(), **extra)


def send(handler, status, body, **headers):
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def listening(replies):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            replies.handle(self)

        def do_GET(self):
            send(self, 200 if replies.behaviour == "answers" else 503, b"{}")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        replies.name = f"http://127.0.0.1:{server.server_port}"
        yield replies
        server.shutdown()


@pytest.fixture
def two():
    with listening(Replies()) as one, listening(Replies()) as other:
        yield one, other


def who(reply):
    return reply.items[0].code


def test_a_pair_stays_with_one_scorer_and_pairs_are_spread(two):
    with blocking(*(one.name for one in two)) as scorer:
        homes = [
            {who(scorer.score(request(pair), timeout_s=PATIENCE_S)) for _ in range(3)} for pair in range(40)
        ]
    assert all(len(home) == 1 for home in homes)
    assert set.union(*homes) == {one.name for one in two}  # by chance the same for all: 2^-39


def test_the_home_of_a_pair_does_not_depend_on_the_order_of_the_urls(two):
    urls = [one.name for one in two]
    with blocking(*urls) as ahead, blocking(*reversed(urls)) as back:
        for pair in range(8):
            asked = request(pair)
            assert who(ahead.score(asked, timeout_s=PATIENCE_S)) == who(back.score(asked, timeout_s=9))


def test_requests_at_once_go_where_fewest_are_in_flight(two):
    for one in two:
        one.may_answer.clear()
    with blocking(*(one.name for one in two)) as scorer, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(scorer.score, request(), timeout_s=PATIENCE_S) for _ in range(8)]
        for one in two:  # all are in flight
            for _ in range(4):
                assert one.arrived.acquire(timeout=PATIENCE_S)
        for one in two:
            one.may_answer.set()
        for future in waiting:
            future.result(PATIENCE_S)
    assert [one.posts for one in two] == [4, 4]


@pytest.mark.parametrize("behaviour", ["breaks", "drains", "is full"])
def test_what_one_scorer_cannot_take_the_other_gets(two, behaviour):
    with blocking(*(one.name for one in two)) as scorer:
        for pair in range(6):
            ailing, well = two if pair % 2 else reversed(two)
            ailing.behaviour, well.behaviour = behaviour, "answers"
            assert who(scorer.score(request(pair), timeout_s=PATIENCE_S)) == well.name
            assert scorer.ready() is True


def test_a_scorer_that_is_not_there_is_not_asked_again_at_once(two):
    one, _ = two
    with blocking(NOWHERE, one.name) as scorer:
        for pair in range(6):
            assert who(scorer.score(request(pair), timeout_s=PATIENCE_S)) == one.name
        assert scorer.ready() is True
        assert scorer.asked._endpoints[0].shunned_until > 0


@pytest.mark.parametrize(("behaviour", "error"), [("refuses", ScoringRefused), ("is late", DeadlineExceeded)])
def test_an_answer_that_another_scorer_would_give_too_is_not_asked_for_twice(two, behaviour, error):
    for one in two:
        one.behaviour = behaviour
    with blocking(*(one.name for one in two)) as scorer, pytest.raises(error):
        scorer.score(request(), timeout_s=PATIENCE_S)
    assert sum(one.posts for one in two) == 1


def test_a_request_that_breaks_two_scorers_spares_the_third(two):
    with listening(Replies()) as third:
        everyone = (*two, third)
        for one in everyone:
            one.behaviour = "breaks"
        with blocking(*(one.name for one in everyone)) as scorer, pytest.raises(ScorerUnavailable):
            scorer.score(request(), timeout_s=PATIENCE_S)
        assert sum(one.posts for one in everyone) == 2


def test_when_all_are_full_or_gone_the_client_may_come_back_to_the_full_one(two):
    two[0].behaviour, two[1].behaviour = "is full", "drains"
    with blocking(*(one.name for one in two), NOWHERE) as scorer:
        with pytest.raises(ScorerOverloaded) as refused:
            scorer.score(request(), timeout_s=PATIENCE_S)
        assert refused.value.retry_after_s == 7
        assert scorer.ready() is False


def test_the_setting_names_several_scorers():
    assert Settings(scorer_url="http://a:1, unix:/b ,").scorer_urls == ["http://a:1", "unix:/b"]


def test_each_key_is_a_client_of_its_own(keyed_client, new_key, scorer, answering):
    one, other = new_key(), new_key()
    for headers in (one, other, one):
        assert keyed_client.post("/v1/scores", json={"input": "ab"}, headers=headers).status_code == 200
    clients = [asked.client for asked in scorer.requests]
    assert clients[0] == clients[2] != clients[1]
    assert all(clients)
