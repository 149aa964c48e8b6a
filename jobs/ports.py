"""The ports beside the store (jobs/store.py): everything else with a side effect that a job's life needs.

Production binds CeleryBroker, LocalFiles, SystemClock, SystemRng and HttpScorer; tests and
simulations bind others. One contract suite (tests/contracts/) runs on every implementation of a port.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from jobs.residents import Residents
from jobs.scoring_wire import ModelSource, ScoreReply, ScoreRequest
from jobs.tokenizing_wire import TokenizeReply, TokenizeRequest


class Broker(Protocol):
    """Carries the hint that a job is waiting."""

    def publish(self, job_id: str, epoch: int, *, queue: str, priority: int) -> None:
        """Send `{job_id, epoch}`; of waiting messages the highest priority (0–9) goes first.

        Raises BrokerUnavailable.
        """
        ...

    def ready(self) -> bool:
        """True if the broker answers within about a second."""
        ...


class Files(Protocol):
    """The folder of a job's artifacts: durable, atomic writes (docs/architecture.md, "Checkpoints")."""

    def publish_folder(self, partial: Path, final: Path) -> None:
        """fsync every file of `partial`, rename it to `final` (replacing it), fsync the parent."""
        ...

    def remove_folder(self, folder: Path) -> None:
        """Remove a folder and all below; no error if it is not there."""
        ...

    def keep_only(self, folder: Path, kept: Collection[Path]) -> None:
        """Remove the folders in `folder` that are not in `kept`; files stay. All that is gone stays gone."""
        ...


class Clock(Protocol):
    """Durations inside one process. Leases use the database's clock instead."""

    def monotonic(self) -> float:
        """Seconds; only differences mean something."""
        ...

    def wait(self, seconds: float) -> None:
        """Return after so many seconds."""
        ...


class Rng(Protocol):
    """Identifiers and secrets."""

    def job_id(self) -> str:
        """`job_` and a UUIDv7 in hex: sortable by time."""
        ...

    def secret(self) -> str:
        """256 random bits, URL-safe."""
        ...


class Scorer(Protocol):
    """Answers how far a policy's next-token distributions are from a reference's."""

    async def score(self, request: ScoreRequest, *, timeout_s: float) -> ScoreReply:
        """Score every item; cancelling it gives the request up.

        Raises ScorerUnavailable, ScorerOverloaded, DeadlineExceeded, ScoringRefused.
        """
        ...

    async def tokenize(self, request: TokenizeRequest, *, timeout_s: float) -> TokenizeReply:
        """What a model's tokenizer makes of texts or ids. Raises as `score`."""
        ...

    def ready(self) -> bool:
        """True if the scorer has its default pair loaded."""
        ...

    def residents(self) -> list[Residents]:
        """The models of each scorer that answers."""
        ...

    def load(self, source: ModelSource) -> None:
        """Have every scorer that answers load a model, soon. Raises ScorerUnavailable, ScoringRefused."""
        ...

    def unload(self, source: ModelSource) -> None:
        """Have every scorer that answers give a model up, soon. Raises as `load`."""
        ...
