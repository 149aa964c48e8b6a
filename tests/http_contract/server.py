"""`python -m tests.http_contract.server`: the API on a port of its own, with jobs in every state to ask for.

Database, routes, middlewares and sockets are the real ones; the scorer answers one token per byte, and messages to
workers go nowhere. Prints one JSON line: where it is, the keys of the roles, and the ids of its things.
"""

import hashlib
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from api import request_log
from api.__main__ import SettlingServer, server_config
from api.app import create_app
from api.services.checkpoints import MANIFEST
from api.services.files import FileService
from jobs import keys
from jobs.residents import Residents
from jobs.schema import metadata
from jobs.scoring_wire import ItemError, ItemScores, ModelSource, ScoreItem, ScoreReply, ScoreRequest
from jobs.settings import Settings
from jobs.spec import JOB_SPEC, JobFailure, NewShard, Sample
from jobs.sql_store import SqlStore
from jobs.states import Action, Status
from jobs.system import SystemRng
from jobs.tokenizing_wire import TokenizeReply, TokenizeRequest
from jobs.upload_folder import UploadFolder
from tests.api.byte_scorer import byte_scores, byte_tokens

PPO = {
    "config": {
        "model": {"name": "base"},
        "data": {"prompts": ["Once upon a time"]},
        "reward": {"kind": "sentiment"},
        "optimization": {"steps": 4},
    }
}
SCORE = {"type": "score", "config": {"items": ["The cat sat."]}}


class Nowhere:
    """A broker whose messages nobody reads."""

    def publish(self, job_id: str, epoch: int, *, queue: str, priority: int) -> None: ...

    def ready(self) -> bool:
        return True


class ByteScorer:
    """Every quantity of every token is 1."""

    def ready(self) -> bool:
        return True

    def residents(self) -> list[Residents]:
        return [Residents(models=[])]

    def load(self, source: ModelSource) -> None: ...

    def unload(self, source: ModelSource) -> None: ...

    async def tokenize(self, request: TokenizeRequest, *, timeout_s: float) -> TokenizeReply:
        return byte_tokens(request)

    async def score(self, request: ScoreRequest, *, timeout_s: float) -> ScoreReply:
        items = [_scored(item, request) for item in request.items]
        return ScoreReply(items=items, tokenizer_sha256="ab" * 32, vocab_size=256, weights_dtype="float32")


def _scored(item: ScoreItem, request: ScoreRequest) -> ItemScores | ItemError:
    text = item.text if item.text is not None else "no text was sent"
    if not text or len(((item.prompt or "") + text).encode()) < 2:
        return ItemError(code="empty_input", detail="no token is left to score")
    answer = byte_scores(replace_text(item, text), k1=1.0, names=request.quantities)
    return answer if item.text is not None else replace(answer, text=text.encode())


def replace_text(item: ScoreItem, text: str) -> ScoreItem:
    return item.model_copy(update={"text": text})


def populate(store: SqlStore, artifacts: Path, owner: str) -> dict[str, list[str]]:
    """Jobs of every status; two that ran have rows of everything."""
    rng = SystemRng()

    def create(spec: dict[str, Any]) -> str:
        job_id, parsed = rng.job_id(), JOB_SPEC.validate_python(spec)
        store.create_job(job_id, owner, parsed, {"model": {"path": "org/base", "base": None}})
        return job_id

    def start(job_id: str) -> int:
        job = store.claim(job_id, 1, worker="w0@here", lease_s=1e6)
        assert job is not None
        return job.attempt

    queued, running, paused, cancelling, succeeded, failed = (create(PPO) for _ in range(6))
    saved = [_run(store, artifacts, job_id, start(job_id)) for job_id in (running, succeeded)]
    store.request(paused, Action.PAUSE)
    start(cancelling)
    store.request(cancelling, Action.CANCEL)
    store.finish(succeeded, 1, Status.SUCCEEDED, result={"model": f"{succeeded}@final"})
    store.finish(failed, start(failed), Status.FAILED, error=JobFailure(code="nan_loss", detail="NaN"))
    scored = create(SCORE)
    _score(store, artifacts, scored, start(scored))
    job_ids = [queued, running, paused, cancelling, succeeded, failed, scored]
    return {"job_id": job_ids, "checkpoint_id": saved, "name": [MANIFEST, "adapter_config.json"]}


def _run(store: SqlStore, artifacts: Path, job_id: str, attempt: int) -> str:
    for step in (1, 2):
        store.record_step(
            job_id,
            attempt,
            step=step,
            metrics={"kl/sequence": step / 4, "reward/mean": float("nan")},
            timings={"rollout_s": 0.5},
            samples=[
                Sample(step=step, kind="rollout", index=0, prompt="a", completion="b", data={"k1": 1.0})
            ],
        )
    path = f"{job_id}/{attempt}/step-2"
    (artifacts / path).mkdir(parents=True)
    files = {"adapter_config.json": {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}}
    manifest = json.dumps({"files": files}).encode()
    (artifacts / path / "adapter_config.json").write_bytes(b"{}")
    (artifacts / path / MANIFEST).write_bytes(manifest)
    sha256 = hashlib.sha256(manifest).hexdigest()
    saved = {"name": "step-2", "step": 2, "path": path, "sha256": sha256, "size": len(manifest)}
    return store.record_checkpoint(job_id, attempt, **saved).id


def _score(store: SqlStore, artifacts: Path, job_id: str, attempt: int) -> None:
    path = f"{job_id}/{attempt}/shard-0"
    (artifacts / path).mkdir(parents=True)
    (artifacts / path / "results.jsonl").write_text('{"index": 0}\n')
    shard = NewShard(index=0, items=1, path=path, sha256="ab" * 32, bytes=13, cursor={})
    store.record_shard(job_id, attempt, shard, metrics={}, timings={})
    store.finish(job_id, attempt, Status.SUCCEEDED, result={})


def _file(store: SqlStore, uploads: Path, owner: str) -> str:
    service = FileService(store, UploadFolder(uploads), owner_may_have=1000)
    arrival = service.begin(owner, name="prompts.jsonl", purpose="prompts", declared_bytes=0)
    arrival.take(b'"Once upon a time"')
    return arrival.finish(None).file.id


def _key(store: SqlStore, role: str, owner: str | None = None) -> keys.Key:
    key = keys.new_key(SystemRng())
    scopes = keys.ALL_SCOPES if owner is None else frozenset({"score"})
    expires_at = 1.0 if role == "expired" else None
    grant = keys.Grant(owner=owner or key.id, name=role, scopes=scopes, expires_at=expires_at)
    store.create_key(key.id, key.secret_sha256, grant)
    return key


def main() -> int:
    """Serve until SIGTERM."""
    request_log.configure()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "roots" / "plain").mkdir(parents=True)
        (here / "roots" / "plain" / "config.json").write_text("{}")
        registry = {"models": {"base": {"source": "org/base"}}}
        (here / "models.json").write_text(
            json.dumps(registry | {"default_policy": "base", "default_reference": "base"})
        )
        settings = Settings(
            database_url=SecretStr(f"sqlite:///{here}/kleash.db"),
            data=here / "data",
            models_file=here / "models.json",
            model_roots=[here / "roots"],
            dispatch_every_s=3600,
            requests_per_minute=0,
            queued_jobs_per_owner=0,
        )
        store = SqlStore(settings.database_url.get_secret_value())
        metadata.create_all(store.engine)
        roles = {role: _key(store, role) for role in ("owner", "stranger", "expired", "revoked")}
        roles["narrow"] = _key(store, "narrow", owner=roles["owner"].id)
        store.revoke_key(roles["revoked"].id)
        ids = populate(store, settings.artifacts, roles["owner"].id)
        ids |= {"file_id": [_file(store, settings.uploads, roles["owner"].id)], "model_id": ["base"]}
        app = create_app(settings, store=store, broker=Nowhere(), scorer=ByteScorer())
        server = SettlingServer(server_config(app, settings, host="127.0.0.1", port=0, log_level="error"))
        server.config.load()
        socket = server.config.bind_socket()
        url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        socket.listen()
        told = {"url": url, "keys": {role: str(key) for role, key in roles.items()}, "ids": ids}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        server.run(sockets=[socket])
    return 0


if __name__ == "__main__":
    sys.exit(main())
