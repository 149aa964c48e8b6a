import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from api.schemas_scores import ScoresRequest
from kleash.cli import app
from kleash.score_options import ScoreOptions
from tests.kleash.scripted import Service, a_finding, a_job, a_score, problem


def kleash(service: Service, *arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(app, [*arguments, "--url", service.url], input=given)


def test_score_prints_the_text_its_numbers_and_the_sums(service: Service) -> None:
    service.answers = [(200, {}, {"data": [a_score()]})]
    done = kleash(service, "score", "Oh certainly", "--policy", "job_1@final", "--reference", "base")
    assert done.exit_code == 0
    assert "Σ k1 = +1.609 nats" in done.stdout
    assert service.asked[0].body == {"input": ["Oh certainly"], "policy": "job_1@final", "reference": "base"}


def test_score_has_the_options_of_a_request(service: Service) -> None:
    """What is not said is left to the service; the names are those of ScoreOptions, which the API's schema has."""
    service.answers = [(200, {}, {"data": [a_score()]})]
    said = (
        "--policy p --reference r --temperature 0.5 --quantity kl --quantity js --top-k 3 --no-per-token "
        "--sampled-from policy --reward 1.5 --beta 0.1 --no-special --truncation left --vocab-mismatch intersect "
        "--numerics strict --offsets utf16 --encoding base64 --attribution --timeout 5 --metadata team=rl --json"
    )
    assert kleash(service, "score", "x", *said.split()).exit_code == 0
    body = service.asked[0].body
    assert body == {
        "input": ["x"],
        "policy": "p",
        "reference": "r",
        "temperature": 0.5,
        "quantities": ["kl", "js"],
        "top_k": 3,
        "per_token": False,
        "sampled_from": "policy",
        "reward": [1.5],
        "beta": 0.1,
        "add_special_tokens": False,
        "truncation": "left",
        "vocab_mismatch": "intersect",
        "numerics": "strict",
        "offsets": "utf16",
        "encoding_format": "base64",
        "attribution": True,
        "request_timeout_s": 5.0,
        "metadata": {"team": "rl"},
    }
    assert (
        set(body) - {"input"}
        == set(ScoreOptions.__annotations__)
        == set(ScoresRequest.model_fields) - {"input"}
    )


@pytest.mark.parametrize("option", ["--offsets=utf16", "--encoding=base64", "--attribution"])
def test_what_cannot_be_drawn_needs_json(service: Service, option: str) -> None:
    done = kleash(service, "score", "x", option)
    assert done.exit_code == 2
    assert "--json" in done.stderr
    assert not service.asked


def test_score_shows_sums_alone_and_the_items_that_carry_the_kl(service: Service) -> None:
    alone = a_score() | {"tokens": None, "sums": {"js": 0.25}, "warnings": ["non_finite_logits"]}
    top = {"k": 2, "text": [None, ["A", "\x1b"]], "kl_term": [None, [0.3, 0.1]], "kl_rest": [None, 0.0125]}
    service.answers = [(200, {}, {"data": [alone, a_score() | {"top": top, "adjusted_reward": 1.5}]})]
    shown = kleash(service, "score", "Oh certainly", "Oh certainly").stdout
    assert "1 tokens scored   Σ js = 0.2500   non_finite_logits" in shown
    assert "A 0.3000   ␛ 0.1000" in shown
    assert "0.0125" in shown
    assert "adjusted reward = 1.5000" in shown


def test_score_takes_a_prompt_and_standard_input(service: Service) -> None:
    service.answers = [(200, {}, {"data": [a_score()]})]
    done = kleash(service, "score", "-", "--prompt", "Oh ", given="certainly")
    assert "Oh certainly(+1.6)" in done.stdout
    assert service.asked[0].body == {"input": [{"prompt": "Oh ", "completion": "certainly"}]}


def test_a_text_that_could_not_be_scored_shows_in_the_exit_code(service: Service) -> None:
    service.answers = [(200, {}, {"data": [{"error": {"code": "input_too_long", "detail": "long"}}]})]
    assert kleash(service, "score", "x").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "document"),
    [
        (["score", "x"], {"data": [a_score("\x1b[2J")]}),
        (["jobs", "list"], {"data": [a_job()], "has_more": False}),
        (["jobs", "show", "job_0"], a_job()),
        (["jobs", "pause", "job_0"], a_job("pausing")),
        (["jobs", "resume", "job_0"], a_job("queued")),
        (["jobs", "cancel", "job_0"], a_job("cancelling")),
        (["jobs", "watch", "job_0"], a_job("succeeded", 4)),
    ],
)
def test_json_is_the_service_s_document_on_one_line(
    service: Service, arguments: list[str], document: dict[str, object]
) -> None:
    service.answers = [(200, {}, document)]
    done = kleash(service, *arguments, "--json")
    assert done.exit_code == 0
    assert done.stdout.count("\n") == 1
    assert "\x1b" not in done.stdout
    assert json.loads(done.stdout) == document


@pytest.mark.parametrize(
    ("action", "status"), [("pause", "pausing"), ("resume", "queued"), ("cancel", "cancelling")]
)
def test_a_request_goes_to_its_own_address_and_shows_where_the_job_stands(
    service: Service, action: str, status: str
) -> None:
    service.answers = [(200, {}, a_job(status))]
    done = kleash(service, "jobs", action, "job_0")
    assert (done.exit_code, done.stdout) == (0, f"job_0  {status}\n")
    assert (service.asked[0].method, service.asked[0].path) == ("POST", f"/v1/jobs/job_0/{action}")
    assert service.asked[0].body is None


@pytest.mark.parametrize("action", ["pause", "cancel"])
def test_a_reason_is_sent_and_shown_without_steering_the_terminal(service: Service, action: str) -> None:
    service.answers = [(200, {}, a_job()), (200, {}, a_job("paused", reason="too \x1b[2Jslow"))]
    assert kleash(service, "jobs", action, "job_0", "--reason", "too slow").exit_code == 0
    assert service.asked[0].body == {"reason": "too slow"}
    assert "reason: too ␛[2Jslow" in kleash(service, "jobs", "show", "job_0").stdout


def test_a_job_is_shown_with_every_default_if_asked(service: Service) -> None:
    service.answers = [(200, {}, a_job("queued", resolved_config={"seed": 7}))]
    assert '"seed": 7' in kleash(service, "jobs", "show", "job_0", "--resolved").stdout
    assert service.asked[0].path.endswith("job_0?include=resolved_config")


def test_a_cancel_may_say_how_the_process_ends(service: Service) -> None:
    service.answers = [(202, {}, a_job("cancelling"))] * 2
    assert kleash(service, "jobs", "cancel", "job_0", "--save", "--grace", "90").exit_code == 0
    assert kleash(service, "jobs", "cancel", "job_0", "--no-save").exit_code == 0
    assert [asked.body for asked in service.asked] == [
        {"save_checkpoint": True, "grace_period_s": 90.0},
        {"save_checkpoint": False},
    ]


def test_create_sends_the_file_and_prints_the_id(service: Service, tmp_path: Path) -> None:
    spec = {"type": "ppo", "config": {"seed": 3}}
    (tmp_path / "job.json").write_text(json.dumps(spec))
    service.answers = [(201, {}, a_job("queued"))]
    done = kleash(service, "jobs", "create", str(tmp_path / "job.json"), "--idempotency-key", "k")
    assert (done.exit_code, done.stdout) == (0, "job_0\n")
    assert service.asked[0].body == spec
    assert service.asked[0].headers["idempotency-key"] == "k"


def test_create_and_watch_follows_it_to_its_end(service: Service) -> None:
    service.answers = [(201, {}, a_job("queued")), (200, {}, a_job("succeeded", 4))]
    done = kleash(service, "jobs", "create", "-", "--watch", given="{}")
    assert done.exit_code == 0
    assert done.stdout == "succeeded  step 4/4  reward +0.250  KL/seq 1.50\n"


def test_a_finding_is_shown_and_while_watching_told_once(service: Service) -> None:
    first, second = a_finding(), a_finding("eos_lost")
    service.answers = [(200, {}, a_job("running", 2, diagnosis=[first]))]
    assert kleash(service, "jobs", "show", "job_0").stdout.count("! kl_off_target: ") == 1

    service.asked.clear()
    service.answers = [
        (200, {}, a_job("running", 2, diagnosis=[first])),
        (200, {}, a_job("running", 3, diagnosis=[first | {"value": 2.6}, second])),
        (200, {}, a_job("succeeded", 4, diagnosis=[first])),
    ]
    watched = kleash(service, "jobs", "watch", "job_0").stdout.splitlines()
    assert [line.split(":")[0].split(" ")[0:2] for line in watched] == [
        ["running", ""],
        ["!", "kl_off_target"],
        ["running", ""],
        ["!", "eos_lost"],
        ["succeeded", ""],
    ]


def test_a_spec_that_is_not_json_never_leaves(service: Service) -> None:
    done = kleash(service, "jobs", "create", "-", given="{")
    assert done.exit_code == 2
    assert "is not JSON" in done.stderr
    assert service.asked == []


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_watching_a_job_that_does_not_succeed_exits_with_1(service: Service, end: str) -> None:
    service.answers = [(200, {}, a_job(end))]
    assert kleash(service, "jobs", "watch", "job_0").exit_code == 1


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (401, "unauthenticated", 4),
        (403, "insufficient_scope", 4),
        (404, "not_found", 2),
        (409, "invalid_state", 2),
        (422, "validation_error", 2),
        (500, "internal", 3),
        (503, "scorer_unavailable", 3),
    ],
)
def test_a_refusal_is_told_clearly_and_has_an_exit_code(
    service: Service, status: int, code: str, exit_code: int
) -> None:
    field = {"pointer": "/a", "code": "missing", "detail": "is\x1b missing"}
    service.answers = [problem(status, code, "what is\x1b wrong", errors=[field], request_id="req_1")]
    done = kleash(service, "jobs", "show", "job_0")
    assert (done.exit_code, done.stdout) == (exit_code, "")
    assert done.stderr == f"kleash: what is␛ wrong ({code})\n  /a: is␛ missing\n"
    as_json = kleash(service, "jobs", "show", "job_0", "--json")
    assert as_json.exit_code == exit_code
    assert json.loads(as_json.stderr)["error"] == {
        "code": code,
        "detail": "what is\x1b wrong",
        "status": status,
        "errors": [field],
        "request_id": "req_1",
        "retryable": False,
    }


def test_nobody_there_exits_with_3() -> None:
    done = CliRunner().invoke(app, ["jobs", "list", "--url", "http://127.0.0.1:1"])
    assert done.exit_code == 3
    assert "no answer from http://127.0.0.1:1" in done.stderr


def test_wrong_usage_exits_with_2() -> None:
    assert CliRunner().invoke(app, ["jobs", "show"]).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["score", "x", "--temperature", "nan"], "invalid_request"),
        (["score", "\udcff"], "invalid_request"),  # how Python shows an argument that is not UTF-8
        (["score", "x", "--url", "http://[::1"], "invalid_url"),
        (["score", "x", "--url", "localhost:8000"], "invalid_url"),
        (["score", "x", "--key", "kl_é"], "invalid_key"),
        (["score", "x", "--key", "kl_a\nb"], "invalid_key"),
    ],
)
def test_what_cannot_be_sent_is_wrong_usage(service: Service, arguments: list[str], code: str) -> None:
    url = [] if "--url" in arguments else ["--url", service.url]
    done = CliRunner().invoke(app, [*arguments, *url, "--json"])
    assert done.exit_code == 2, done.exception
    assert json.loads(done.stderr)["error"]["code"] == code
    assert service.asked == []


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (b'{"config": NaN}', "invalid_request"),
        (b"\xff\xfe", "malformed_json"),
        (b"[" * 100_000, "malformed_json"),
    ],
)
def test_a_job_file_that_cannot_be_sent_is_wrong_usage(
    service: Service, tmp_path: Path, given: bytes, code: str
) -> None:
    (tmp_path / "job.json").write_bytes(given)
    done = kleash(service, "jobs", "create", str(tmp_path / "job.json"), "--json")
    assert done.exit_code == 2, done.exception
    assert json.loads(done.stderr)["error"]["code"] == code
    assert service.asked == []


def test_standard_input_that_is_no_text_is_wrong_usage(service: Service) -> None:
    done = CliRunner().invoke(app, ["score", "-", "--url", service.url], input=b"\xff")
    assert done.exit_code == 2, done.exception


def test_an_answer_that_is_no_document_is_the_service_s_fault(service: Service) -> None:
    service.answers = [(200, {}, None)]
    done = kleash(service, "jobs", "show", "job_0")
    assert done.exit_code == 3, done.exception
    assert "unexpected_answer" in done.stderr
