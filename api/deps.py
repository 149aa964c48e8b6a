"""What routes ask for: the parts that app.py put together, and the caller."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.services.job_data import JobData
from api.services.jobs import JobService
from api.services.models import ModelResolver
from api.services.webhooks import WebhookService
from jobs.ports import Broker, Scorer
from jobs.settings import Settings
from jobs.store import Store


@dataclass(frozen=True, kw_only=True)
class Parts:
    """One application's parts; `app.state.parts`."""

    settings: Settings
    store: Store
    broker: Broker
    scorer: Scorer
    models: ModelResolver
    jobs: JobService
    job_data: JobData
    webhooks: WebhookService


async def parts(request: Request) -> Parts:
    """The application's parts (async, so that it costs no thread)."""
    found: Parts = request.app.state.parts
    return found


PartsDep = Annotated[Parts, Depends(parts)]


async def _models(found: PartsDep) -> ModelResolver:
    return found.models


async def _jobs(found: PartsDep) -> JobService:
    return found.jobs


async def _job_data(found: PartsDep) -> JobData:
    return found.job_data


async def _webhooks(found: PartsDep) -> WebhookService:
    return found.webhooks


ModelsDep = Annotated[ModelResolver, Depends(_models)]
JobsDep = Annotated[JobService, Depends(_jobs)]
JobDataDep = Annotated[JobData, Depends(_job_data)]
WebhooksDep = Annotated[WebhookService, Depends(_webhooks)]
