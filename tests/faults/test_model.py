"""A small share of `python -m tests.faults.model`, and that it finds a store that is wrong."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import ColumnElement, Connection, delete, true

from jobs.schema import job_checkpoints, jobs
from jobs.spec import NewEvent
from jobs.sql_base import SqlBase
from jobs.states import Status
from tests.faults.model import database, machine, run
from tests.faults.model_actors import LateReaper

OFTEN = {
    "claimed",
    "stale message",
    "stale write",
    "handed back: queued",
    "reaped: queued",
    "too late to reap",
}
OFTEN |= {"key replayed", "key refused", "pause refused", "resume refused", "change refused"}
OFTEN |= {"job deleted", "save deleted", "save kept to go on from", "a stranger's deletion"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with database("sqlite") as url:
        yield url


def test_random_histories_agree_with_the_model(url: str) -> None:
    with machine(url) as histories:
        run(histories, runs=40, steps=50, seed=1)
        assert histories.fired["call"] > 1500
        assert set(histories.fired) >= OFTEN


class NoFence(LateReaper):
    """Any attempt may write while the job runs."""

    def change_run(
        self,
        connection: Connection,
        job_id: str,
        attempt: int,
        values: dict[str, Any],
        events: Sequence[NewEvent] = (),
    ) -> None:
        current = jobs.c.attempt >= attempt
        assert self.change(connection, job_id, current & (jobs.c.status == Status.RUNNING), values, events)


class EagerReaper(LateReaper):
    """What had expired when it looked has expired for good."""

    def act(self, job_id: str, attempt: int) -> Any:
        self._expired = lambda: jobs.c.status == Status.RUNNING  # type: ignore[method-assign]
        try:
            return super().act(job_id, attempt)
        finally:
            del self._expired  # type: ignore[method-assign]


class DeafClaim(LateReaper):
    """A claim that asks for no epoch."""

    def change(
        self,
        connection: Connection,
        job_id: str,
        condition: ColumnElement[bool],
        values: dict[str, Any],
        events: Sequence[NewEvent] = (),
    ) -> bool:
        if values.get("phase") == "starting":
            condition = true() & (jobs.c.status == Status.QUEUED)
        return SqlBase.change(self, connection, job_id, condition, values, events)


class HastyDeletion(LateReaper):
    """A deletion that does not ask whether the job may go on from there."""

    def delete_checkpoint(self, checkpoint_id: str, owner: str) -> None:
        with self.writing() as connection:
            connection.execute(delete(job_checkpoints).where(job_checkpoints.c.id == checkpoint_id))


@pytest.mark.parametrize("broken", [NoFence, EagerReaper, DeafClaim, HastyDeletion])
def test_a_store_that_is_wrong_is_found(url: str, broken: type[LateReaper]) -> None:
    with machine(url, broken) as histories, pytest.raises(AssertionError):
        run(histories, runs=200, steps=50, seed=0, shrink=False)
