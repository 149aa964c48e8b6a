"""CeleryBroker: publishes the hint that a job waits. It imports no worker: the task is known by its name.

The URL is `redis://`, `rediss://` or `redis+socket:///absolute/path` (percent-encode what a URL must).
"""

from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from jobs.errors import BrokerUnavailable
from jobs.faults import point
from jobs.spec import DEFAULT_PRIORITY, MAX_PRIORITY

RUN_JOB = "kleash.run_job"
DEFAULT_QUEUE = "cpu"

# One immediate retry for a connection that the server closed. (`publish_retry=False` is no way to fail fast: the
# client library's own retries, six seconds of them, then apply.)
RETRY_ONCE = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
# A list per queue and priority, looked at in this order; to this transport 0 is the most urgent.
PRIORITIES = {"priority_steps": list(range(MAX_PRIORITY + 1))}
PING = {"socket_connect_timeout": 0.5, "socket_timeout": 0.5}  # tried twice
MESSAGE_SETTINGS = {
    "task_serializer": "json",
    "accept_content": ["json"],
    "task_ignore_result": True,
    "task_default_queue": DEFAULT_QUEUE,
    "task_publish_retry_policy": RETRY_ONCE,
}


class CeleryBroker:
    """jobs.ports.Broker on any server that Celery's Redis transport speaks to."""

    def __init__(self, url: str) -> None:
        self._app: Any = Celery("kleash", broker=url, set_as_current=False)
        self._app.conf.update(
            MESSAGE_SETTINGS,
            broker_transport_options=PRIORITIES | {"socket_connect_timeout": 1, "socket_timeout": 1.5},
        )

    def publish(self, job_id: str, epoch: int, *, queue: str, priority: int = DEFAULT_PRIORITY) -> None:
        """See jobs.ports.Broker."""
        try:
            point("publish.before")
            self._app.send_task(
                RUN_JOB,
                kwargs={"job_id": job_id, "epoch": epoch},
                queue=queue,
                priority=MAX_PRIORITY - priority,
            )
            point("publish.after")
        except OperationalError as error:
            raise BrokerUnavailable(str(error)) from error

    def ready(self) -> bool:
        """See jobs.ports.Broker."""
        try:
            with self._app.connection_for_write(transport_options=PING) as connection:
                connection.ensure_connection(**RETRY_ONCE)
        except OperationalError:
            return False
        return True
