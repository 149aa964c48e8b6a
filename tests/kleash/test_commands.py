"""The command's nouns against a scripted service, and `kleash doctor`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from kleash.cli import app
from kleash.commands import doctor
from tests.kleash.scripted import Answer, Service, a_job, a_score, problem

STEER = "\x1b[2J\u202e"  # clears the screen, turns the writing round


def kleash(service: Service, *arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(app, [*arguments, "--url", service.url], input=given)


def page(*entries: dict[str, Any], more: bool = False) -> dict[str, Any]:
    return {"data": list(entries), "has_more": more, "next_cursor": "c1" if more else None}


EVENT = {"seq": 3, "level": "info", "type": "log", "message": STEER, "created_at": "t"}
SAMPLE = {
    "step": 1,
    "kind": "eval",
    "index": 0,
    "prompt": STEER,
    "completion": STEER,
    "data": {"reward": 0.5},
}
CURVE = {"points": [{"step": 1, "kl": 4.0, "d": 2.0, "reward": 0.5}], "fit": None}
FRONTIER = dict.fromkeys(("proxy", "gold", "held_out", "held_out_gold"), CURVE)
TOKENS = {"tokens": {"ids": [1], "text": [STEER], "start": [0], "end": [3], "special": [False]}}
ROWS = b'{"step": 1, "metrics": {"kl/sequence": 1.5}}\n{"step": 2, "metrics": {}}\n'


@pytest.mark.parametrize(
    ("arguments", "answer", "asked", "shown"),
    [
        (
            ["jobs", "list", "--status", "failed", "--status", "paused", "--metadata", "a=b"],
            page(),
            "GET /v1/jobs?status=failed&status=paused&metadata%5Ba%5D=b&limit=20",
            "id",
        ),
        (["jobs", "wait", "job_0"], a_job("succeeded"), "GET /v1/jobs/job_0", "job_0  succeeded"),
        (["jobs", "update", "job_0", "--priority", "7"], a_job(), "PATCH /v1/jobs/job_0", "job_0  running"),
        (["jobs", "delete", "job_0"], None, "DELETE /v1/jobs/job_0", "job_0  deleted"),
        (["jobs", "events", "job_0"], page(EVENT), "GET /v1/jobs/job_0/events?limit=100", "␛[2J\\u{202e}"),
        (
            ["jobs", "samples", "job_0", "--order-by", "kl", "--desc"],
            page(SAMPLE),
            "GET /v1/jobs/job_0/samples?tokens=false&limit=100&order=desc&order_by=kl",
            "␛[2J",
        ),
        (
            ["jobs", "metrics", "job_0", "--keys", "kl/*"],
            ROWS,
            "GET /v1/jobs/job_0/metrics?format=jsonl&keys=kl%2F%2A",
            "step\tkl/sequence\n1\t1.5\n2\t\n",
        ),
        (
            ["jobs", "logs", "job_0", "--tail", "2"],
            page({"text": STEER}),
            "GET /v1/jobs/job_0/logs?tail=2",
            "␛[2J",
        ),
        (["jobs", "results", "job_0"], b'{"index": 0}', "GET /v1/jobs/job_0/results", '{"index": 0}'),
        (
            ["jobs", "checkpoints", "job_0"],
            page({"id": "ckpt_0", "bytes": 9}),
            "GET /v1/jobs/job_0/checkpoints",
            "ckpt_0",
        ),
        (
            ["jobs", "artifacts", "job_0"],
            page({"kind": "log", "name": STEER}),
            "GET /v1/jobs/job_0/artifacts",
            "␛[2J",
        ),
        (["jobs", "frontier", "job_0"], FRONTIER, "GET /v1/jobs/job_0/frontier", "proxy\t1\t4\t2\t0.5\n"),
        (["checkpoints", "show", "ckpt_0"], {"id": "ckpt_0"}, "GET /v1/checkpoints/ckpt_0", "ckpt_0"),
        (["checkpoints", "pin", "ckpt_0"], {"pinned": True}, "PATCH /v1/checkpoints/ckpt_0", "pinned  yes"),
        (["checkpoints", "unpin", "ckpt_0"], {"pinned": False}, "PATCH /v1/checkpoints/ckpt_0", "pinned  no"),
        (["checkpoints", "delete", "ckpt_0"], None, "DELETE /v1/checkpoints/ckpt_0", "ckpt_0  deleted"),
        (["checkpoints", "download", "ckpt_0"], b"tar", "GET /v1/checkpoints/ckpt_0/archive", "tar"),
        (
            ["checkpoints", "download", "ckpt_0", "--file", "a/config.json"],
            b"file",
            "GET /v1/checkpoints/ckpt_0/files/a/config.json",
            "file",
        ),
        (["queue"], {"waiting": 2}, "GET /v1/queue", "waiting  2"),
        (["workers"], page({"id": "w0", "state": STEER}), "GET /v1/workers", "␛[2J"),
        (["tokenize", "Oh "], {"data": [TOKENS]}, "POST /v1/tokenize", "␛[2J"),
        (["detokenize", "1", "2"], {"data": [{"text": STEER}]}, "POST /v1/detokenize", "␛[2J"),
        (["files", "list"], page({"id": "file_0", "name": STEER}), "GET /v1/files?limit=20", "␛[2J"),
        (["files", "show", "file_0"], {"id": "file_0", "lines": 2}, "GET /v1/files/file_0", "lines  2"),
        (["files", "download", "file_0"], b"line\n", "GET /v1/files/file_0/content", "line\n"),
        (["files", "delete", "file_0"], None, "DELETE /v1/files/file_0", "file_0  deleted"),
        (["info"], {"version": "1", "limits": {"top_k": 20}}, "GET /v1/info", "limits.top_k  20"),
        (["models", "list"], page({"id": "base", "default_for": ["policy"]}), "GET /v1/models", "base"),
        (["models", "show", "org/base"], {"id": "org/base"}, "GET /v1/models/org/base", "org/base"),
        (["models", "load", "base"], {"state": "loading"}, "POST /v1/models/base/load", "loading"),
        (["models", "unload", "base"], {"state": "loaded"}, "POST /v1/models/base/unload", "loaded"),
        (
            ["keys", "create", "ci", "--scope", "score"],
            {"id": "k0", "key": "kl_k0_s"},
            "POST /v1/api-keys",
            "kl_k0_s\n",
        ),
        (["keys", "list"], page({"id": "k0", "scopes": ["score"]}), "GET /v1/api-keys?limit=20", "k0"),
        (["keys", "revoke", "k0"], None, "DELETE /v1/api-keys/k0", "k0  revoked"),
        (["keys", "whoami"], {"owner": "me", "key": None}, "GET /v1/whoami", "owner  me"),
        (
            ["webhooks", "create", "https://a.example"],
            {"id": "wh_0", "secret": "whsec_s"},
            "POST /v1/webhooks",
            "whsec_s\n",
        ),
        (
            ["webhooks", "update", "wh_0", "--disable"],
            {"enabled": False},
            "PATCH /v1/webhooks/wh_0",
            "enabled  no",
        ),
        (
            ["webhooks", "redeliver", "wh_0", "msg_0"],
            {"id": "msg_0"},
            "POST /v1/webhooks/wh_0/deliveries/msg_0/redeliver",
            "msg_0",
        ),
    ],
)
def test_a_verb_asks_its_address_and_shows_nothing_that_steers_a_terminal(
    service: Service, arguments: list[str], answer: Any, asked: str, shown: str
) -> None:
    service.answers = [(200, {}, answer)]
    done = kleash(service, *arguments)
    assert done.exit_code == 0, done.output
    assert shown in done.output
    assert not set(STEER) & {"\x1b", "\u202e"} & set(done.output)
    assert f"{service.asked[0].method} {service.asked[0].path}" == asked
    if isinstance(answer, dict):
        as_json = kleash(service, *arguments, "--json").stdout
        assert as_json.isascii()
        assert json.loads(as_json.splitlines()[0]) in (answer, *answer.get("data", ()))


def test_a_dry_run_creates_nothing(service: Service) -> None:
    config = {"model": {"name": STEER}}
    found = {"resolved_config": config, "warnings": ["It is long."], "estimate": {"steps": 4, "tokens": None}}
    service.answers = [(200, {}, found)]
    done = kleash(service, "jobs", "create", "-", "--dry-run", given="{}")
    assert done.output.splitlines()[-3:] == ["steps   4", "tokens  –", "! It is long."]
    assert "\\u001b[2J" in done.output, "JSON spells it"
    assert service.asked[0].path == "/v1/jobs?dry_run=true"


def test_divergences_are_of_a_request_in_json(service: Service) -> None:
    service.answers = [(200, {}, {"object": "divergence", "kl": 0.5})]
    assert kleash(service, "divergences", "-", given='{"policy": {}}').stdout == "kl  0.5\n"
    assert (service.asked[0].path, service.asked[0].body) == ("/v1/divergences", {"policy": {}})
    assert kleash(service, "divergences", "-", given="{").exit_code == 2


def test_a_list_says_that_there_is_more(service: Service) -> None:
    service.answers = [(200, {}, page(a_job(), more=True))]
    assert kleash(service, "jobs", "list").stderr == "more: --after c1\n"


def test_documents_in_a_document_have_a_line_each(service: Service) -> None:
    service.answers = [(200, {}, {"waiting": 2, "queues": [{"name": "cpu"}, {"name": "gpu"}], "more": []})]
    shown = 'waiting  2\nqueues\n    {"name": "cpu"}\n    {"name": "gpu"}\nmore     \n'
    assert kleash(service, "queue").stdout == shown


def test_wait_says_by_its_exit_code_how_it_ended(service: Service) -> None:
    service.answers = [(200, {}, a_job("failed"))]
    assert kleash(service, "jobs", "wait", "job_0").exit_code == 1
    service.answers = [(200, {}, a_job())]
    late = kleash(service, "jobs", "wait", "job_0", "--timeout", "0")
    assert (late.exit_code, "not done after" in late.stderr) == (1, True)


def test_a_file_is_uploaded_as_it_is(service: Service, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'"a"\n')
    service.answers = [(201, {}, {"id": "file_0"})]
    done = kleash(service, "files", "create", str(tmp_path / "p.jsonl"), "--purpose", "prompts")
    assert done.stdout == "file_0\n"
    sent = service.asked[0]
    assert (sent.path, sent.body) == ("/v1/files?name=p.jsonl&purpose=prompts", b'"a"\n')
    assert sent.headers["content-type"] == "application/jsonl"
    assert sent.headers["idempotency-key"]


def test_what_is_downloaded_appears_whole_or_not_at_all(service: Service, tmp_path: Path) -> None:
    service.answers = [(200, {}, b"tar")]
    kleash(service, "checkpoints", "download", "ckpt_0", "-o", str(tmp_path / "a.tar"))
    assert (tmp_path / "a.tar").read_bytes() == b"tar"
    service.answers = [problem(404, "not_found", "gone")]
    assert kleash(service, "checkpoints", "download", "ckpt_0", "-o", str(tmp_path / "b.tar")).exit_code == 2
    assert not (tmp_path / "b.tar").exists()


def test_bytes_of_others_do_not_reach_a_terminal(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kleash.commands.session._at_terminal", lambda: True)
    service.answers = [(200, {}, STEER.encode())]
    done = kleash(service, "files", "download", "file_0")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "-o" in done.stderr


def test_scores_of_a_file_come_as_a_stream(service: Service, tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text('"Oh certainly"\n\n{"prompt": "Oh ", "completion": "certainly"}\n')
    summary = {"complete": True, "failed": 0, "missing": 0}
    lines = [a_score(), a_score() | {"index": 1}, summary]
    service.answers = [(200, {}, "\n".join(map(json.dumps, lines)).encode())]
    done = kleash(service, "score", "-f", str(items), "--stream")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("Σ k1 = +1.609 nats") == 2
    assert done.stdout.endswith("2 items, 0 failed, 0 missing\n")
    assert service.asked[0].body == {"input": ["Oh certainly", {"prompt": "Oh ", "completion": "certainly"}]}


@pytest.mark.parametrize(
    "lines",
    [
        [a_score()],
        [a_score(), {"complete": False}],
        [{"index": 0, "error": {"code": "x", "detail": "y"}}, {"complete": True}],
    ],
)
def test_a_stream_that_lacks_items_shows_in_the_exit_code(service: Service, lines: list[Any]) -> None:
    service.answers = [(200, {}, "\n".join(map(json.dumps, lines)).encode())]
    assert kleash(service, "score", "x", "--stream").exit_code == 2


def test_logs_are_followed_to_the_last_line(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kleash.commands.job_data.EVERY_S", 0)
    rest = {"has_more": False, "next_cursor": "1.9"}
    service.answers = [
        (200, {}, {"data": [{"text": "a"}], **rest}),
        (200, {}, {"data": [], **rest}),
        (200, {}, a_job("running")),
        (200, {}, {"data": [{"text": "b"}], **rest}),
        (200, {}, {"data": [], **rest}),
        (200, {}, a_job("succeeded")),
        (200, {}, {"data": [{"text": "c"}], **rest}),
    ]
    assert kleash(service, "jobs", "logs", "job_0", "--follow").stdout == "a\nb\nc\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["jobs", "update", "job_0"],
        ["jobs", "list", "--metadata", "a"],
        ["jobs", "events", "job_0", "--level", "debug"],
        ["score", "a text", "--file", "-"],
        ["webhooks", "update", "wh_0"],
        ["keys", "create", "ci", "--scope", "score", "--expires-in", "soon"],
    ],
)
def test_what_says_nothing_never_leaves(service: Service, arguments: list[str]) -> None:
    assert kleash(service, *arguments).exit_code == 2
    assert service.asked == []


WELL: list[Answer] = [
    (200, {}, {"name": "kleash", "version": "0.1.0"}),
    (200, {}, {"status": "ready", "checks": {"database": "ok", "broker": "ok", "scorer": "ok"}}),
    (200, {}, {"owner": "me", "scopes": ["score"], "key": {"expires_at": None}}),
    (200, {}, page({"id": "base", "state": "loaded"})),
    (200, {}, page({"state": "idle"}, {"state": "stale"})),
]


@pytest.mark.parametrize(
    ("place", "answer", "exit_code", "found"),
    [
        (0, WELL[0], 0, "1 alive, 1 stale"),
        (0, (200, {}, {"name": "other", "version": "1"}), 1, "service    other 1 at"),
        (
            1,
            (503, {}, {"checks": {"database": "ok", "scorer": "down"}}),
            3,
            "scorer     down  → Nothing is scored",
        ),
        (2, problem(401, "unauthenticated", "no key"), 4, "no key (unauthenticated)  → Give --key"),
        (3, (200, {}, page({"id": "base", "state": "failed"})), 1, "cannot be loaded: base"),
        (3, problem(403, "insufficient_scope", "lacks"), 0, "ok       models     not looked at: lacks"),
        (4, (200, {}, page({"state": "stale"})), 1, "workers    0 alive, 1 stale"),
    ],
)
def test_the_doctor_says_what_is_wrong_and_what_to_do(
    service: Service, tmp_path: Path, place: int, answer: Answer, exit_code: int, found: str
) -> None:
    service.answers = [*WELL[:place], answer, *WELL[place + 1 :]]
    done = kleash(service, "doctor", "--data", str(tmp_path))
    assert done.exit_code == exit_code, done.output
    assert found in done.output
    assert all(line.startswith(("ok ", "PROBLEM ")) for line in done.output.splitlines())


def test_the_doctor_without_a_service(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["doctor", "--url", "http://127.0.0.1:1", "--json", "--data", str(tmp_path)]
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 3
    found = [(line["name"], line["exit_code"]) for line in lines]
    assert found == [("versions", 0), ("disk", 0), ("service", 3)]
    assert "kleash up" in lines[-1]["advice"]


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kleash.commands.doctor.LEAST_FREE_BYTES", 1 << 80)
    assert not doctor.disk(tmp_path / "not" / "there").ok


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("kleash ")


def test_help_imports_no_http() -> None:
    code = "import sys, kleash.cli; sys.exit(bool({'httpx2', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
