"""Which parts the API is made of, and what runs beside its routes."""

import threading
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from api.deps import Parts
from api.event_stream import event_frame
from api.feed_stream import feed_frame
from api.keyring import Keyring
from api.rates import RequestRates
from api.request_counts import RequestCounts
from api.services.analysis import RunAnalysis
from api.services.api_keys import ApiKeys
from api.services.artifacts import ArtifactService
from api.services.checkpoints import CheckpointService
from api.services.feeds import Feeds
from api.services.files import FileService
from api.services.histories import Histories
from api.services.job_data import JobData
from api.services.job_documents import JobDocuments
from api.services.job_files import JobFiles
from api.services.jobs import JobService
from api.services.live import Live
from api.services.logs import LogService
from api.services.metrics import MetricService
from api.services.models import ModelResolver
from api.services.residence import Residence
from api.services.webhooks import WebhookService
from jobs.dispatcher import Dispatcher
from jobs.outbound import Outbound
from jobs.ports import Broker, Scorer
from jobs.reaper import Reaper
from jobs.settings import Settings
from jobs.spec import Event
from jobs.store import Store
from jobs.system import SystemRng
from jobs.upload_folder import UploadFolder, UploadSweep
from jobs.webhook_sender import WebhookSender


class Loop(Protocol):
    """Something that runs in a thread of its own until it is told to stop."""

    def run(self, stop: threading.Event) -> None:
        """Return soon after `stop` is set."""
        ...


class Assembly(NamedTuple):
    """The parts, the loops that run while the API does, and what ends the dispatcher's pause."""

    parts: Parts
    loops: list[Loop]
    wake: Callable[[], None]


def assemble(settings: Settings, store: Store, broker: Broker, scorer: Scorer) -> Assembly:
    """Connects to nothing: parts do that when they are first used."""
    dispatcher, rng = Dispatcher(store, broker, settings), SystemRng()
    models, analysis, keyring = ModelResolver(settings, store), RunAnalysis(store), Keyring(store)
    outbound = Outbound(settings.outbound_allow)
    sender = WebhookSender(store, outbound, every_s=settings.webhook_every_s)
    uploads = UploadFolder(settings.uploads.resolve())  # no link on the way for the workers
    files = FileService(store, uploads, owner_may_have=settings.file_bytes_per_owner)
    live = Live(store, event_frame)
    jobs = JobService(
        store,
        models,
        rng,
        dispatcher.wake,
        analysis,
        JobFiles(models, files),
        live,
        queued_limit=settings.queued_jobs_per_owner,
        outbound=outbound,
    )
    documents = JobDocuments(jobs)
    store.listen(documents.changed)
    parts = Parts(
        settings=settings,
        store=store,
        broker=broker,
        scorer=scorer,
        models=models,
        jobs=jobs,
        live=live,
        histories=Histories(partial(_history, store), event_frame),
        feeds=Feeds(store, feed_frame),
        documents=documents,
        job_data=JobData(store, analysis, settings.artifacts),
        metrics=MetricService(store),
        logs=LogService(store, settings.artifacts),
        checkpoints=CheckpointService(store, settings.artifacts),
        artifacts=ArtifactService(store, settings.artifacts),
        keyring=keyring,
        rates=RequestRates(settings.requests_per_minute),
        requests=RequestCounts(),
        api_keys=ApiKeys(store, rng, keyring),
        files=files,
        residence=Residence(models, scorer),
        webhooks=WebhookService(store, outbound),
    )
    loops: list[Loop] = [
        dispatcher,
        Reaper(store, settings),
        keyring,
        UploadSweep(uploads, store),
        sender,
    ]
    return Assembly(parts, loops, dispatcher.wake)


def _history(store: Store, job_id: str, after: int, limit: int) -> list[Event]:
    return store.list_events(job_id, after=after, limit=limit)
