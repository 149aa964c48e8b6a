"""Which of the parts that a request needs would answer now."""

from typing import Literal

from jobs.errors import StoreUnavailable
from jobs.ports import Broker, Scorer
from jobs.store import Store

Check = Literal["ok", "down"]


def check(store: Store, broker: Broker, scorer: Scorer) -> dict[str, Check]:
    """`database` (reachable, and with our tables), `broker`, `scorer`."""
    return {
        "database": _as_check(_database_answers(store)),
        "broker": _as_check(broker.ready()),
        "scorer": _as_check(scorer.ready()),
    }


def _as_check(answers: bool) -> Check:
    return "ok" if answers else "down"


def _database_answers(store: Store) -> bool:
    try:
        store.key_in_force("")
    except StoreUnavailable:
        return False
    return True
