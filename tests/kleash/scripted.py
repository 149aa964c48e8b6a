"""A service that answers from a script, over real HTTP, and remembers what it was asked."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], Any]


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Service:
    """`answers` are given in order, the last one for ever; each is (status, headers, JSON body or bytes)."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)


@contextmanager
def scripted_service() -> Iterator[Service]:
    script = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            sent = self.rfile.read(length)
            is_json = self.headers.get("Content-Type") == "application/json"
            body = json.loads(sent) if is_json else sent or None
            headers = {name.lower(): value for name, value in self.headers.items()}
            script.asked.append(Asked(self.command, self.path, headers, body))
            status, extra, document = script.answers[min(len(script.asked), len(script.answers)) - 1]
            content = document if isinstance(document, bytes) else json.dumps(document).encode()
            content = b"" if document is None else content
            self.send_response(status)
            for name, value in {**extra, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PATCH = do_DELETE = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        script.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield script
        server.shutdown()


def problem(status: int, code: str, detail: str, **more: Any) -> Answer:
    return status, {}, {"status": status, "code": code, "detail": detail, **more}


def a_job(status: str = "running", step: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "object": "job",
        "id": "job_0",
        "name": None,
        "status": status,
        "done": status in ("succeeded", "failed", "cancelled"),
        "phase": None,
        "created_at": "2026-11-22T11:25:00.000Z",
        "progress": {"step": step, "total_steps": 4, "latest": {"reward/mean": 0.25, "kl/sequence": 1.5}},
        "error": None,
        **more,
    }


def a_finding(rule: str = "kl_off_target", message: str = "The KL stays away.") -> dict[str, Any]:
    return {
        "rule": rule,
        "message": message,
        "value": 2.5,
        "threshold": 2.0,
        "evidence": {"first_step": 81, "last_step": 100, "numbers": {"mean kl/sequence": 15.04}},
        "advice": "A lower learning rate.",
    }


def a_score(text: str = "certainly") -> dict[str, Any]:
    """ "Oh " and a second token: the first has no context, the second is the seed's P = .25 against .05."""
    return {
        "index": 0,
        "n_scored": 1,
        "sums": {"k1": 1.6094379124, "kl": 0.5},
        "tokens": {
            "ids": [1, 2],
            "text": ["Oh ", text],
            "start": [0, 3],
            "end": [3, 3 + len(text.encode())],
            "policy_logprob": [None, -1.3862943611],
            "reference_logprob": [None, -2.9957322736],
            "k1": [None, 1.6094379124],
            "kl": [None, 0.5],
        },
    }
