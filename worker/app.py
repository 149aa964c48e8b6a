"""The Celery app of the workers: `celery -A worker.app worker --pool prefork --concurrency 1 -Q cpu,gpu.any`.

Messages are acknowledged when they arrive: the row is the truth, and a late acknowledgement on Redis starts long
jobs twice. Whoever starts a worker sets REMAP_SIGTERM=SIGQUIT, so that SIGTERM hands the running job back.
"""

import logging
import signal
import threading
from functools import cache
from typing import Any

from celery import Celery
from celery.signals import task_prerun, worker_process_init, worker_process_shutdown

from jobs import deleted_folders
from jobs.errors import StoreUnavailable
from jobs.files import LocalFiles
from jobs.queue import MESSAGE_SETTINGS, PRIORITIES, RUN_JOB
from jobs.settings import settings_or_exit
from jobs.sql_store import SqlStore, open_store
from worker import messages
from worker.alive import sign_of_life
from worker.presence import Presence, card, worker_id
from worker.supervisor import Supervisor

log = logging.getLogger(__name__)
settings = settings_or_exit()
messages.guard()
WORKER = worker_id()  # of the main process, from which the pool process is forked

app: Any = Celery("kleash", broker=settings.broker_url.get_secret_value())
app.conf.update(
    MESSAGE_SETTINGS,
    task_acks_late=False,
    task_reject_on_worker_lost=False,
    worker_pool="prefork",
    worker_concurrency=1,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    worker_soft_shutdown_timeout=1,
    worker_enable_remote_control=False,  # a broadcast could end every worker
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    # Covers only messages that a dead worker held and had not started; the dispatcher is faster.
    broker_transport_options=PRIORITIES | {"visibility_timeout": 7 * 86_400},
)
if settings.alive_file is not None:
    app.steps["worker"].add(sign_of_life(settings.alive_file))


def let_children_hear_sigterm(**_: object) -> None:
    """Celery's pool processes ignore SIGTERM, and so would a program that they start, until it has a handler.

    A signal with a handler, even an empty one, has its default there, and a child that still imports ends at once.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: None)


task_prerun.connect(let_children_hear_sigterm)


def show_presence(**_: object) -> None:
    """From now on GET /v1/workers shows this worker."""
    presence = Presence(card(WORKER, app.amqp.queues.consume_from), _store)
    presence.start()
    worker_process_shutdown.connect(lambda **_: presence.stop(), weak=False)


worker_process_init.connect(show_presence)


def clear_deleted(**_: object) -> None:
    """Folders of deleted jobs go, in a thread of the pool process: neither it nor its store may cross the fork."""
    threading.Thread(
        target=deleted_folders.run,
        args=(open_store(settings), LocalFiles(), settings.artifacts, threading.Event()),
        name="deleted-folders",
        daemon=True,
    ).start()


worker_process_init.connect(clear_deleted)


def run_job(job_id: object, epoch: object) -> None:
    """The task: supervise one run. A message that is not ours to understand is dropped."""
    if not isinstance(job_id, str) or not isinstance(epoch, int):
        log.warning("a malformed message was dropped")
        return
    try:
        supervisor = Supervisor(_store(), settings, worker=WORKER)
        supervisor.run(job_id, epoch)
    except StoreUnavailable as error:
        log.warning("%s: not claimed, the dispatcher will send it again: %s", job_id, error)


app.task(name=RUN_JOB)(run_job)


@cache
def _store() -> SqlStore:
    """The pool process's own store: connections must not cross the fork."""
    return open_store(settings)
