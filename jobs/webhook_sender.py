"""The sender: delivers what the outbox holds, after Standard Webhooks.

It may run in any number of processes: a message is claimed for a lease. One whose sender died is sent again when
the lease ends, under the same id: at least once. Nothing of the answer but its status is kept.
"""

import logging
import random
import threading
from collections import Counter
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import orjson

from jobs.errors import StoreUnavailable
from jobs.faults import point
from jobs.outbound import Answer, Outbound
from jobs.outbound_urls import OutboundError
from jobs.signatures import signed_headers
from jobs.store_webhooks import ClaimedDelivery, Tried, WebhookStore

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
LEASE_S = 60.0
AT_ONCE = 64  # in one process
AT_ONCE_PER_WEBHOOK = 2  # so that the 20 webhooks of one owner, all of them dead, leave room for others
# before the 2nd, 3rd, … try (Standard Webhooks, "Retry schedule"): three days in all
DELAYS_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
LONGEST_S = 86_400.0
JITTER = 0.2  # a delay is up to so much longer


class WebhookSender:
    """One loop, with a thread for each message under way. A webhook that does not answer holds up its own only."""

    def __init__(self, store: WebhookStore, outbound: Outbound, *, every_s: float) -> None:
        self._store, self._outbound, self._every_s = store, outbound, every_s
        self._under_way: Counter[str] = Counter()  # by webhook
        self._lock, self._ended = threading.Lock(), threading.Event()

    @property
    def under_way(self) -> int:
        """How many messages are being delivered just now."""
        return self._under_way.total()

    def run_once(self) -> int:
        """Deliver what is due, one after the other; how many were tried. Raises StoreUnavailable."""
        tried = 0
        while (claimed := self._store.claim_delivery(lease_s=LEASE_S)) is not None:
            self.deliver(claimed)
            tried += 1
        return tried

    def deliver(self, claimed: ClaimedDelivery) -> None:
        """One try, and what came of it. Raises StoreUnavailable."""
        delivery = claimed.delivery
        tried = outcome(self._post(claimed), attempt=delivery.attempts, now=claimed.now)
        point("webhook.sent")
        self._store.end_delivery(delivery.id, delivery.attempts, tried)
        if tried.disable is not None:
            log.warning("webhook %s is disabled: %s", claimed.webhook_id, tried.disable)

    def run(self, stop: threading.Event) -> None:
        """Deliver, and look every `every_s`, until `stop` is set; what is under way then ends with the process."""
        while not stop.is_set():
            self._ended.clear()
            claimed = self._claim()
            if claimed is not None:
                with self._lock:
                    self._under_way[claimed.webhook_id] += 1
                threading.Thread(target=self._deliver_and_leave, args=(claimed,), daemon=True).start()
            elif self.under_way:  # the webhook of one that ends may have another waiting
                self._ended.wait(self._every_s)
            else:
                stop.wait(self._every_s)

    def _claim(self) -> ClaimedDelivery | None:
        with self._lock:
            busy = {webhook for webhook, n in self._under_way.items() if n >= AT_ONCE_PER_WEBHOOK}
            full = self.under_way >= AT_ONCE
        if full:
            return None
        try:
            return self._store.claim_delivery(lease_s=LEASE_S, busy=busy)
        except StoreUnavailable as error:
            log.warning("no webhook sent: %s", error)
            return None

    def _deliver_and_leave(self, claimed: ClaimedDelivery) -> None:
        try:
            self.deliver(claimed)
        except StoreUnavailable as error:
            log.warning("a webhook was sent and will be again: %s", error)
        finally:
            with self._lock:
                self._under_way -= Counter([claimed.webhook_id])
            self._ended.set()

    def _post(self, claimed: ClaimedDelivery) -> Answer | OutboundError:
        body = body_of(claimed)
        headers = signed_headers(claimed.secrets, claimed.delivery.id, int(claimed.now), body)
        headers |= {"Content-Type": "application/json", "User-Agent": "kleash-webhooks"}
        try:
            return self._outbound.post(claimed.url, body, headers, timeout_s=TIMEOUT_S)
        except OutboundError as error:
            return error


def body_of(claimed: ClaimedDelivery) -> bytes:
    """The thin payload, the same on every try."""
    delivery = claimed.delivery
    when = datetime.fromtimestamp(delivery.created_at, UTC).isoformat(timespec="milliseconds")
    timestamp = when.replace("+00:00", "Z")
    return orjson.dumps({"type": delivery.type, "timestamp": timestamp, "data": dict(delivery.data)})


def outcome(answer: Answer | OutboundError, *, attempt: int, now: float) -> Tried:
    """2xx is success, 410 the end of the webhook, all else (3xx too) is tried again by DELAYS_S."""
    status = answer.status if isinstance(answer, Answer) else None
    error = answer.code if isinstance(answer, OutboundError) else None
    if status is not None and 200 <= status < 300:
        return Tried(succeeded=True, http_status=status)
    if status == 410:
        return Tried(succeeded=False, http_status=status, disable="gone")
    if attempt > len(DELAYS_S):
        return Tried(succeeded=False, http_status=status, error=error, disable="failing")
    delay = DELAYS_S[attempt - 1] * random.uniform(1, 1 + JITTER)  # noqa: S311
    asked = retry_after_s(answer.retry_after, now) if isinstance(answer, Answer) else 0.0
    return Tried(succeeded=False, http_status=status, error=error, retry_in_s=max(delay, asked))


def retry_after_s(header: str | None, now: float) -> float:
    """Seconds that a Retry-After (a number or a date) asks for, at most a day; 0 for what cannot be read."""
    if header is None:
        return 0.0
    if header.isascii() and header.isdigit():
        return min(float(header), LONGEST_S)
    try:
        until = parsedate_to_datetime(header).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(until - now, 0.0), LONGEST_S)
