"""The part of the port to the rows that reads what hangs on a job, and what a client may change of it."""

from typing import Protocol, TypedDict, Unpack

from jobs.metric_series import RunMark, SeriesAnswer, SeriesQuery
from jobs.spec import Checkpoint


class CheckpointValues(TypedDict, total=False):
    """What a client may set of a checkpoint."""

    pinned: bool  # retention leaves it alone
    expires_at: float | None


class DataStore(Protocol):
    """Of jobs.store.Store."""

    def run_mark(self, job_id: str, owner: str | None = None) -> RunMark:
        """How far the job is, without its spec. Raises JobNotFound, as get_job."""
        ...

    def metric_keys(self, job_id: str) -> list[str]:
        """Every key that some step of the job has had a number for, ascending."""
        ...

    def metric_series(self, job_id: str, query: SeriesQuery) -> SeriesAnswer:
        """The points that the query chooses. Raises JobNotFound."""
        ...

    def find_checkpoint(self, checkpoint_id: str, owner: str | None = None) -> Checkpoint:
        """By its id. Raises CheckpointNotFound, also when `owner` is given and its job is not theirs."""
        ...

    def change_checkpoint(
        self, checkpoint_id: str, owner: str, **values: Unpack[CheckpointValues]
    ) -> Checkpoint:
        """Set what is given.

        Raises:
            CheckpointNotFound: no such checkpoint of this owner.
            CheckpointInUse: it is to be unpinned, and a job needs it.
        """
        ...

    def expire_checkpoints(self, *, limit: int = 100) -> list[str]:
        """Delete those whose time is over and whose job has ended, but none that is pinned or that a job needs.

        Returns their ids, of `limit` at most.
        """
        ...

    def delete_checkpoint(self, checkpoint_id: str, owner: str) -> None:
        """Remove the save of a job that has ended, and leave a note that its folder is to go.

        Raises:
            CheckpointNotFound: no such checkpoint of this owner.
            IllegalTransition: its job has not ended, and may have to go on from there.
            CheckpointInUse: another job needs it.
        """
        ...
