"""Random histories of jobs on a real database, each call compared with the model (model_job.py).

The clock is bound and goes where it likes, also back. Every attempt that ever claimed a job stays around as a
stale worker, every message as a late or double one, every look of a dispatcher or a reaper as one that acts too
late.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import delete

from jobs.errors import CheckpointGone, IdempotencyKeyReused, IllegalTransition, JobDeleted, LeaseLost
from jobs.schema import metadata
from jobs.spec import JobFailure, NewEvent, PPOSpec, Sample
from jobs.states import Action, Status
from jobs.store_jobs import Ending, JobChange
from tests.faults.model_actors import LateReaper, Save, VirtualClock, Worker, read
from tests.faults.model_deletions import Deletions
from tests.faults.model_job import LEASE_S, LEGAL, RESEND_S, TERMINAL, ModelJob, public

MOST_JOBS, STEPS = 4, 8
SPEC = PPOSpec.model_validate_json(
    """{"config": {"model": {"name": "m"}, "data": {"prompts": ["a"]},
        "reward": {"kind": "sentiment"}, "optimization": {"steps": 8}}}"""
)
REQUESTED = st.tuples(
    st.sampled_from(["me", "you"]),  # owner
    st.sampled_from([None, "k", "k", "l"]),  # key
    st.sampled_from(["a", "a", "b"]),  # what is asked for
    st.integers(1, 3),  # max_attempts
    st.sampled_from([5, 5, 9]),  # priority
)
MOVES_S = [0.5, 10.0, LEASE_S, LEASE_S + 1, LEASE_S + 1, 61.0, 700.0, -1.0, -LEASE_S, -5000.0]
PASSES_S = [LEASE_S + 1, 0.0, RESEND_S + 1, LEASE_S + 1, LEASE_S]
CALLS = {  # what may happen: how often, and what there must be for it
    "train": (6, "running"),
    "small_write": (3, "running"),
    "hand_back": (2, "running"),
    "save_again": (1, "running"),
    "finish": (1, "running"),
    "stale_write": (2, "workers"),
    "deliver": (5, "queued"),
    "deliver_any": (1, "jobs"),
    "request": (3, "jobs"),
    "change": (2, "jobs"),
    "reap": (1, "jobs"),
    "look": (2, "running"),
    "reap_late": (4, "looked"),
    "dispatch": (1, "queued"),
    "mark_late": (1, "unmarked"),
    "submit": (2, "room"),
    "delete_job": (1, "ended"),
    "delete_save": (1, "saved"),
    "sweep": (1, "notes"),
    "clock_moves": (1, "always"),
}
WRITES = ["train", "small_write", "hand_back", "save_again", "finish"]
FAILURE = JobFailure(code="nan_loss", detail="NaN")


NEVER = Save("job_000", "never", 1, 1)


class StoreMachine(Deletions, RuleBasedStateMachine):
    """One run: an empty database, and whatever comes to mind."""

    store: ClassVar[LateReaper]
    clock: ClassVar[VirtualClock]
    fired: ClassVar[Counter[str]]  # calls and their outcomes, over all runs

    def __init__(self) -> None:
        super().__init__()
        self.clock.time = 1_000_000.0
        with self.store.writing() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(delete(table))
        self.jobs: dict[str, ModelJob] = {}
        self.submitted = 0
        self.keys: dict[tuple[str, str], tuple[str, str]] = {}  # (owner, key): (request, job)
        self.messages: list[tuple[str, int]] = []  # everything that was ever sent
        self.unmarked: list[tuple[str, int]] = []  # sent, and the dispatcher has not said so yet
        self.workers: list[Worker] = []
        self.anybody = False  # may write, not only who owns a job
        self.looked: list[tuple[str, int]] = []  # by the late reaper
        self.before: dict[str, str] = {}  # public statuses
        self.frozen: dict[str, Any] = {}  # ended jobs as they were then

    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        """Something that is possible now."""
        possible = [
            name for name, (weight, needs) in CALLS.items() if getattr(self, needs) for _ in range(weight)
        ]
        what = data.draw(st.sampled_from(possible), label="call")
        self.saw("call", what)
        getattr(self, what)(data)

    # -- clients ------------------------------------------------------------------------------
    def submit(self, data: st.DataObject) -> None:
        owner, key, request, max_attempts, priority = data.draw(REQUESTED)
        start = data.draw(st.sampled_from([None, None, *self.saves(), None, NEVER]), label="from")
        source = start and self.jobs.get(start.job_id)
        job_id = f"job_{self.submitted:03}"
        limits = SPEC.limits.model_copy(update={"max_attempts": max_attempts})
        spec = SPEC.model_copy(update={"limits": limits, "priority": priority})
        resolved = {"resume_from": start and start.resolved()}
        known = None if key is None else self.keys.get((owner, key))
        try:
            created = self.store.create_job(
                job_id, owner, spec, resolved, idempotency_key=key, request_sha256=request
            )
        except IdempotencyKeyReused:
            self.saw("key refused")
            assert known is not None
            assert known[0] != request, "a repeat was refused"
            return
        except JobDeleted:
            self.saw("key of a deleted job")
            assert known is not None
            assert known[0] == request
            assert known[1] in self.gone
            return
        except CheckpointGone:
            self.saw("start refused")
            assert known is None
            assert source is None or start is None or start.name not in source.checkpoints
            return
        assert known is None or known[0] == request, "a key was taken for another request"
        assert created.replayed == (known is not None)
        if known is not None:
            self.saw("key replayed")
            assert created.job.id == known[1], "one key, two jobs"
            return
        assert created.job.id == job_id
        if start is not None:
            assert source is not None, "a job goes on from nothing"
            source.pinned.add(start.name)
        self.submitted += 1
        first_step = start.step if start else 0
        self.jobs[job_id] = ModelJob.new(
            now=self.now, first_step=first_step, max_attempts=max_attempts, priority=priority
        )
        self.jobs[job_id].owner, self.jobs[job_id].start = owner, start
        if key is not None:
            self.keys[owner, key] = (request, job_id)

    def saves(self) -> list[Save]:
        """Every checkpoint that is listed now."""
        return [
            Save(job_id, name, step, attempt)
            for job_id, job in self.jobs.items()
            for name, (step, attempt) in job.checkpoints.items()
        ]

    def request(self, data: st.DataObject) -> None:
        action = data.draw(st.sampled_from(["pause", "pause", "resume", "resume", "resume", "cancel"]))
        job_id, reason = (
            data.draw(st.sampled_from(sorted(self.jobs))),
            data.draw(st.sampled_from([None, "why"])),
        )
        saves, grace_s = data.draw(st.sampled_from([(True, None), (False, None), (True, 5.0)]))
        ending = Ending(saves=saves, grace_s=grace_s)
        try:
            job = self.store.request(job_id, Action(action), reason=reason, ending=ending)
        except IllegalTransition:
            self.saw(f"{action} refused")
            assert not self.jobs[job_id].request(action, self.now), "a legal request was refused"
            return
        granted = self.jobs[job_id].request(action, self.now, reason, (saves, grace_s))
        assert granted, "an illegal request was granted"
        assert job.public_status == public(self.jobs[job_id].row)

    def change(self, data: st.DataObject) -> None:
        """Another priority, or the same."""
        job_id, priority = data.draw(st.sampled_from(sorted(self.jobs))), data.draw(st.sampled_from([5, 9]))
        try:
            job = self.store.change_job(job_id, JobChange(priority=priority))
        except IllegalTransition:
            self.saw("change refused")
            assert not self.jobs[job_id].change(priority, self.now), "a legal change was refused"
            return
        assert self.jobs[job_id].change(priority, self.now), "an illegal change was granted"
        assert job.priority == priority

    # -- dispatcher ---------------------------------------------------------------------------
    def dispatch(self, data: st.DataObject) -> None:
        """It sends what is due; if it dies before it has marked that, somebody marks it later, or nobody."""
        for _ in range(data.draw(st.integers(1, 3), label="rounds")):
            self.some_time_passes(data)
            sent = [(job.id, job.epoch) for job in self.store.undispatched(resend_after_s=RESEND_S)]
            due = [(job_id, job) for job_id, job in self.jobs.items() if job.to_be_sent(self.now)]
            due.sort(key=lambda item: (-item[1].priority, item[1].row["queued_at"], item[0]))
            assert sent == [(job_id, job.row["epoch"]) for job_id, job in due]
            self.messages += sent
            self.unmarked += sent
            dies = data.draw(st.booleans(), label="dies")
            while self.unmarked and not dies:
                self._mark(len(self.unmarked) - 1)

    def mark_late(self, data: st.DataObject) -> None:
        self._mark(data.draw(st.integers(0, len(self.unmarked) - 1)))

    def _mark(self, index: int) -> None:
        job_id, epoch = self.unmarked.pop(index)
        self.store.mark_dispatched(job_id, epoch)
        self.model(job_id).mark(epoch, self.now)

    # -- reapers ------------------------------------------------------------------------------
    def reap(self, data: st.DataObject) -> None:
        self.some_time_passes(data)
        reaped = [(item.job_id, item.attempt, item.status) for item in self.store_reap()]
        due = [(job_id, job) for job_id, job in sorted(self.jobs.items()) if job.expired(self.now)]
        attempts = [job.row["attempt"] for _, job in due]
        ends = [job.release(self.now, crashed=True) for _, job in due]
        assert reaped == [
            (job_id, attempt, end) for (job_id, _), attempt, end in zip(due, attempts, ends, strict=True)
        ]
        self.saw(*(f"reaped: {end}" for end in ends))

    def some_time_passes(self, data: st.DataObject) -> None:
        """Mostly enough for a lease, else a reaper or a dispatcher has nothing to do."""
        self.clock.time += data.draw(st.sampled_from(PASSES_S), label="pass")

    def store_reap(self) -> list[Any]:
        """By a reaper that is in time: it looks and acts in one go."""
        done = [self.store.act(*seen) for seen in self.store.look()]
        return [item for item in done if item is not None]

    def look(self, data: st.DataObject) -> None:
        self.some_time_passes(data)
        self.looked += self.store.look()

    def reap_late(self, data: st.DataObject) -> None:
        job_id, attempt = data.draw(st.sampled_from(self.looked[::-1]))
        job = self.model(job_id)
        meanwhile = data.draw(st.sampled_from(["nothing", "renewed", "time"]), label="meanwhile")
        if meanwhile == "renewed" and job.owned_by(attempt):
            self.store.heartbeat(job_id, attempt, lease_s=LEASE_S)
            job.heartbeat(self.now)
        if meanwhile == "time":
            self.some_time_passes(data)
        due = job.owned_by(attempt) and job.expired(self.now)
        reaped = self.store.act(job_id, attempt)
        assert (reaped is not None) == due
        self.saw("reaped late" if due else "too late to reap")
        if due:
            assert reaped.status == job.release(self.now, crashed=True)

    # -- workers ------------------------------------------------------------------------------
    def deliver(self, data: st.DataObject) -> None:
        """The message that is awaited arrives."""
        self._claim(
            *data.draw(st.sampled_from([(job_id, self.jobs[job_id].row["epoch"]) for job_id in self.queued]))
        )

    def deliver_any(self, data: st.DataObject) -> None:
        """One that was sent at some time, or never."""
        shifts = st.sampled_from([-1, 0, 1])
        made_up = [(job_id, job.row["epoch"] + data.draw(shifts)) for job_id, job in self.jobs.items()]
        self._claim(*data.draw(st.sampled_from(self.messages + made_up)))

    def _claim(self, job_id: str, epoch: int) -> None:
        worker = f"w{len(self.workers)}"
        job = self.store.claim(job_id, epoch, worker=worker, lease_s=LEASE_S)
        model = self.model(job_id)
        assert (job is not None) == model.claim(epoch, worker, self.now)
        self.saw("claimed" if job else "stale message")
        if job is not None:
            assert job.attempt == model.row["attempt"]
            saved = [step for step, _ in model.checkpoints.values()]
            first = model.row["saved_step"] if not model.metrics else min(model.metrics) - 1
            self.workers.append(Worker(job_id, job.attempt, max(saved, default=first)))

    def write(self, worker: Worker, call: Callable[[], Any], expect: Callable[[ModelJob], Any]) -> Any:
        """A write of a run: refused whole unless the worker owns the job."""
        job = self.model(worker.job_id)
        owner = job.owned_by(worker.attempt)
        try:
            answer = call()
        except LeaseLost:
            assert not owner, "the owner was refused"
            self.saw("stale write")
            return None
        assert owner, "a stale attempt has written"
        expected = expect(job)
        assert expected is None or expected == answer
        return answer

    def small_write(self, data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(["heartbeat", "phase", "event", "retire", "drop"]))
        it = self.some_worker(data)
        mine = (it.job_id, it.attempt)
        names = [*self.model(it.job_id).checkpoints, "never"][-3:]
        if kind == "heartbeat":
            self.write(
                it,
                lambda: self.store.heartbeat(*mine, lease_s=LEASE_S) and None,
                lambda m: m.heartbeat(self.now),
            )
        elif kind == "phase":
            self.write(
                it, lambda: self.store.set_phase(*mine, "rollout"), lambda m: m.set_phase("rollout", self.now)
            )
        elif kind == "event":
            note = NewEvent(type="note", message="m")
            self.write(it, lambda: self.store.add_event(*mine, note), lambda m: m.add_event(self.now))
        else:
            damaged = kind == "drop"
            self.write(
                it,
                lambda: self.store.drop_checkpoints(*mine, names, also_pinned=damaged),
                lambda m: m.drop_checkpoints(names, self.now, also_pinned=damaged),
            )

    def train(self, data: st.DataObject) -> None:
        """The next step, and perhaps a checkpoint of it."""
        it = self.some_worker(data)
        step = it.step + 1
        if step > STEPS:
            return
        value = step + it.attempt / 8
        sample = Sample(step=step, kind="rollout", index=0, prompt="p", completion=f"{it.attempt}", data={})
        self.write(
            it,
            lambda: self.store.record_step(
                it.job_id,
                it.attempt,
                step=step,
                metrics={"value": value},
                timings={},
                samples=[sample],
                events=[NewEvent(type="note", message="m")],
            ),
            lambda m: m.record_step(step, value, self.now),
        )
        it.step = step
        if data.draw(st.booleans(), label="save"):
            self.save(it)

    def save_again(self, data: st.DataObject) -> None:
        self.save(self.some_worker(data))

    def save(self, it: Worker) -> None:
        name = f"step-{it.step}"
        save = Save(it.job_id, name, it.step, it.attempt)
        self.write(
            it,
            lambda: (
                self.store.record_checkpoint(
                    it.job_id, it.attempt, name=name, step=it.step, path=save.path, sha256=save.sha256, size=1
                )
                and None
            ),
            lambda m: m.record_checkpoint(name, it.step, self.now),
        )

    def finish(self, data: st.DataObject) -> None:
        it, status = self.some_worker(data), data.draw(st.sampled_from(sorted(TERMINAL)))
        result = {"model": "m"} if status == "succeeded" else None
        error = FAILURE if status == "failed" else None
        self.write(
            it,
            lambda: self.store.finish(it.job_id, it.attempt, Status(status), result=result, error=error),
            lambda m: m.finish(status, self.now, result=result, error=error and error.code),
        )

    def hand_back(self, data: st.DataObject) -> None:
        it, crashed = self.some_worker(data), data.draw(st.booleans(), label="crashed")
        end = self.write(
            it,
            lambda: self.store.hand_back(it.job_id, it.attempt, reason="r", crashed=crashed),
            lambda m: m.release(self.now, crashed=crashed),
        )
        if end is not None:
            self.saw(f"handed back: {end}")

    def stale_write(self, data: st.DataObject) -> None:
        """By any attempt that ever was."""
        self.anybody = True
        getattr(self, data.draw(st.sampled_from(WRITES)))(data)
        self.anybody = False

    def some_worker(self, data: st.DataObject) -> Worker:
        """One that owns a job, unless it may be anybody."""
        owners = [it for it in self.workers if self.model(it.job_id).owned_by(it.attempt)]
        return data.draw(st.sampled_from(self.workers if self.anybody else owners))

    # -- time ---------------------------------------------------------------------------------
    always = True

    @property
    def room(self) -> bool:
        """For another job."""
        return len(self.jobs) < MOST_JOBS

    @property
    def running(self) -> list[str]:
        """Jobs that somebody owns."""
        return [job_id for job_id, job in self.jobs.items() if job.row["status"] == "running"]

    @property
    def queued(self) -> list[str]:
        """Jobs that wait."""
        return [job_id for job_id, job in self.jobs.items() if job.row["status"] == "queued"]

    def clock_moves(self, data: st.DataObject) -> None:
        self.clock.time += data.draw(st.sampled_from(MOVES_S))

    @property
    def now(self) -> float:
        """By the clock that the database is given."""
        return self.clock.time

    def saw(self, *outcomes: str) -> None:
        """Count what happened, so that a run can show what it has tried."""
        self.fired.update(outcomes)

    # -- what must hold after each call -------------------------------------------------------
    @invariant()
    def the_database_is_as_the_model_says(self) -> None:
        self.seen = read(self.store)
        assert set(self.seen) == set(self.jobs), "I1, I2: every promised job, and no other"
        for job_id, job in self.jobs.items():
            seen = self.seen[job_id]
            expected = {
                "row": job.row,
                "events": job.events,
                "metrics": [(step, *row) for step, row in sorted(job.metrics.items())],
                "samples": [(step, f"{attempt}") for step, attempt in sorted(job.samples.items())],
                "checkpoints": sorted(
                    (name, *save, name in job.pinned) for name, save in job.checkpoints.items()
                ),
            }
            for part, value in expected.items():
                assert seen[part] == value, f"{job_id}: {part}"

    @invariant()
    def the_promises_are_kept(self) -> None:
        for job_id, seen in self.seen.items():
            row, name = seen["row"], public(seen["row"])
            before = self.before.get(job_id, name)
            assert name == before or name in LEGAL.get(before, ()), f"I3: {before} → {name}"
            self.before[job_id] = name
            if name in TERMINAL:
                now = seen | {"checkpoints": [save[:-1] for save in seen["checkpoints"]]}  # but for pins
                assert self.frozen.setdefault(job_id, now) == now, "I3: it had ended"
            running = row["status"] == "running"
            assert (row["lease_until"] is not None) == (row["worker"] is not None) == running, "I4"
            started = [attempt for _, kind, attempt in seen["events"] if kind == "job.started"]
            assert started == list(range(1, row["attempt"] + 1)), "I4: each claim is one attempt"
            steps = [step for step, *_ in seen["metrics"]]
            assert steps == list(range(steps[0], steps[0] + len(steps))) if steps else True, "I5"
            most = self.jobs[job_id].max_attempts
            assert row["crash_count"] <= most, "I7"
            assert name in TERMINAL or row["crash_count"] < most, "I7: it may not be tried again"
            assert (row["error"] is not None) == (name == "failed"), "I7: the reason"
            assert [seq for seq, *_ in seen["events"]] == list(range(1, row["event_seq"] + 1)), "I8"
