"""The state machine's table, by its laws."""

from hypothesis import given
from hypothesis import strategies as st

from jobs.states import SOURCES, TERMINAL, Desired, Status, public_status, status_after_release


def test_every_state_is_reached_and_only_terminal_ones_are_never_left() -> None:
    left = set().union(*SOURCES.values())
    assert set(SOURCES) == set(Status)
    assert left == set(Status) - TERMINAL


@given(st.sampled_from(Desired), st.integers(0, 5), st.integers(1, 5))
def test_a_released_run_goes_where_it_may(desired: Desired, crashes: int, most: int) -> None:
    status = status_after_release(desired, crashes, most)
    assert Status.RUNNING in SOURCES[status]
    assert (status is Status.CANCELLED) == (desired is Desired.CANCEL)
    assert (status is Status.PAUSED) == (desired is Desired.PAUSE)
    if desired is Desired.RUN:
        assert (status is Status.FAILED) == (crashes >= most)


def test_public_names_are_distinct_while_running_and_stored_names_otherwise() -> None:
    names = {public_status(Status.RUNNING, desired) for desired in Desired}
    assert names == {"running", "pausing", "cancelling"}
    for status in set(Status) - {Status.RUNNING}:
        assert {public_status(status, desired) for desired in Desired} == {status.value}
