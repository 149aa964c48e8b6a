"""What routes ask for: the parts that app.py put together, and the caller."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.keyring import Keyring
from api.rates import RequestRates
from api.request_counts import RequestCounts
from api.services.api_keys import ApiKeys
from api.services.artifacts import ArtifactService
from api.services.checkpoints import CheckpointService
from api.services.feeds import Feeds
from api.services.files import FileService
from api.services.histories import Histories
from api.services.job_data import JobData
from api.services.job_documents import JobDocuments
from api.services.jobs import JobService
from api.services.live import Live
from api.services.logs import LogService
from api.services.metrics import MetricService
from api.services.models import ModelResolver
from api.services.residence import Residence
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
    metrics: MetricService
    logs: LogService
    checkpoints: CheckpointService
    artifacts: ArtifactService
    live: Live
    histories: Histories
    feeds: Feeds
    documents: JobDocuments
    keyring: Keyring
    rates: RequestRates
    requests: RequestCounts
    api_keys: ApiKeys
    files: FileService
    residence: Residence


async def parts(request: Request) -> Parts:
    """The application's parts (async, so that it costs no thread)."""
    found: Parts = request.app.state.parts
    return found


PartsDep = Annotated[Parts, Depends(parts)]


async def _trace_id(request: Request) -> str | None:
    found: str | None = request.state.trace_id
    return found


TraceId = Annotated[str | None, Depends(_trace_id)]  # of the caller's `traceparent`


async def _models(found: PartsDep) -> ModelResolver:
    return found.models


async def _jobs(found: PartsDep) -> JobService:
    return found.jobs


async def _job_data(found: PartsDep) -> JobData:
    return found.job_data


async def _webhooks(found: PartsDep) -> WebhookService:
    return found.webhooks


async def _files(found: PartsDep) -> FileService:
    return found.files


async def _residence(found: PartsDep) -> Residence:
    return found.residence


async def _metrics(found: PartsDep) -> MetricService:
    return found.metrics


async def _logs(found: PartsDep) -> LogService:
    return found.logs


async def _artifacts(found: PartsDep) -> ArtifactService:
    return found.artifacts


async def _checkpoints(found: PartsDep) -> CheckpointService:
    return found.checkpoints


ModelsDep = Annotated[ModelResolver, Depends(_models)]
JobsDep = Annotated[JobService, Depends(_jobs)]
JobDataDep = Annotated[JobData, Depends(_job_data)]
WebhooksDep = Annotated[WebhookService, Depends(_webhooks)]
FilesDep = Annotated[FileService, Depends(_files)]
ResidenceDep = Annotated[Residence, Depends(_residence)]
MetricsDep = Annotated[MetricService, Depends(_metrics)]
LogsDep = Annotated[LogService, Depends(_logs)]
CheckpointsDep = Annotated[CheckpointService, Depends(_checkpoints)]
ArtifactsDep = Annotated[ArtifactService, Depends(_artifacts)]
