"""The real application over a real SQLite file; only the broker and the scorer are stand-ins."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx2
import numpy as np
import pytest
import structlog
from anyio.to_thread import run_sync
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.testclient import TestClient

from api.app import create_app
from jobs import keys
from jobs.errors import BrokerUnavailable, ScorerUnavailable
from jobs.keys import Scope
from jobs.residents import Resident, Residents
from jobs.schema import metadata
from jobs.scoring_wire import ItemError, ItemScores, ModelSource, ScoreReply, ScoreRequest
from jobs.settings import Settings
from jobs.sql_store import SqlStore
from jobs.system import SystemRng
from jobs.tokenizing_wire import TokenizeReply, TokenizeRequest
from tests.api.byte_scorer import byte_tokens

NewKey = Callable[..., dict[str, str]]
BASE_URL = "http://127.0.0.1:8000"
HERE = ("127.0.0.1", 50_000)  # where requests come from


class FakeBroker:
    """Queues what was published; `up = False` refuses."""

    def __init__(self) -> None:
        self.up = True
        self.published: SimpleQueue[tuple[str, int, str]] = SimpleQueue()

    def publish(self, job_id: str, epoch: int, *, queue: str, priority: int) -> None:
        if not self.up:
            raise BrokerUnavailable("down")
        self.published.put((job_id, epoch, queue))

    def ready(self) -> bool:
        return self.up


class FakeScorer:
    """Remembers requests and gives each to `answer`, which returns a ScoreReply or raises."""

    def __init__(self) -> None:
        self.is_ready = True
        self.requests: list[ScoreRequest] = []
        self.tokenized: list[TokenizeRequest] = []
        self.held: dict[ModelSource, Resident] = {}
        self.answer: Callable[[ScoreRequest], ScoreReply] = self._unavailable

    async def score(self, request: ScoreRequest, *, timeout_s: float) -> ScoreReply:
        self.requests.append(request)
        return await run_sync(self.answer, request)  # which may wait

    async def tokenize(self, request: TokenizeRequest, *, timeout_s: float) -> TokenizeReply:
        self.tokenized.append(request)
        return byte_tokens(request)

    def ready(self) -> bool:
        return self.is_ready

    def residents(self) -> list[Residents]:
        return [Residents(models=list(self.held.values()))] if self.is_ready else []

    def load(self, source: ModelSource) -> None:
        self.held[source] = Resident(source=source, state="loading")

    def unload(self, source: ModelSource) -> None:
        self.held.pop(source, None)

    @staticmethod
    def _unavailable(request: ScoreRequest) -> ScoreReply:
        raise ScorerUnavailable("no answer was set")


class DeclaredClient(TestClient):
    """Fails when an answer has a status that the OpenAPI document does not declare for its operation."""

    def request(self, method: str, url: Any, **options: Any) -> httpx2.Response:
        response = super().request(method, url, **options)
        assert isinstance(self.app, FastAPI)
        for template, operations in self.app.openapi()["paths"].items():
            pattern = re.sub(r"\{\w+\}", "[^/]+", template)
            if method.lower() in operations and re.fullmatch(pattern, response.url.path):
                declared = operations[method.lower()]["responses"]
                assert str(response.status_code) in declared, (method, template, response.text)
        return response


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def openapi_document() -> dict[str, Any]:
    """Generated once: it is the same for every application, and takes a quarter of a second."""
    return create_app(Settings()).openapi()  # connects to nothing before its lifespan


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """A root with one model folder (`plain`), one adapter on it (`adapter`) and prompts.jsonl."""
    root = tmp_path / "roots"
    for folder in ("plain", "adapter"):
        (root / folder).mkdir(parents=True)
    (root / "plain" / "config.json").write_text("{}")
    (root / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(root / "plain")})
    )
    (root / "prompts.jsonl").write_text('{"prompt": "Once"}\n')
    return root


@pytest.fixture
def short_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams without an end have one, for those who ask every operation."""
    monkeypatch.setattr("api.event_stream.LONGEST_S", 0.05)


@pytest.fixture
def settings(tmp_path: Path, roots: Path) -> Settings:
    """Open mode; the registry has `base` and `tuned` (an adapter), which are the default pair."""
    models = {
        "models": {"base": {"source": "org/base"}, "tuned": {"source": "./roots/adapter", "base": "base"}},
        "default_policy": "tuned",
        "default_reference": "base",
    }
    (tmp_path / "models.json").write_text(json.dumps(models))
    return Settings(
        database_url=SecretStr(f"sqlite:///{tmp_path / 'kleash.db'}"),
        data=tmp_path / "data",
        models_file=tmp_path / "models.json",
        model_roots=[roots],
        unsafe_no_auth=True,
        dispatch_every_s=3600,  # only a wake sends
    )


@pytest.fixture
def store(settings: Settings) -> Iterator[SqlStore]:
    store = SqlStore(settings.database_url.get_secret_value())
    metadata.create_all(store.engine)
    yield store
    store.close()


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@pytest.fixture
def scorer() -> FakeScorer:
    return FakeScorer()


@pytest.fixture
def answering(scorer: FakeScorer) -> None:
    """The scorer answers whatever it is asked with three tokens for each text."""

    def answer(request: ScoreRequest) -> ScoreReply:
        one = np.ones(3, np.int32)
        values = np.array([np.nan, 1.0, 2.0], np.float32)
        item = ItemScores(
            token_ids=one,
            start=one - 1,
            end=one,
            scored=np.array([False, True, True]),
            quantities=dict.fromkeys(request.quantities, values),
        )
        items: list[ItemScores | ItemError] = [
            item if asked.text is not None else replace(item, text=b"x") for asked in request.items
        ]
        return ScoreReply(items=items, tokenizer_sha256="0" * 64, vocab_size=9, weights_dtype="float32")

    scorer.answer = answer


@pytest.fixture
def new_app(
    store: SqlStore, broker: FakeBroker, scorer: FakeScorer, openapi_document: dict[str, Any]
) -> Callable[[Settings], FastAPI]:
    """The application of given settings over this test's parts."""

    def create(settings: Settings) -> FastAPI:
        app = create_app(settings, store=store, broker=broker, scorer=scorer)
        app.openapi = lambda: openapi_document  # type: ignore[method-assign]
        return app

    return create


@pytest.fixture
def app(new_app: Callable[[Settings], FastAPI], settings: Settings) -> FastAPI:
    return new_app(settings)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """Open mode, under a loopback name."""
    with DeclaredClient(app, base_url=BASE_URL, client=HERE, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def keyed_client(new_app: Callable[[Settings], FastAPI], settings: Settings) -> Iterator[TestClient]:
    """Keys are needed; requests carry none unless they bring `headers=new_key()` themselves."""
    app = new_app(settings.model_copy(update={"unsafe_no_auth": False}))
    with DeclaredClient(app, base_url=BASE_URL, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def new_key(store: SqlStore) -> NewKey:
    """Creates a key and returns the headers that carry it; by default of an owner of its own, for everything."""

    def create(
        owner: str | None = None, scopes: Iterable[Scope] = keys.ALL_SCOPES, expires_in_s: float | None = None
    ) -> dict[str, str]:
        key = keys.new_key(SystemRng())
        grant = keys.Grant(
            owner=owner or key.id, name="test", scopes=frozenset(scopes), expires_in_s=expires_in_s
        )
        store.create_key(key.id, key.secret_sha256, grant)
        return {"Authorization": f"Bearer {key}"}

    return create


@pytest.fixture
def spec(roots: Path) -> dict[str, Any]:
    """The smallest job: everything else has a default."""
    return {
        "config": {
            "model": {"name": "base"},
            "data": {"prompts": ["Once upon a time"]},
            "reward": {"kind": "sentiment"},
            "optimization": {"steps": 4},
        }
    }
