"""What this deployment allows: each number from the place that enforces it."""

from typing import Literal, Self

from pydantic import Field

from api.auth import LOCAL
from api.keyring import Caller
from api.pages import MAX_PAGE, MAX_ROWS
from api.prefer import MOST_S
from api.rates import WINDOW_S
from api.schemas import Document
from api.version import API_VERSION, VERSION
from jobs.scoring_wire import MAX_TOP_K
from jobs.settings import Settings
from jobs.spec import MAX_METADATA
from jobs.store_jobs import KEY_LIFE_S


class DefaultPair(Document):
    """The models of requests that name none."""

    policy: str | None
    reference: str | None


class RequestLimits(Document):
    """Of one request; what is over them is refused, but for pages and waits, which are made smaller."""

    body_bytes: int
    file_bytes: int = Field(description="Of one upload.")
    items_per_request: int = Field(description="Of a score or a tokenization that is answered at once.")
    tokens_per_request: int = Field(
        description="Of all its items; one item has at most the model's `max_context`, too."
    )
    top_k: int
    score_timeout_s: float
    wait_s: int = Field(description="The longest that a poll is held back.")
    page_items: int = Field(description="The longest page of a list.")
    page_rows: int = Field(description="The longest page of events, samples, logs.")
    retention_days: float | None = Field(
        description="So long after its end a job is deleted, unless a checkpoint is pinned; null: never."
    )
    metadata_pairs: int = Field(description="Of one job.")
    idempotency_hours: float = Field(description="For so long an Idempotency-Key is remembered.")


class CallerQuotas(Document):
    """What one caller may have; null where it may have any number."""

    requests: int | None = Field(description="Of its key in `requests_window_s`, in each API process.")
    requests_window_s: int
    queued_jobs: int | None = Field(description="Paused ones count.")
    running_jobs: int | None = Field(description="More of them wait in the queue.")
    file_bytes: int = Field(description="Of all its uploads.")


class Features(Document):
    """What an operator can switch."""

    keys: bool = Field(description="Requests need an API key.")
    hub_models: bool = Field(description="A request may name any model of the hub.")
    model_folders: bool = Field(description="A request may name folders and files below the roots.")
    private_destinations: bool = Field(
        description="Webhooks and reward endpoints may lead to some hosts that are not https and public."
    )


class InfoDocument(Document):
    """What this deployment allows its caller."""

    object: Literal["info"] = "info"
    version: str
    api_version: str = Field(description="As in the header API-Version.")
    default_pair: DefaultPair
    limits: RequestLimits
    quotas: CallerQuotas
    features: Features

    @classmethod
    def of(cls, settings: Settings, caller: Caller) -> Self:
        """For this caller: without a key nothing counts requests."""
        registry = settings.registry
        return cls(
            version=VERSION,
            api_version=API_VERSION,
            default_pair=DefaultPair(policy=registry.default_policy, reference=registry.default_reference),
            limits=_limits(settings),
            quotas=CallerQuotas(
                requests=None if caller is LOCAL else settings.requests_per_minute or None,
                requests_window_s=WINDOW_S,
                queued_jobs=settings.queued_jobs_per_owner or None,
                running_jobs=settings.running_jobs_per_owner or None,
                file_bytes=settings.file_bytes_per_owner,
            ),
            features=Features(
                keys=not settings.unsafe_no_auth,
                hub_models=settings.allow_hub_models,
                model_folders=bool(settings.model_roots),
                private_destinations=bool(settings.outbound_allow),
            ),
        )


def _limits(settings: Settings) -> RequestLimits:
    return RequestLimits(
        body_bytes=settings.max_body_bytes,
        file_bytes=settings.max_file_bytes,
        items_per_request=settings.max_items,
        tokens_per_request=settings.max_request_tokens,
        top_k=MAX_TOP_K,
        score_timeout_s=settings.score_timeout_s,
        wait_s=MOST_S,
        page_items=MAX_PAGE,
        page_rows=MAX_ROWS,
        retention_days=settings.retention_days,
        metadata_pairs=MAX_METADATA,
        idempotency_hours=KEY_LIFE_S / 3600,
    )
