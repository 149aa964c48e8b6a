"""No string of a request leads out of the roots: nothing outside is opened or listed, no answer tells of it.

Over HTTP every path is tried on every string with KLEASH_SOAK; else every fifth, on one string each.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.errors import ApiError
from api.problems import MAX_BYTES
from api.services.models import ModelResolver
from jobs.settings import Settings
from jobs.sql_store import SqlStore
from tests.api.hostile_paths import hostile_paths

CANARY = "canary-7f3a"
Body = tuple[str, dict[str, Any]]


def jobs(**config: Any) -> Body:
    smallest = {
        "model": {"name": "base"},
        "data": {"prompts": ["a"]},
        "reward": {"kind": "sentiment"},
        "optimization": {"steps": 1},
    }
    return "/v1/jobs", {"config": smallest | config}


def scoring(**config: Any) -> Body:
    return "/v1/jobs", {"type": "score", "config": {"items": ["a"]} | config}


# every string of a body that the server looks for on its disk
BODIES: dict[str, Callable[[str], Body]] = {
    "policy": lambda path: ("/v1/scores", {"input": "a", "policy": path}),
    "reference": lambda path: ("/v1/scores", {"input": "a", "reference": path}),
    "model": lambda path: jobs(model={"name": path}),
    "prompts_file": lambda path: jobs(data={"prompts_file": path}),
    "eval_prompts_file": lambda path: jobs(data={"prompts": ["a"], "eval_prompts_file": path}),
    "ptx_texts_file": lambda path: jobs(data={"prompts": ["a"], "ptx_texts_file": path}),
    "classifier": lambda path: jobs(reward={"kind": "classifier", "model": path}),
    "resume_from": lambda path: ("/v1/jobs", jobs()[1] | {"resume_from": path}),
    "score policy": lambda path: scoring(policy=path),
    "score reference": lambda path: scoring(reference=path),
    "items_file": lambda path: ("/v1/jobs", {"type": "score", "config": {"items_file": path}}),
}
QUERIES = ("/v1/jobs?after={}", "/v1/jobs?status={}")
PATHS = (
    "/v1/jobs/{}",
    "/v1/jobs/{}/checkpoints",
    "/v1/jobs/{}/results",
    "/v1/models/{}",
    "/v1/files/{}",
    "/v1/files/{}/content",
    "/docs/{}",
    "/{}",
)


class Opened:
    """What this process opens and lists while it is watched. Audit hooks stay for ever: one for all tests."""

    def __init__(self) -> None:
        self.paths: list[str] | None = None
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.paths is None or event not in ("open", "os.listdir", "os.scandir"):
            return
        if arguments and isinstance(arguments[0], str | bytes | os.PathLike):
            self.paths.append(os.fsdecode(arguments[0]))

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        self.paths = []
        try:
            yield self.paths
        finally:
            self.paths = None


OPENED: list[Opened] = []


@pytest.fixture
def opened() -> Opened:
    if not OPENED:
        OPENED.append(Opened())
    return OPENED[0]


@pytest.fixture
def resolver(settings: Settings, store: SqlStore) -> ModelResolver:
    return ModelResolver(settings, store)


@pytest.fixture
def outside(roots: Path) -> Path:
    """A folder beside the root that a careless server would take for a model, or for prompts."""
    folder = roots.parent / "outside"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": [CANARY], CANARY: CANARY}))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": CANARY}))
    (folder / "secret.jsonl").write_text(json.dumps({"prompt": CANARY}))
    return folder


def tries(payloads: list[str], places: list[str]) -> Iterator[tuple[str, str]]:
    """Which path is tried where."""
    if "KLEASH_SOAK" in os.environ:
        yield from product(payloads, places)
    else:
        yield from zip(payloads[::5], cycle(places))


def check(response: Any, name: str) -> None:
    assert 400 <= response.status_code < 500, (name, response.status_code, response.text)
    assert len(response.content) <= MAX_BYTES, name
    assert CANARY not in response.text, name
    assert "outside" not in response.text.replace("outside the configured roots", ""), name


def test_the_resolver_finds_nothing_outside(
    resolver: ModelResolver, roots: Path, outside: Path, opened: Opened
) -> None:
    """Every path as a model and as a file."""
    payloads = hostile_paths(roots, outside)
    assert len(payloads) >= 400
    with opened.watched() as paths:
        for payload in payloads:
            for find in (resolver.resolve_file, lambda name: resolver.resolve(name, "me").path):
                with suppress(ApiError):
                    assert Path(find(payload)).is_relative_to(roots.resolve()), payload
    assert [path for path in map(os.path.realpath, set(paths)) if _is_outside(path, roots)] == []


def test_no_body_leads_out_of_the_roots(
    client: TestClient, roots: Path, outside: Path, opened: Opened, answering: None
) -> None:
    with opened.watched() as paths:
        for payload, field in tries(hostile_paths(roots, outside), list(BODIES)):
            path, content = BODIES[field](payload)
            response = client.post(path, json=content)
            if response.status_code < 400:  # nothing but another spelling of what is in the root
                assert os.path.realpath(roots / payload).startswith(f"{roots.resolve()}/"), (field, payload)
                continue
            check(response, f"{field}: {payload!r}")
    assert [path for path in map(os.path.realpath, set(paths)) if _is_outside(path, roots)] == []


def test_no_url_leads_out_of_the_roots(
    client: TestClient, roots: Path, outside: Path, opened: Opened
) -> None:
    with opened.watched() as paths:
        for payload, template in tries(hostile_paths(roots, outside), [*QUERIES, *PATHS]):
            quoted = "".join(f"%{byte:02x}" for byte in payload.encode())
            response = client.get(template.format(quoted))
            assert CANARY not in response.text
            if response.status_code != 200:
                check(response, f"{template}: {payload!r}")
    assert [path for path in map(os.path.realpath, set(paths)) if _is_outside(path, roots)] == []


def _is_outside(path: str, roots: Path) -> bool:
    """Not in a root, nor of Python itself, which imports what it needs when it first needs it."""
    here = str(Path(__file__).parents[2])
    return not path.startswith((f"{roots.resolve()}", sys.prefix, sys.base_prefix, here))
