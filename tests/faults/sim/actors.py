"""Who lives in the world: API replicas with their loops, workers, and clients who change their minds."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.errors import UnknownModel
from api.services.analysis import RunAnalysis
from api.services.files import FileService
from api.services.job_data import JobData
from api.services.job_files import JobFiles
from api.services.jobs import JobService
from api.services.models import ModelResolver
from jobs.dispatcher import Dispatcher
from jobs.errors import CheckpointGone, IllegalTransition, JobNotFound, StoreUnavailable
from jobs.reaper import Reaper
from jobs.settings import Settings
from jobs.spec import Job, PPOSpec
from jobs.sql_store import SqlStore
from jobs.states import Action
from jobs.upload_folder import UploadFolder
from tests.faults.sim.child import SimChild
from tests.faults.sim.kernel import Process, SimEvent, Task, World
from tests.faults.sim.ports import Gate, Queue, SimBroker, SimClock, SimFiles, SimRng, SimStore, Spy
from worker.supervisor import Supervisor

MOST_REPLICAS, MOST_WORKERS, CLIENTS = 2, 2, 2
RESTART_S = (0.1, 6.0)
OWNER = "owner"


@dataclass
class Site:
    """The deployment and what its clients have been told."""

    world: World
    settings: Settings
    store: SqlStore
    spy: Spy
    queue: Queue
    folder: Path
    apis: list["Api"] = field(default_factory=list)
    workers: list[Process] = field(default_factory=list)
    busy_clients: int = 0
    promised: list[str] = field(default_factory=list)
    keys: dict[str, set[str]] = field(default_factory=dict)
    ended: dict[str, Job] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    @property
    def gate(self) -> Gate:
        return self.world.gate

    def port(self) -> SimStore:
        return SimStore(self.gate, self.store, self.spy)

    def later(self) -> float:
        """How long until a dead process is started again."""
        return self.world.rng.uniform(*RESTART_S)


class Unfollowed:
    """Live's part in the service: nobody polls or follows here."""

    def saw(self, jobs: Sequence[Job]) -> None: ...


class Api:
    """One replica: a process with a dispatcher, a reaper and the service that requests reach."""

    def __init__(self, site: Site, name: str, delay_s: float) -> None:
        self.process = Process(site.world, name)
        world = site.world
        self.process.on_death = lambda: None if world.over else self._again(site, name)
        self.up_at = world.time + delay_s
        home, world.current.process = world.current.process, self.process  # who makes the loops' events
        store = site.port()
        dispatcher = Dispatcher(store, SimBroker(site.gate, site.queue), site.settings)
        world.current.process = home
        reaper, stop = Reaper(store, site.settings), SimEvent(world)
        models, analysis = ModelResolver(site.settings, store), RunAnalysis(store)
        uploads = FileService(store, UploadFolder(site.settings.uploads), owner_may_have=0)  # nobody uploads
        files = JobFiles(models, uploads)
        self.service = JobService(
            store, models, SimRng(site.gate), dispatcher.wake, analysis, files, Unfollowed()
        )
        self.data = JobData(store, analysis, site.settings.artifacts)
        for loop in (dispatcher, reaper):
            Task(world, self.process, lambda loop=loop: loop.run(stop), delay_s)  # type: ignore[misc]

    def _again(self, site: Site, name: str) -> None:
        site.apis[site.apis.index(self)] = Api(site, name, site.later())


def start_worker(site: Site, name: str, delay_s: float) -> None:
    """A worker process, and its successor when it ends."""
    world = site.world
    process = Process(world, name)
    site.workers.append(process)

    def again() -> None:
        site.workers.remove(process)
        if not world.over:
            start_worker(site, name, site.later())

    process.on_death = again
    Task(world, process, lambda: _work(site, process), delay_s)


def _work(site: Site, process: Process) -> None:
    """As worker.app.run_job, for one message after the other, each acknowledged when it comes."""
    broker = SimBroker(site.gate, site.queue)
    with suppress(SystemExit):
        while True:
            _run_one(site, process, *broker.receive())
    site.world.kill(process)


def _run_one(site: Site, process: Process, job_id: str, epoch: int) -> None:
    supervisor = Supervisor(
        site.port(),
        site.settings,
        worker=process.name,
        clock=SimClock(site.gate),
        files=SimFiles(site.gate),
        start_child=lambda command, folder, **_: SimChild(site.world, command, folder),
    )
    with suppress(StoreUnavailable):
        supervisor.run(job_id, epoch)


def shut_down(site: Site, process: Process) -> None:
    """SIGTERM: Celery raises SystemExit wherever the worker's main thread is."""

    def exit_() -> None:
        raise SystemExit(0)

    main = next((task for task in site.world.tasks if task.process is process), None)
    if main is None or not main.started:
        site.world.kill(process)
    else:
        main.interrupt = exit_
        main.wake_at = min(main.wake_at, site.world.time)


class Client:
    """Creates jobs, polls them, and asks for this and that."""

    def __init__(self, site: Site, number: int, specs: list[PPOSpec]) -> None:
        self.site, self.number, self.specs = site, number, specs
        self.process = Process(site.world, f"client{number}")
        self.process.killable = False
        site.busy_clients += 1
        Task(site.world, self.process, self._live, site.world.rng.uniform(0.0, 2.0))

    def _live(self) -> None:
        rng = self.site.world.rng
        mine = []
        for number, spec in enumerate(self.specs):
            key = f"key-{self.number}-{number}" if rng.random() < 0.8 else None
            if key is not None and rng.random() < 0.4:
                self._repeat_at_the_same_time(spec, key)
            mine.append(self._create(spec, key))
        while not self.site.world.calm:
            self.site.world.sleep(rng.expovariate(1 / 5.0))
            what = rng.choice(["get"] * 5 + ["pause", "resume", "resume", "cancel", "go on"])
            if what != "go on":
                self._ask(rng.choice(mine), what)
            elif (spec := self._continuation(rng.choice(mine))) is not None:
                with suppress(UnknownModel, CheckpointGone):  # retired meanwhile, or at this very moment
                    mine.append(self._create(spec, None))
        for job_id in mine:
            if rng.random() < 0.7:
                self._ask(job_id, "resume")
        self.site.busy_clients -= 1

    def _repeat_at_the_same_time(self, spec: PPOSpec, key: str) -> None:
        """An impatient client sends the same request once more, to whichever replica."""

        def repeat() -> None:
            self._create(spec, key)
            self.site.busy_clients -= 1

        self.site.busy_clients += 1
        Task(self.site.world, self.process, repeat, self.site.world.rng.uniform(0.0, 0.05))

    def _create(self, spec: PPOSpec, key: str | None) -> str:
        """Again and again until somebody says 201."""
        site = self.site
        while True:
            job = self._call(lambda api: api.service.create(spec, OWNER, key).job)
            if job is not None:
                site.promised.append(job.id)
                if key is not None:
                    site.keys.setdefault(key, set()).add(job.id)
                return str(job.id)
            site.world.sleep(site.world.rng.uniform(0.1, 3.0))

    def _continuation(self, job_id: str) -> PPOSpec | None:
        """A job that goes on from one of another job's checkpoints."""
        job = self._call(lambda api: api.service.get(job_id, OWNER))
        saved = self._call(lambda api: api.data.checkpoints(job_id, OWNER))
        if job is None or not saved:
            return None
        rng = self.site.world.rng
        chosen = rng.choice(saved)
        document = job.spec.model_dump()
        document["resume_from"] = f"{job_id}@{chosen.name}"
        document["config"]["optimization"]["steps"] = chosen.step + rng.randint(1, 3)
        return PPOSpec.model_validate(document)

    def _ask(self, job_id: str, what: str) -> None:
        def ask(api: Api) -> Job:
            if what == "get":
                return api.service.get(job_id, OWNER)
            return api.service.request(Action(what), job_id, OWNER)

        job = self._call(ask)
        if job is not None:
            self._look(job)

    def _look(self, job: Job) -> None:
        """What one client may never see."""
        site = self.site
        if job.version < site.versions.get(job.id, 0):
            site.world.fault(f"{job.id} went back from version {site.versions[job.id]} to {job.version}")
        site.versions[job.id] = job.version
        if job.id in site.ended and job != site.ended[job.id]:
            site.world.fault(f"{job.id} changed after it had ended: {site.ended[job.id]} → {job}")
        if job.done:
            site.ended[job.id] = job

    def _call(self, request: Callable[[Api], Any]) -> Any:
        """The answer; None if there was none, or a refusal."""
        api = self.site.world.rng.choice(self.site.apis)
        if self.site.world.time < api.up_at:
            return None
        try:
            with self.site.world.visit(api.process):
                answer = request(api)
                self.site.gate.after("response")
                return answer
        except (ConnectionError, StoreUnavailable, IllegalTransition):
            return None
        except JobNotFound as error:
            self.site.world.fault(f"a promised job is not found: {error}")
            return None
