"""A webhook whose server never answers holds up its own messages and nobody else's, on SQLite and PostgreSQL."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from jobs import webhook_sender
from jobs.outbound import Outbound
from jobs.signatures import new_secret
from jobs.sql_store import SqlStore
from jobs.store_webhooks import NewWebhook
from jobs.webhook_sender import AT_ONCE, AT_ONCE_PER_WEBHOOK, WebhookSender
from tests.contracts.webhook_receiver import Receiver

OWNER = "alice"
PATIENCE_S = 60.0  # of the test, for what must happen; far less than the sender's own


class Silent:
    """Takes connections and requests, and never says a word."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.host = f"127.0.0.1:{self.server.getsockname()[1]}"
        self.taken: list[socket.socket] = []
        self.took = threading.Semaphore(0)
        self.over = False
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self) -> None:
        while True:
            connection, _ = self.server.accept()
            if self.over:
                connection.close()
                return
            self.taken.append(connection)
            self.took.release()

    def hang_up(self) -> None:
        """Break off every connection, and take no other."""
        self.over = True
        socket.create_connection(self.server.getsockname()[:2]).close()
        self.thread.join(PATIENCE_S)
        self.server.close()
        for connection in self.taken:
            connection.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    silent = Silent()
    yield silent
    if not silent.over:
        silent.hang_up()


def hook(store: SqlStore, url: str, number: int, messages: int) -> str:
    new = NewWebhook(url=url, event_types=["*"], description="", enabled=True, secret=new_secret())
    webhook_id = store.create_webhook(f"wh_{number:032x}", OWNER, new).webhook.id
    for _ in range(messages):
        store.test_webhook(webhook_id, OWNER)
    return webhook_id


def states(store: SqlStore, webhook_id: str) -> list[tuple[str, int]]:
    found = store.list_deliveries(webhook_id, OWNER, limit=100)
    return [(delivery.status, delivery.attempts) for delivery in reversed(found)]


def test_a_webhook_that_never_answers_holds_up_no_other(
    store: SqlStore, silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody gives up: what is delivered is delivered while the dead one's requests still wait."""
    monkeypatch.setattr(webhook_sender, "TIMEOUT_S", 3600.0)
    dead = hook(store, f"http://{silent.host}/hook", 1, AT_ONCE + 8)  # these are due first
    with Receiver() as receiver:
        good = hook(store, receiver.url, 2, 12)
        sender = WebhookSender(store, Outbound([silent.host, receiver.host]), every_s=0.01)
        stop = threading.Event()
        loop = threading.Thread(target=sender.run, args=(stop,), daemon=True)
        loop.start()
        try:
            assert all(silent.took.acquire(timeout=PATIENCE_S) for _ in range(AT_ONCE_PER_WEBHOOK))
            wait_until(lambda: states(store, good) == [("succeeded", 1)] * 12)
            assert len(silent.taken) == AT_ONCE_PER_WEBHOOK
            waiting = [("pending", 1)] * AT_ONCE_PER_WEBHOOK + [("pending", 0)] * (AT_ONCE + 6)
            assert states(store, dead) == waiting, "oldest first, and no slot of another's"
            late = hook(store, receiver.url, 3, 1)  # and so it stays
            wait_until(lambda: states(store, late) == [("succeeded", 1)])
        finally:
            stop.set()
            loop.join(PATIENCE_S)
            silent.hang_up()
            wait_until(lambda: not sender.under_way)


def wait_until(holds: Callable[[], bool]) -> None:
    """Look until it holds; the test ends here if it never does."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.02)):
        if holds():
            return
        pause.wait(0.02)
    pytest.fail("the good webhook waits for the dead one")
