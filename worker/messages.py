"""What a worker lets in from the broker: two fields, read strictly. The message that Celery sees is made here.

Whoever can write to the broker's lists could otherwise end a worker's main process: it reads an item's JSON, its
headers and its times unguarded, and takes other task names, callbacks and start times from them.
"""

import base64
import binascii
import json
import logging
import re
import time
import uuid
from typing import Any, NamedTuple

import redis
from kombu import transport
from kombu.transport.redis import Channel, QoS, Transport

from jobs.queue import RUN_JOB
from jobs.spec import DEFAULT_PRIORITY, MAX_PRIORITY

MAX_BYTES = 16_384  # ours have about 1,000
JOB_ID = re.compile(r"[A-Za-z0-9_]{1,64}")
MAX_EPOCH = 2**31 - 1
NO_LIST_PAUSE_S = 1.0
log = logging.getLogger(__name__)


class NotOurs(ValueError):
    """An item is no message of ours; says why, and repeats nothing of it."""


class Hint(NamedTuple):
    """All that a message says: this job waits, for the so-manieth time."""

    job_id: str
    epoch: int
    priority: int  # the transport's: 0 is the most urgent


def read(item: bytes) -> Hint:
    """The hint in a list's item. Raises NotOurs."""
    if len(item) > MAX_BYTES:
        raise NotOurs("too long")
    try:
        message = json.loads(item)
        if (message["content-type"], message["content-encoding"]) != ("application/json", "utf-8"):
            raise NotOurs("not plain JSON inside")
        if message["headers"]["task"] != RUN_JOB:
            raise NotOurs("another task")
        if message["properties"]["body_encoding"] != "base64":
            raise NotOurs("another body encoding")
        arguments, fields, _ = json.loads(base64.b64decode(message["body"], validate=True))
        priority = message["properties"].get("priority")
    except NotOurs:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, binascii.Error):
        raise NotOurs("not a message") from None
    if arguments != [] or not isinstance(fields, dict) or fields.keys() != {"job_id", "epoch"}:
        raise NotOurs("other arguments")
    job_id, epoch = fields["job_id"], fields["epoch"]
    if not isinstance(job_id, str) or JOB_ID.fullmatch(job_id) is None:
        raise NotOurs("not a job's id")
    if type(epoch) is not int or not 0 <= epoch <= MAX_EPOCH:
        raise NotOurs("not an epoch")
    if type(priority) is not int or not 0 <= priority <= MAX_PRIORITY:
        priority = MAX_PRIORITY - DEFAULT_PRIORITY
    return Hint(job_id, epoch, priority)


def made_anew(hint: Hint, queue: str) -> bytes:
    """The message of Celery's protocol 2 that says this and nothing else."""
    fields = {"job_id": hint.job_id, "epoch": hint.epoch}
    embedded = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    task_id = str(uuid.uuid4())
    headers = {
        "lang": "py",
        "task": RUN_JOB,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": "()",
        "kwargsrepr": repr(fields),
        "origin": "kleash",
        "ignore_result": True,
    }
    properties = {
        "correlation_id": task_id,
        "reply_to": "",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": hint.priority,
        "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()),
    }
    message = {
        "body": base64.b64encode(json.dumps([[], fields, embedded]).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }
    return json.dumps(message).encode()


class Dropped:
    """Counts what was dropped, and logs each time that the count has doubled: no flood fills a disk."""

    count = 0

    @classmethod
    def note(cls, why: str) -> None:
        """One more."""
        cls.count += 1
        if cls.count & (cls.count - 1) == 0:
            log.warning("dropped what is no message of ours (%s): %d so far", why, cls.count)


class StrictRedis(redis.Redis):
    """The client through which the transport pops its lists."""

    def parse_response(self, connection: Any, command_name: str | bytes, **options: Any) -> Any:
        """The server's answer; to a pop, the item made anew, or None, as if the lists were empty."""
        try:
            answer = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        except redis.ResponseError as error:
            if command_name != "BRPOP" or not str(error).startswith("WRONGTYPE"):
                raise
            Dropped.note("a queue's key holds no list: delete it")
            time.sleep(NO_LIST_PAUSE_S)  # the main process has nothing else to do
            return None
        if command_name != "BRPOP" or not answer:
            return answer
        key, item = answer
        queue = key.decode("utf-8", "replace").split(Channel.sep)[0]
        try:
            return key, made_anew(read(item), queue)
        except NotOurs as why:
            Dropped.note(str(why))
            return None


class StrictQoS(QoS):  # type: ignore[misc]  # kombu has no types
    """Messages that were taken and not acknowledged; their hash is on the broker too."""

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Put one back, or forget it if it is none."""
        try:
            super().restore_by_tag(tag, client, leftmost)
        except (ValueError, TypeError, AttributeError, KeyError):
            Dropped.note("an unacknowledged entry")
            self._remove_from_indices(tag).execute()


class StrictChannel(Channel):  # type: ignore[misc]
    """kombu's, with our client."""

    QoS = StrictQoS

    def _get_client(self) -> Any:
        super()._get_client()  # refuses versions of the library that it cannot use
        return StrictRedis

    def _do_restore_message(
        self, payload: Any, exchange: Any, routing_key: Any, pipe: Any, leftmost: bool = False
    ) -> None:
        """Put it back into its list, or raise NotOurs: kombu would log all of it."""
        if not isinstance(routing_key, str):
            raise NotOurs("no queue")
        read(json.dumps(payload).encode())
        super()._do_restore_message(payload, "", routing_key, pipe, leftmost)


class StrictTransport(Transport):  # type: ignore[misc]
    """kombu's, with our channel."""

    Channel = StrictChannel


def guard() -> None:
    """From now on, every connection of this process to a Redis-like server is strict."""
    for scheme in ("redis", "rediss"):
        transport.TRANSPORT_ALIASES[scheme] = f"{__name__}:StrictTransport"
