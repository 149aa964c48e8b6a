"""Stands in for worker.train: `standin_child.py MODE FOLDER JOB_ID ATTEMPT`, or what a real one may do."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

mode, folder, job_id, attempt = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
run_folder = folder / "jobs" / job_id / attempt

# Held, as long as anything of this run lives: by this process and by what inherits the descriptor.
alive = os.open(folder / "alive", os.O_CREAT | os.O_RDWR)
os.set_inheritable(alive, True)
fcntl.flock(alive, fcntl.LOCK_SH)


def stop_cleanly(signum: int, frame: object) -> None:
    os.write(1, b"saved\n")
    os._exit(75)


def say_started() -> None:
    with (folder / "starts").open("a") as starts:
        starts.write(f"{attempt}\n")


def wait_for_ever() -> None:
    say_started()
    while True:
        time.sleep(600)


if mode in ("succeed", "succeed and be deleted"):
    from jobs.settings import Settings
    from jobs.sql_store import open_store
    from jobs.states import Status

    say_started()  # who sees the job done reads it
    store = open_store(Settings())
    store.record_step(job_id, int(attempt), step=1, metrics={"a": 1.0}, timings={})
    store.finish(job_id, int(attempt), Status.SUCCEEDED, result={"model": "m"})
    if mode == "succeed and be deleted":  # by a client that has been polling
        store.delete_job(job_id)
elif mode == "succeed and linger":
    from jobs.settings import Settings
    from jobs.sql_store import open_store
    from jobs.states import Status

    open_store(Settings()).finish(job_id, int(attempt), Status.SUCCEEDED)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wait_for_ever()
elif mode == "fail":
    told = {"code": "nan_loss", "detail": "NaN in the loss", "hint": "h", "step": 3}
    (run_folder / "error.json").write_text(json.dumps(told))
    sys.exit(70)
elif mode == "fail mutely":
    (run_folder / "error.json").write_text('["no object"]')
    sys.exit(70)
elif mode == "signal":
    os.write(1, b"".join(b"line %d\n" % n for n in range(50)))
    os.kill(os.getpid(), signal.SIGKILL)
elif mode == "obey":
    signal.signal(signal.SIGTERM, stop_cleanly)
    wait_for_ever()
elif mode == "obey slowly":
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(2.0), stop_cleanly(0, None)))
    wait_for_ever()
elif mode == "69 soon":
    time.sleep(1.8)  # later than half a lease, sooner than the supervisor gives up
    sys.exit(69)
elif mode == "deaf":
    signal.signal(signal.SIGTERM, lambda *_: (folder / "told").touch())
    subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False, stdin=subprocess.DEVNULL
    )
    wait_for_ever()
elif mode == "leave a grandchild":
    subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False, stdin=subprocess.DEVNULL
    )
    sys.exit(1)
elif mode == "environment":
    (run_folder / "environment.json").write_text(json.dumps(dict(os.environ)))
elif mode == "orphan":
    from jobs.lifeline import die_with_parent

    die_with_parent()
    wait_for_ever()
else:
    sys.exit(int(mode))
