import socket
from pathlib import Path

import pytest

from kleash import Client, KleashError
from kleash.operations import jobs, models
from tests.kleash.scripted import Service, a_job, problem


def test_each_created_job_carries_its_own_idempotency_key_unless_given(service: Service) -> None:
    service.answers = [(201, {}, a_job())]
    with Client(service.url) as client:
        client.jobs.create({"config": {}})
        client.jobs.create({"config": {}})
        client.jobs.create({"config": {}}, idempotency_key="mine")
    first, second, third = (asked.headers["idempotency-key"] for asked in service.asked)
    assert len({first, second, third}) == 3
    assert third == "mine"


def test_a_retry_of_an_overloaded_service_repeats_the_same_key(service: Service) -> None:
    busy = (503, {"Retry-After": "0"}, {"code": "overloaded", "detail": "the queue is full"})
    service.answers = [busy, busy, (201, {}, a_job())]
    with Client(service.url) as client:
        assert client.jobs.create({"config": {}})["id"] == "job_0"
    assert len(service.asked) == 3
    assert len({asked.headers["idempotency-key"] for asked in service.asked}) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (503, {}, {"code": "draining", "detail": "going away"}),
        (503, {"Retry-After": "3600"}, {"code": "overloaded", "detail": "full"}),
        (422, {"Retry-After": "0"}, {"code": "validation_error", "detail": "no"}),
        (500, {"Retry-After": "0"}, {"code": "internal", "detail": "no"}),
    ],
)
def test_nothing_else_is_tried_again(service: Service, answer: tuple[int, dict[str, str], object]) -> None:
    service.answers = [answer]
    with Client(service.url) as client, pytest.raises(KleashError) as error:
        client.models.list()
    assert error.value.status == answer[0]
    assert len(service.asked) == 1


def test_a_service_that_stays_overloaded_ends_in_its_problem(service: Service) -> None:
    service.answers = [(429, {"Retry-After": "0"}, {"code": "rate_limited", "detail": "slow down"})]
    with Client(service.url) as client, pytest.raises(KleashError, match=r"slow down \(rate_limited\)"):
        client.models.list()
    assert len(service.asked) == 4


def test_a_problem_document_becomes_one_exception(service: Service) -> None:
    field = {"pointer": "/config/kl/beta", "code": "greater_than_equal", "detail": "must be >= 0"}
    service.answers = [problem(422, "validation_error", "the request does not fit", errors=[field])]
    with Client(service.url) as client, pytest.raises(KleashError) as error:
        client.jobs.create({})
    assert (error.value.status, error.value.code) == (422, "validation_error")
    assert error.value.errors == (field,)
    assert "/config/kl/beta: must be >= 0" in str(error.value)


def test_an_answer_that_is_no_problem_document_is_still_a_kleash_error(service: Service) -> None:
    service.answers = [(502, {}, ["not", "ours"])]
    with Client(service.url) as client, pytest.raises(KleashError) as error:
        client.models.list()
    assert (error.value.status, error.value.code) == (502, "unexpected_answer")


@pytest.mark.parametrize("answer", [(200, {}, ["a", "list"]), (200, {}, None), (204, {}, None)])
def test_a_success_that_is_no_json_object_is_a_kleash_error_too(
    service: Service, answer: tuple[int, dict[str, str], object]
) -> None:
    service.answers = [answer]
    with Client(service.url) as client:
        for ask in (client.models.list, lambda: client.jobs.wait("job_0")):
            with pytest.raises(KleashError) as error:
                ask()
            assert (error.value.status, error.value.code) == (answer[0], "unexpected_answer")


def test_nobody_there_is_unreachable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Client(url) as client, pytest.raises(KleashError) as error:
            client.models.list()
    assert (error.value.status, error.value.code) == (0, "unreachable")


@pytest.mark.parametrize("key", ["a\nb", "é"])
def test_a_key_that_no_header_can_carry_is_not_sent(service: Service, key: str) -> None:
    with Client(service.url) as client, pytest.raises(KleashError) as error:
        client.jobs.create({}, idempotency_key=key)
    assert (error.value.code, service.asked) == ("invalid_request", [])


def test_a_slow_answer_is_not_asked_for_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as slow:
        url = f"http://127.0.0.1:{slow.getsockname()[1]}"
        with Client(url, timeout_s=0.05) as client, pytest.raises(KleashError) as error:
            client.scores.create("a text")
        assert (error.value.status, error.value.code, error.value.retryable) == (0, "timeout", True)
        slow.accept()[0].close()
        slow.settimeout(0.05)
        with pytest.raises(TimeoutError):
            slow.accept()


def test_watch_polls_with_the_etag_and_yields_each_version_once(service: Service) -> None:
    service.answers = [
        (200, {"ETag": '"1"'}, a_job("queued")),
        (304, {"ETag": '"1"'}, None),
        (304, {"ETag": '"1"'}, None),
        (200, {"ETag": '"2"'}, a_job("running", 1)),
        (200, {"ETag": '"3"'}, a_job("succeeded", 4)),
    ]
    with Client(service.url) as client:
        seen = [job["status"] for job in client.jobs.watch("job_0", every_s=0)]
    assert seen == ["queued", "running", "succeeded"]
    tags = [asked.headers.get("if-none-match") for asked in service.asked]
    assert tags == [None, '"1"', '"1"', '"1"', '"2"']


def test_wait_returns_the_end_whatever_it_is_or_times_out(service: Service) -> None:
    service.answers = [(200, {"ETag": '"1"'}, a_job()), (200, {"ETag": '"2"'}, a_job("failed"))]
    with Client(service.url) as client:
        assert client.jobs.wait("job_0", every_s=0)["status"] == "failed"
        service.answers = [(200, {}, a_job())]
        with pytest.raises(TimeoutError, match="job_0 is not done"):
            client.jobs.wait("job_0", every_s=0, timeout_s=0)


def test_the_key_of_this_machine_goes_to_this_machine_only(service: Service, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("kl_id_secret\n")
    service.answers = [(200, {}, {})]
    with Client(service.url, data=tmp_path) as client:
        client.models.list()
    assert service.asked[0].headers["authorization"] == "Bearer kl_id_secret"
    with Client("http://elsewhere.invalid", data=tmp_path) as client:
        assert "authorization" not in client._http.headers


def test_a_given_key_wins_and_no_key_sends_none(service: Service, tmp_path: Path) -> None:
    service.answers = [(200, {}, {})]
    with Client(service.url, "kl_given", data=tmp_path) as client:
        client.models.list()
    with Client(service.url, data=tmp_path) as client:
        client.models.list()
    assert service.asked[0].headers["authorization"] == "Bearer kl_given"
    assert "authorization" not in service.asked[1].headers


def test_scores_leave_out_what_was_not_given(service: Service) -> None:
    service.answers = [(200, {}, {"data": []})]
    with Client(service.url) as client:
        client.scores.create("a text", temperature=0.7)
    assert service.asked[0].body == {"input": "a text", "temperature": 0.7}


@pytest.mark.parametrize("job_id", ["", "../keys", "job_0/cancel", "job_0?x", "job 0"])
def test_an_id_cannot_name_another_address(job_id: str) -> None:
    with pytest.raises(KleashError):
        _ = jobs.get(job_id).url


@pytest.mark.parametrize("model_id", ["", "..", "a/../b", "a//b", "/a", "\udcff"])
def test_a_model_s_name_has_slashes_and_no_way_up(model_id: str) -> None:
    with pytest.raises(KleashError):
        _ = models.get(model_id).url
    assert models.load("org/base@v 1?").url == "/v1/models/org/base@v%201%3F/load"


def test_scores_take_every_form_of_an_item_and_send_only_what_is_given(service: Service) -> None:
    service.answers = [(200, {}, {"data": []})]
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with Client(service.url) as client:
        client.scores.create([1, 2, 3])
        client.scores.create(["a", [4, 5], chat], top_k=0, attribution=True, numerics="strict")
        client.scores.create("a", policy="p", truncation="left", offsets="utf16", reward=1.0, beta=0.5)
    assert [asked.body for asked in service.asked] == [
        {"input": [1, 2, 3]},
        {"input": ["a", [4, 5], chat], "top_k": 0, "attribution": True, "numerics": "strict"},
        {
            "input": "a",
            "policy": "p",
            "truncation": "left",
            "offsets": "utf16",
            "reward": 1.0,
            "beta": 0.5,
        },
    ]
