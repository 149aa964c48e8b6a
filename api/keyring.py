"""Keys that were looked up less than a second ago, so that most requests cost neither a query nor a thread.

What is kept of a key is what the database has: the hash of its secret, never the secret. A revocation by this
process holds at once, one by another process or by `python -m jobs.keys` within FRESH_S.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import structlog
from anyio.to_thread import run_sync

from jobs.errors import StoreUnavailable
from jobs.keys import KeyInForce, Scope, authentic, parse
from jobs.store_keys import KeyStore

FRESH_S = 1.0
MOST = 4096  # known and unknown ids; beyond it the one that was looked up first is looked up again
WRITE_USES_EVERY_S = 60.0
log = structlog.get_logger("kleash.api")


@dataclass(frozen=True)
class Caller:
    """Whose things a request may see, by which key, and what it may do with them."""

    owner: str
    key_id: str | None
    scopes: frozenset[Scope]


class _Held(NamedTuple):
    key: KeyInForce | None
    caller: Caller | None
    until: float


class Keyring:
    """Tells who calls. One for each application; its methods may be called from any thread."""

    def __init__(self, store: KeyStore, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store, self._monotonic = store, monotonic
        self._lock = threading.Lock()
        self._asking = asyncio.Lock()  # so that a thousand streams of a key look it up once
        self._away_until = float("-inf")  # of the store: until then no stream asks it
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._forgotten = 0
        self._used: dict[str, float] = {}  # key id → when

    async def caller(self, text: str) -> Caller | None:
        """The caller with this key, None if it is not one in force. Raises StoreUnavailable."""
        key = parse(text)
        if key is None:
            return None
        now = self._monotonic()
        held = self._fresh(key.id)
        if held is None:
            held = await run_sync(self._look_up, key.id)
        if not authentic(key, held.key):
            return None
        with self._lock:
            self._used[key.id] = now
        return held.caller

    async def holds(self, key_id: str) -> bool:
        """Whether a key that was in force still is, for answers that last. Not known counts as yes: then no
        event can be read either.
        """
        async with self._asking:
            held = self._fresh(key_id)
            if held is None and self._monotonic() >= self._away_until:
                try:
                    held = await run_sync(self._look_up, key_id)
                except StoreUnavailable:
                    self._away_until = self._monotonic() + FRESH_S
        return held is None or held.key is not None

    def _fresh(self, key_id: str) -> _Held | None:
        held = self._held.get(key_id)
        return held if held is not None and self._monotonic() < held.until else None

    def forget(self, key_id: str) -> None:
        """Look the key up at its next request: called after a commit that revoked it."""
        with self._lock:
            self._forgotten += 1
            self._held.pop(key_id, None)

    def _look_up(self, key_id: str) -> _Held:
        forgotten, began = self._forgotten, self._monotonic()
        key = self._store.key_in_force(key_id)
        fresh_s = FRESH_S
        if key is not None and key.expires_in_s is not None:
            fresh_s = min(FRESH_S, key.expires_in_s)
        caller = None if key is None else Caller(key.owner, key_id, key.scopes)
        held = _Held(key, caller, until=began + fresh_s)
        with self._lock:
            if forgotten == self._forgotten:  # else it may have been read before the revocation
                self._held.pop(key_id, None)
                self._held[key_id] = held
                while len(self._held) > MOST:
                    self._held.popitem(last=False)
        return held

    def run(self, stop: threading.Event) -> None:
        """Write down every minute, and at the end, when keys were last used."""
        while not stop.wait(WRITE_USES_EVERY_S):
            self.write_uses()
        self.write_uses()

    def write_uses(self) -> None:
        """Once; what cannot be written now is kept for the next time."""
        with self._lock:
            used, self._used = self._used, {}
        now = self._monotonic()
        try:
            self._store.touch_keys({key_id: now - at for key_id, at in used.items()})
        except StoreUnavailable as error:
            log.warning("key_uses_not_written", error=type(error).__qualname__, keys=len(used))
            with self._lock:
                self._used = used | self._used
