"""The state machine's table, by its laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.states import (
    REQUESTS,
    SOURCES,
    TERMINAL,
    Action,
    Desired,
    Status,
    public_status,
    status_after_release,
)


def test_every_state_is_reached_and_only_terminal_ones_are_never_left() -> None:
    left = set().union(*SOURCES.values())
    assert set(SOURCES) == set(Status)
    assert left == set(Status) - TERMINAL


@given(st.sampled_from(Desired), st.integers(0, 5), st.integers(1, 5))
def test_a_released_run_goes_where_it_may(desired: Desired, crashes: int, most: int) -> None:
    status = status_after_release(desired, crashes, most)
    assert Status.RUNNING in SOURCES[status]
    assert (status is Status.CANCELLED) == (desired is Desired.CANCEL)
    if desired is not Desired.CANCEL:
        wanted = {Desired.RUN: Status.QUEUED, Desired.PAUSE: Status.PAUSED}[desired]
        assert status is (Status.FAILED if crashes >= most else wanted)


@pytest.mark.parametrize("action", Action)
def test_a_request_leads_to_a_state_that_keeps_it(action: Action) -> None:
    names = {public_status(status, desired) for status in Status for desired in Desired}
    for before, after in REQUESTS[action].items():
        assert {before, after} <= names
        assert before == after or before not in TERMINAL
        assert REQUESTS[action][after] == after, "asked again, it changes nothing"


def test_public_names_are_distinct_while_running_and_stored_names_otherwise() -> None:
    names = {public_status(Status.RUNNING, desired) for desired in Desired}
    assert names == {"running", "pausing", "cancelling"}
    for status in set(Status) - {Status.RUNNING}:
        assert {public_status(status, desired) for desired in Desired} == {status.value}
