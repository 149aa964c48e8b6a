"""What a store of jobs must do, in plain Python: one job as a dictionary of its row, its rows beside it.

Written from docs/architecture.md and shares no code with the store: no table, no formula, no status type.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

LEASE_S, RESEND_S = 30.0, 60.0
TERMINAL = {"succeeded", "failed", "cancelled"}

# public status -> where one call may take it
LEGAL = {
    "queued": {"running", "paused", "cancelled"},
    "running": {"queued", "pausing", "cancelling", "succeeded", "failed", "cancelled"},
    "pausing": {"running", "paused", "cancelling", "succeeded", "failed", "cancelled"},
    "paused": {"queued", "cancelled"},
    "cancelling": {"succeeded", "failed", "cancelled"},
}

# what a client asks -> public status -> (public status, event); the same status: nothing happens
REQUESTS: dict[str, dict[str, tuple[str, str]]] = {
    "pause": {
        "queued": ("paused", "job.paused"),
        "running": ("pausing", "job.pausing"),
        "pausing": ("pausing", ""),
        "paused": ("paused", ""),
    },
    "resume": {
        "paused": ("queued", "job.resumed"),
        "pausing": ("running", "job.pause_withdrawn"),
        "queued": ("queued", ""),
        "running": ("running", ""),
    },
    "cancel": {
        "queued": ("cancelled", "job.cancelled"),
        "paused": ("cancelled", "job.cancelled"),
        "running": ("cancelling", "job.cancelling"),
        "pausing": ("cancelling", "job.cancelling"),
        "cancelling": ("cancelling", ""),
        "cancelled": ("cancelled", ""),
    },
}
DESIRED = {"running": "run", "pausing": "pause", "cancelling": "cancel"}
ASKED_FOR = {desired: public for public, desired in DESIRED.items()}


def public(row: dict[str, Any]) -> str:
    """The status that clients see."""
    status: str = row["status"]
    return ASKED_FOR[row["desired"]] if status == "running" else status


class Start(Protocol):
    """Which checkpoint of which job."""

    job_id: str
    name: str


@dataclass
class ModelJob:
    """A job as it must be. `row` has every column but those that only repeat the request."""

    row: dict[str, Any]
    max_attempts: int
    priority: int
    events: list[tuple[int, str, int]] = field(default_factory=list)  # (seq, type, attempt)
    metrics: dict[int, tuple[float, int]] = field(default_factory=dict)  # step: (value, attempt)
    samples: dict[int, int] = field(default_factory=dict)  # step: attempt
    checkpoints: dict[str, tuple[int, int]] = field(default_factory=dict)  # name: (step, attempt)
    pinned: set[str] = field(default_factory=set)  # names of checkpoints
    owner: str = "me"
    start: "Start | None" = None  # the checkpoint that it was to begin with

    @classmethod
    def new(cls, *, now: float, first_step: int, max_attempts: int, priority: int) -> "ModelJob":
        """As created."""
        row: dict[str, Any] = dict.fromkeys(
            ["phase", "lease_until", "worker", "result", "error", "reason", "dispatched_at", "started_at"]
        )
        row |= dict.fromkeys(["progress_at", "heartbeat_at", "finished_at", "cancel_requested_at"])
        row |= dict.fromkeys(["attempt", "crash_count", "dispatched_epoch", "dispatches"], 0)
        row |= dict.fromkeys(["created_at", "queued_at", "updated_at"], now)
        row |= {"cancel_saves": True, "cancel_grace_s": None}
        row |= {"status": "queued", "desired": "run", "epoch": 1, "version": 1, "event_seq": 0, "latest": {}}
        job = cls(row | {"step": first_step, "saved_step": first_step}, max_attempts, priority)
        job._event("job.created")
        return job

    # -- clients ------------------------------------------------------------------------------
    def request(
        self,
        action: str,
        now: float,
        reason: str | None = None,
        ending: tuple[bool, float | None] = (True, None),
    ) -> bool:
        """False if it must be refused."""
        if public(self.row) not in REQUESTS[action]:
            return False
        after, event = REQUESTS[action][public(self.row)]
        if event:
            self._touch(now, event)
            self.row["reason"] = reason
            if action == "cancel":
                self.row["cancel_requested_at"] = now
                self.row["cancel_saves"], self.row["cancel_grace_s"] = ending
            if after in DESIRED:
                self.row["desired"] = DESIRED[after]
            else:
                self.row["status"] = after
                if after == "cancelled":
                    self.row["finished_at"] = now
                if after == "queued":
                    self.row |= {"epoch": self.row["epoch"] + 1, "queued_at": now}
        return True

    def change(self, priority: int, now: float) -> bool:
        """False if it must be refused. A message that was sent with another priority is stale."""
        if priority != self.priority:
            if self.row["status"] in TERMINAL:
                return False
            self.priority = priority
            self.row["epoch"] += self.row["status"] == "queued"
            self._touch(now)
        return True

    # -- dispatcher and reaper ----------------------------------------------------------------
    def to_be_sent(self, now: float) -> bool:
        """A message is due: none in this epoch, or the last of n waits for longer than n minutes (n ≤ 10)."""
        row = self.row
        if row["status"] != "queued":
            return False
        patience_s = RESEND_S * min(row["dispatches"], 10)
        return row["dispatched_epoch"] < row["epoch"] or row["dispatched_at"] < now - patience_s

    def mark(self, epoch: int, now: float) -> None:
        """A message was sent. Clients see no change."""
        row = self.row
        if row["status"] == "queued" and row["epoch"] == epoch:
            row["dispatches"] = row["dispatches"] + 1 if row["dispatched_epoch"] == epoch else 1
            row |= {"dispatched_epoch": epoch, "dispatched_at": now}

    def expired(self, now: float) -> bool:
        """Its owner has not renewed the lease in time."""
        return self.row["status"] == "running" and self.row["lease_until"] < now

    # -- the owner ----------------------------------------------------------------------------
    def owned_by(self, attempt: int) -> bool:
        """Writes of this attempt count."""
        return self.row["status"] == "running" and bool(self.row["attempt"] == attempt)

    def claim(self, epoch: int, worker: str, now: float) -> bool:
        """False for a message that is stale."""
        row = self.row
        if row["status"] != "queued" or row["epoch"] != epoch:
            return False
        row |= {"status": "running", "desired": "run", "phase": "starting", "worker": worker}
        row |= {"attempt": row["attempt"] + 1, "started_at": row["started_at"] or now}
        row |= {"lease_until": now + LEASE_S, "progress_at": now, "heartbeat_at": now}
        self._touch(now, "job.started")
        return True

    def heartbeat(self, now: float) -> None:
        """The lease is renewed."""
        self.row |= {"lease_until": now + LEASE_S, "heartbeat_at": now}
        self._touch(now)

    def set_phase(self, phase: str, now: float) -> None:
        """Progress."""
        self.row |= {"phase": phase, "progress_at": now}
        self._touch(now)

    def record_step(self, step: int, value: float, now: float) -> None:
        """A completed step; what an earlier attempt wrote of it is replaced."""
        attempt = self.row["attempt"]
        self.row |= {"step": step, "latest": {"value": value}, "progress_at": now}
        self.metrics[step], self.samples[step] = (value, attempt), attempt
        self._touch(now, "note")

    def record_checkpoint(self, name: str, step: int, now: float) -> None:
        """A save. Of a step that never was saved before, it is progress."""
        if step > self.row["saved_step"]:
            self.row |= {"saved_step": step, "crash_count": 0}
        self.row["progress_at"] = now
        self.checkpoints[name] = (step, self.row["attempt"])
        self._touch(now, "checkpoint.created")

    def drop_checkpoints(self, names: list[str], now: float, *, also_pinned: bool) -> list[str]:
        """Retention, or of what is damaged; returns what is not there any more."""
        gone = {name for name in names if also_pinned or name not in self.pinned}
        self.checkpoints = {name: save for name, save in self.checkpoints.items() if name not in gone}
        self.pinned -= gone
        self._touch(now)
        return [name for name in names if name not in self.checkpoints]

    def add_event(self, now: float) -> None:
        """Something to tell."""
        self._touch(now, "note")

    def finish(self, status: str, now: float, *, result: Any = None, error: str | None = None) -> None:
        """Its end."""
        self.row |= {"finished_at": now, "result": result, "error": error}
        self._leave(status, f"job.{status}", now)

    def release(self, now: float, *, crashed: bool) -> str:
        """Its owner gave it up, or was lost; returns the status."""
        self.row["crash_count"] += crashed
        if self.row["desired"] == "cancel":
            self.row["finished_at"] = now
            self._leave("cancelled", "job.cancelled", now)
        elif self.row["crash_count"] >= self.max_attempts:
            self.row |= {"finished_at": now, "error": "worker_lost"}
            self._leave("failed", "job.failed", now)
        elif self.row["desired"] == "pause":
            self.row["desired"] = "run"
            self._leave("paused", "job.paused", now)
        else:
            self.row |= {"epoch": self.row["epoch"] + 1, "queued_at": now}
            self._leave("queued", "job.requeued", now)
        return str(self.row["status"])

    def _leave(self, status: str, event: str, now: float) -> None:
        self.row |= {"status": status, "phase": None, "worker": None, "lease_until": None}
        self._touch(now, event)

    def _touch(self, now: float, event: str | None = None) -> None:
        self.row |= {"version": self.row["version"] + 1, "updated_at": now}
        if event:
            self._event(event)

    def _event(self, event: str) -> None:
        self.row["event_seq"] += 1
        self.events.append((self.row["event_seq"], event, self.row["attempt"]))
