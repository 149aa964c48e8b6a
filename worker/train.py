"""The child of a job: `python -m worker.train JOB_ID ATTEMPT`, started and watched by worker/supervisor.py.

It trains (worker/run.py) or scores (worker/score_batch.py), as the job's type says, and writes the terminal state
`succeeded`; each write is fenced. SIGTERM: save what is not saved, exit 75. No database: exit 69. A failure that
has a name (worker/failures.py): error.json, exit 70 or 71. All else shows in the exit code. In training, what a
fresh process may cure (a NaN that the hardware made, a GPU whose memory was not enough) is tried once more by
becoming a fresh process: same pid, same attempt, nothing of the old one's memory.
"""

import faulthandler
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from jobs.lifeline import die_with_parent

die_with_parent()  # before the slow imports: an orphan must not keep the GPU

import structlog  # noqa: E402

from jobs.errors import LeaseLost, StoreUnavailable  # noqa: E402
from jobs.settings import Settings  # noqa: E402
from jobs.spec import Job  # noqa: E402
from jobs.sql_store import open_store  # noqa: E402
from jobs.store import Store  # noqa: E402
from jobs.system import SystemClock  # noqa: E402
from rlhf_core.errors import NonFiniteLoss  # noqa: E402
from worker.failures import EXIT_STOPPED, EXIT_UNREACHABLE, failure_of  # noqa: E402
from worker.patience import patient  # noqa: E402
from worker.reward_endpoints import endpoints_of  # noqa: E402
from worker.run import Stop, Stopped, TrainingRun, fixed_device  # noqa: E402
from worker.score_batch import ScoreRun  # noqa: E402
from worker.scorer.sources import AllowedSources  # noqa: E402

PATIENCE_SHARE = 0.8  # of the lease: as long as the supervisor goes on without a renewal
log = structlog.get_logger()


def main() -> int:
    """Parse, run, and turn a known failure into error.json; returns the exit code."""
    job_id, attempt = sys.argv[1], int(sys.argv[2])
    settings, stop = Settings(), Stop()
    signal.signal(signal.SIGTERM, stop.request)
    faulthandler.enable()  # a segfault leaves its traceback in the log,
    faulthandler.register(signal.SIGTERM, chain=True)  # a run that hangs does when it is told to stop
    folder = settings.artifacts / job_id / str(attempt)
    run: TrainingRun | ScoreRun | None = None
    try:
        store = patient(open_store(settings), SystemClock(), for_s=PATIENCE_SHARE * settings.lease_s)
        job = store.get_job(job_id)
        if job.attempt != attempt:
            return EXIT_STOPPED
        if job.trace_id is not None:
            structlog.contextvars.bind_contextvars(trace_id=job.trace_id)
        run = run_of(store, job, folder, settings)
        return run.run(stop)
    except Stopped:
        return EXIT_STOPPED
    except LeaseLost:
        log.warning("stopped: another attempt owns the job")
        return EXIT_STOPPED
    except StoreUnavailable as error:
        log.warning("stopped: no database", reason=str(error))
        return EXIT_UNREACHABLE
    except Exception as error:
        stop.defer()
        failure = failure_of(error, step=None if run is None else run.step)
        if failure is None:
            raise
        traceback.print_exc()  # plain: the log's last lines go to the client
        try:
            again = isinstance(run, TrainingRun) and worth_another_try(run, error, failure.code)
        except LeaseLost:
            return EXIT_STOPPED
        except StoreUnavailable:
            return EXIT_UNREACHABLE
        if again:
            if not stop.requested:
                start_again()
            return EXIT_STOPPED
        return failure.tell(folder)


def run_of(store: Store, job: Job, folder: Path, settings: Settings) -> TrainingRun | ScoreRun:
    """One attempt, as the job's type says."""
    sources = AllowedSources(settings)
    if job.spec.type == "score":
        return ScoreRun(
            store,
            job,
            folder,
            fixed_device(),
            sources=sources,
            max_batch_tokens=settings.max_batch_tokens,
        )
    return TrainingRun(store, job, folder, fixed_device(), endpoints_of(settings), sources=sources)


def worth_another_try(run: TrainingRun, error: Exception, code: str) -> bool:
    """True if a fresh process may cure it and has not failed to before."""
    if isinstance(error, NonFiniteLoss):
        return run.roll_back(error)
    return code == "cuda_oom" and run.halve_micro_batch()


def start_again() -> NoReturn:
    """Become a fresh process with the same command."""
    sys.stdout.flush()
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    code = main()
    sys.stdout.flush()
    os._exit(code)  # nothing is left to save; atexit handlers of libraries must not change the code
