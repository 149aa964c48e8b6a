"""The scorer's HTTP edge on real sockets, with the batcher's thread held back."""

import socket
import threading

import pytest

from jobs.scoring_wire import decode_reply
from tests.worker.scorer.bench import (
    PATIENCE_S,
    drain,
    in_background,
    request,
    serving,
    settings_for,
    wait_until,
)


def test_two_clients_at_once_are_answered_from_one_batch(tmp_path, tiny, batcher):
    with serving(batcher, settings_for(tmp_path, tiny), tmp_path) as (client, _):
        bodies = [request(tiny, text).model_dump_json() for text in ("the cat sat", "the dog sat")]
        posts = [in_background(lambda body=body: client.post("/score", content=body)) for body in bodies]
        wait_until(lambda: batcher.stats().waiting_requests == 2)
        batcher.step()
        replies = [decode_reply(post.result(PATIENCE_S).content) for post in posts]
    assert batcher.stats().batches == 1
    assert replies[0].items[0].token_ids.tolist() != replies[1].items[0].token_ids.tolist()
    assert (replies[0].weights_dtype, len(replies[0].tokenizer_sha256)) == ("float32", 64)


def test_a_full_queue_answers_503_with_retry_after(tmp_path, tiny, batcher):
    with serving(batcher, settings_for(tmp_path, tiny), tmp_path) as (client, _):
        body = request(tiny, "x" * 1497).model_dump_json()
        waiting = in_background(lambda: client.post("/score", content=body))
        wait_until(lambda: batcher.stats().waiting_requests == 1)
        refused = client.post("/score", content=body)
        drain(batcher)
        assert waiting.result(PATIENCE_S).status_code == 200
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["code"] == "overloaded"


def test_a_client_that_leaves_is_dropped_from_the_queue(tmp_path, tiny, batcher):
    with serving(batcher, settings_for(tmp_path, tiny), tmp_path) as (_, path):
        body = request(tiny, "the cat sat").model_dump_json().encode()
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(path)
            raw.sendall(b"POST /score HTTP/1.1\r\nHost: s\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            wait_until(lambda: batcher.stats().waiting_requests == 1)
        wait_until(lambda: batcher.stats().waiting_requests == 0)
    assert batcher.stats().abandoned_requests == 1


def test_a_request_past_its_deadline_is_dropped(tmp_path, tiny, batcher):
    with serving(batcher, settings_for(tmp_path, tiny), tmp_path) as (client, _):
        late = client.post(
            "/score", content=request(tiny, "the cat").model_dump_json(), headers={"timeout-s": "0.05"}
        )
    assert late.status_code == 504
    assert late.json()["code"] == "deadline_exceeded"
    spent = late.json()["context"]
    assert spent["queue"] > 0.04  # a timer may be a millisecond early
    assert spent["compute"] == spent["tokenize"] == 0
    assert batcher.stats().expired_requests == 1
    assert batcher.stats().queued_tokens == 0


def test_readiness_is_not_health(tmp_path, tiny, batcher):
    ready = threading.Event()
    with serving(batcher, settings_for(tmp_path, tiny), tmp_path, ready=ready) as (client, _):
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        ready.set()
        assert client.get("/ready").status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"items": [], "exec": 1}'])
def test_what_is_no_request_is_refused(tmp_path, tiny, batcher, body):
    with serving(batcher, settings_for(tmp_path, tiny), tmp_path) as (client, _):
        refused = client.post("/score", content=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "validation_error")
