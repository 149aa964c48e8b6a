"""Every operation of the OpenAPI document, with what a request for it needs: tests of access walk over them."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx2
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.services.files import FileService
from jobs.keys import Grant, new_key
from jobs.signatures import new_secret
from jobs.spec import PPOSpec
from jobs.sql_store import SqlStore
from jobs.states import Action
from jobs.store_webhooks import NewWebhook
from jobs.system import SystemRng
from tests.api.acting import saved

OPEN_PATHS = {"/health", "/ready", "/version"}  # what answers without a key
SCOPE = re.compile(r"lacks the scope `([a-z:]+)`")


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    document: dict[str, Any]

    @property
    def name(self) -> str:
        name: str = self.document["operationId"]
        return name

    @property
    def scope(self) -> str | None:
        """The scope that its 403 names; None: any key will do."""
        found = SCOPE.search(self.document["responses"]["403"]["description"])
        return found and found[1]

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.path)

    @property
    def changes(self) -> bool:
        return self.method not in ("GET", "HEAD")


def operations(app: FastAPI) -> list[Operation]:
    paths = app.openapi()["paths"]
    return [
        Operation(m.upper(), path, document) for path, ops in paths.items() for m, document in ops.items()
    ]


@dataclass
class World:
    """What factories of resources work with; `values` are the parameters of the path made so far."""

    store: SqlStore
    client: TestClient
    spec: dict[str, Any]
    values: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Resource:
    """How a test gets a thing that a parameter of a path names.

    `make(world, owner)` makes one of this owner and returns its id; `missing` has the form of an id and is none.
    """

    make: Callable[[World, str], str]
    missing: str
    shared: bool = False  # every caller with the scope may see it: it is no owner's


def _job(world: World, owner: str) -> str:
    """A cancelled one: streams of it end, and it can be deleted."""
    job_id = SystemRng().job_id()
    world.store.create_job(job_id, owner, PPOSpec.model_validate_json(json.dumps(world.spec)), {})
    world.store.request(job_id, Action.CANCEL)
    return job_id


def _checkpoint(world: World, owner: str) -> str:
    """A row without files."""
    job_id = SystemRng().job_id()
    world.store.create_job(job_id, owner, PPOSpec.model_validate_json(json.dumps(world.spec)), {})
    job = world.store.claim(job_id, 1, worker="w", lease_s=60)
    assert job is not None
    save = world.store.record_checkpoint(
        job_id, job.attempt, name="step-1", step=1, path=f"{job_id}/1/step-1", sha256="0" * 64, size=1
    )
    return save.id


def _key(world: World, owner: str) -> str:
    key = new_key(SystemRng())
    world.store.create_key(
        key.id, key.secret_sha256, Grant(owner=owner, name="n", scopes=frozenset({"score"}))
    )
    return key.id


def _file(world: World, owner: str) -> str:
    files: FileService = world.client.app.state.parts.files  # type: ignore[attr-defined]
    arrival = files.begin(owner, name="a.jsonl", purpose="prompts", declared_bytes=0)
    arrival.take(b'{"prompt": "Once"}\n')
    return arrival.finish(None).file.id


def _trained_model(world: World, owner: str) -> str:
    """A checkpoint by the name that scores know it by."""
    job_id, model = SystemRng().job_id(), {"path": "org/base", "base": None}
    spec = PPOSpec.model_validate_json(json.dumps(world.spec))
    world.store.create_job(job_id, owner, spec, {"model": model})
    return saved(world.store, job_id, 1)


def _webhook(world: World, owner: str) -> str:
    new = NewWebhook(
        url="https://hooks.example/", event_types=["*"], description="", enabled=True, secret=new_secret()
    )
    return world.store.create_webhook(f"wh_{uuid4().hex}", owner, new).webhook.id


def _delivery(world: World, owner: str) -> str:
    webhook_id = world.values.get("webhook_id") or _webhook(world, owner)
    return world.store.test_webhook(webhook_id, owner).id


# parameter of a path → the thing it names. A new parameter needs a line here.
RESOURCES: dict[str, Resource] = {
    "job_id": Resource(_job, "job_" + "0" * 32),
    "file_id": Resource(_file, "file_" + "0" * 32),
    "model_id": Resource(_trained_model, f"job_{'0' * 32}@step-1"),
    "checkpoint_id": Resource(_checkpoint, "ckpt_" + "0" * 32),
    "name": Resource(lambda *_: "manifest.json", "manifest.json", shared=True),  # of a checkpoint's file
    "webhook_id": Resource(_webhook, "wh_" + "0" * 32),
    "delivery_id": Resource(_delivery, "msg_" + "0" * 32),
    "key_id": Resource(_key, "0" * 8, shared=True),
}
# operation → its body, where the schema has no example, or one that names what is not there
BODIES: dict[str, Callable[[World], Any]] = {"jobs_create": lambda world: world.spec}


def resource(operation: Operation, name: str) -> Resource:
    if name not in RESOURCES:
        raise AssertionError(
            f"{operation.method} {operation.path}: nothing here makes a {name}. Give RESOURCES in {__file__} "
            "a line for it, so that the tests of access can try this operation on somebody else's."
        )
    return RESOURCES[name]


def missing_url(operation: Operation) -> str:
    """The operation's URL with ids that nothing has."""
    return operation.path.format(**{n: resource(operation, n).missing for n in operation.parameters})


def made_url(operation: Operation, world: World, owner: str) -> str:
    """The operation's URL with new things of this owner."""
    world.values = {}
    for name in operation.parameters:
        world.values[name] = resource(operation, name).make(world, owner)
    return operation.path.format(**world.values)


def send(
    operation: Operation, world: World, url: str, headers: dict[str, str], **more: Any
) -> httpx2.Response:
    """The operation with a body that fits its schema, where it has one."""
    if body := operation.document.get("requestBody"):
        content_type, media = next(iter(body["content"].items()))
        if content_type == "application/json":
            more["json"] = _body(operation, world, media)
        elif content_type == "multipart/form-data":
            more["files"] = {"file": ("a.txt", b"text")}
        else:
            more["content"], headers = b"text", headers | {"Content-Type": content_type}
    return world.client.request(operation.method, url, headers=headers, **more)


def _body(operation: Operation, world: World, media: dict[str, Any]) -> Any:
    if operation.name in BODIES:
        return BODIES[operation.name](world)
    schemas = world.client.app.openapi()["components"]["schemas"]  # type: ignore[attr-defined]
    schema = media["schema"]
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    return next(_examples(media, schema), {})


def _examples(*places: dict[str, Any]) -> Iterator[Any]:
    for place in places:
        if "example" in place:
            yield place["example"]
        found = place.get("examples", [])
        if isinstance(found, dict):
            yield from (example["value"] for example in found.values())
        else:
            yield from found


def problem_of(response: httpx2.Response) -> dict[str, Any]:
    """The problem, of which HEAD has only the status and the headers."""
    if response.request.method == "HEAD":
        return {}
    found: dict[str, Any] = response.json()
    return found


def opened(response: httpx2.Response) -> bool:
    """The key did: what the operation then answered is another matter, but no failure of ours."""
    return response.status_code < 500 and response.status_code not in (401, 403)


def fresh_owner() -> str:
    return f"t{uuid4().hex[:12]}"
