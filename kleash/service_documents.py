"""The JSON documents of what a service has beside jobs: files, models, keys, webhooks, workers. As `documents`."""

from typing import Literal, TypedDict

from kleash.documents import Document

Purpose = Literal["prompts", "texts", "items"]


class File(TypedDict):
    """An uploaded file."""

    id: str
    name: str
    purpose: Purpose
    bytes: int
    lines: int
    sha256: str
    created_at: str


class Model(TypedDict):
    """A name that `policy` and `reference` may have."""

    id: str
    kind: str
    base: str | None
    default_for: list[str]
    state: str | None
    loaded_on: int
    scorers: int
    error: str | None
    dtype: str | None
    vocab_size: int | None
    max_context: int | None
    bytes: int | None


class ApiKey(TypedDict):
    """An API key, without its secret."""

    id: str
    owner: str
    name: str
    scopes: list[str]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None


class MadeApiKey(ApiKey):
    """A new API key; `key` is shown this once."""

    key: str | None


class Caller(TypedDict):
    """Whom the service takes the caller for."""

    owner: str
    scopes: list[str]
    key: ApiKey | None


class Webhook(TypedDict):
    """Where messages about events go."""

    id: str
    url: str
    event_types: list[str]
    description: str
    enabled: bool
    disabled_reason: str | None
    created_at: str
    updated_at: str


class MadeWebhook(Webhook):
    """A new webhook; `secret` is shown this once."""

    secret: str


class WebhookChanges(TypedDict, total=False):
    """What of a webhook can change."""

    url: str
    event_types: list[str]
    description: str
    enabled: bool


class Delivery(TypedDict):
    """A message to a webhook, and what came of it."""

    id: str
    type: str
    data: Document
    status: str
    attempts: int
    next_attempt_at: str | None
    http_status: int | None
    error: str | None
    created_at: str
    finished_at: str | None


class Worker(TypedDict):
    """A process that runs jobs."""

    id: str
    host: str
    state: str
    current_job: str | None
    queues: list[str]
    device: str
    versions: dict[str, str]
    started_at: str
    heartbeat_at: str
    heartbeat_age_s: float


class Readiness(TypedDict):
    """Which parts of the service answer."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, Literal["ok", "down"]]


class Info(TypedDict):
    """What a deployment allows its caller."""

    version: str
    api_version: str
    default_pair: dict[str, str | None]
    limits: dict[str, int | float]
    quotas: dict[str, int | None]
    features: dict[str, bool]


class Version(TypedDict):
    """Which software answers."""

    name: str
    version: str
    api_version: str
