"""Runs that go wrong by themselves: each ends in the right error, after bounded attempts, and bothers nobody else.

    python -m tests.faults.bad_runs [FAULT…]

Prints one JSON object per fault (bad_run_child.py): how the job ended under a real supervisor with real children,
and what was `wrong` with that.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from jobs.settings import Settings
from jobs.states import Action, Status
from tests.faults.bad_run_child import main as child_main
from tests.faults.bench import Bench, spec
from tests.faults.forking import ForkedChild, ForkServer, warm
from worker.child_log import FILE_BYTES
from worker.supervisor import Supervisor

MAX_ATTEMPTS = 2
# fault -> the error's code, the attempts spent, a word of detail or log, and an event that says what was tried
EXPECTED: dict[str, tuple[str | None, int, str, str]] = {
    "returns-none": ("reward_error", 1, "a list of 4 numbers", "job.failed"),
    "returns-strings": ("reward_error", 1, "'1.0', which is no number", "job.failed"),
    "returns-too-few": ("reward_error", 1, "a list of 4 numbers", "job.failed"),
    "raises-its-own-error": ("reward_error", 1, "raised Unheard: of", "job.failed"),
    "exits": ("reward_error", 1, "raised SystemExit: 0", "job.failed"),
    "is-nan": ("nan_loss", 1, "step 2: reward is NaN", "job.rolled_back"),
    "is-infinite": ("nan_loss", 1, "step 2: reward is infinite", "job.rolled_back"),
    "is-nan-once": (None, 1, "", "job.rolled_back"),
    "hangs": ("stalled", 2, "in hangs", "job.requeued"),
    "segfaults": ("crashed", 2, "SIGSEGV", "job.requeued"),
    "leaves-by-os-exit": ("crashed", 2, "exit code 3", "job.requeued"),
    "leaves-as-if-done": ("crashed", 1, "without a result", "job.failed"),
    "leaves-as-if-stopped": ("crashed", 2, "nobody had asked", "job.requeued"),
    "takes-all-memory": ("host_oom", 2, "ran out of memory", "job.requeued"),
    "prints-a-gigabyte": ("reward_error", 1, "the last line", "job.failed"),
    "nothing": (None, 1, "", "job.succeeded"),
    "tensors-take-all-memory": ("host_oom", 2, "DefaultCPUAllocator", "job.requeued"),
    "gpu-holds-one": (None, 1, "", "job.micro_batch_halved"),
    "gpu-holds-none": ("cuda_oom", 1, "CUDA out of memory", "job.micro_batch_halved"),
    "drifts-away": ("kl_diverged", 1, "step 2: exact sequence KL is", "job.failed"),
    "gradient-is-nan": ("nan_loss", 1, "step 2: the gradient of base_model", "job.rolled_back"),
    "dropout-is-on": ("audit_failed", 1, "dropout is", "job.audited"),
}
LIMITED = {  # step 1 still is at its reference, step 2 is not
    "drifts-away": {
        "controller": {"kind": "fixed"},
        "limit": {"max_nats_per_sequence": 1e-12, "patience_steps": 1},
    }
}
STALL_AFTER_S = {"hangs": 2.0}


def run(bench: Bench, server: ForkServer, fault: str, settings: Settings) -> dict[str, Any]:
    """One job under a supervisor until it is done."""
    limits = {"max_attempts": MAX_ATTEMPTS}
    job_id = bench.create(spec({"lora": {"rank": 2}}, limits=limits, **LIMITED.get(fault, {})))
    started = time.monotonic()
    settings = settings.model_copy(update={"stall_after_s": STALL_AFTER_S.get(fault, 600.0)})
    with bench.store() as store:
        supervisor = Supervisor(
            store,
            settings,
            worker="w",
            command=("train",),
            start_child=partial(ForkedChild, server=server, arguments=[fault]),
        )
        runs = 0
        while not (job := store.get_job(job_id)).done:
            supervisor.run(job_id, job.epoch)
            runs += 1
        events = store.list_events(job_id, limit=1000)
        listed = {(settings.artifacts / c.path).resolve() for c in store.list_checkpoints(job_id)}
    folder = settings.artifacts / job_id
    error = job.error
    return {
        "fault": fault,
        "job": job_id,
        "status": job.status.value,
        "attempts": runs,
        "error": error
        and {"code": error.code, "detail": error.detail, "hint": error.hint, "step": error.step},
        "log_tail": list(error.log_tail) if error else [],
        "events": [event.type for event in events],
        "seqs": [event.seq for event in events] == list(range(1, len(events) + 1)),
        "log_bytes": sum(path.stat().st_size for path in folder.glob("*/log.txt")),
        "orphans": [str(p) for p in folder.glob("*/*") if p.is_dir() and p.resolve() not in listed],
        "seconds": round(time.monotonic() - started, 2),
    }


def beside(bench: Bench, server: ForkServer, settings: Settings) -> dict[str, Any]:
    """A healthy job while another hangs: it ends while the other still stands where it stood."""
    hung: dict[str, Any] = {}
    hanging = bench.create(spec({"lora": {"rank": 2}}))

    def hang() -> None:
        with bench.store() as store:
            start = partial(ForkedChild, server=server, arguments=["hangs"])
            hung["status"] = Supervisor(store, settings, worker="h", start_child=start).run(hanging, 1)

    thread = threading.Thread(target=hang, daemon=True)
    thread.start()
    with bench.store() as store:
        while store.get_job(hanging).step < 1:
            time.sleep(0.05)
        healthy = run(bench, server, "nothing", settings)
        still = store.get_job(hanging).status is Status.RUNNING
        store.request(hanging, Action.CANCEL)
        thread.join()
        return {"fault": "beside", "healthy": healthy, "still_hanging": still, "ended": hung["status"]}


def wrong(result: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    if result["fault"] == "beside":
        beside_ok = result["still_hanging"] and result["ended"] == Status.CANCELLED
        return wrong(result["healthy"]) + (
            [] if beside_ok else ["the hanging job did not hang, or could not be ended"]
        )
    code, attempts, word, event = EXPECTED[result["fault"]]
    error = result["error"] or {}
    said = [error.get("detail") or "", *result["log_tail"]]
    checks = {
        f"code {code}": error.get("code") == code,
        f"{attempts} attempts": result["attempts"] == attempts,
        f"says {word!r}": any(word in line for line in said),
        f"event {event}, once": result["events"].count(event) == 1,
        "hint and log": code is None or bool(error["hint"] and result["log_tail"]),
        "events without gaps": result["seqs"],
        "bounded log": result["log_bytes"] <= FILE_BYTES * attempts,
        "no orphans": not result["orphans"],
    }
    return [name for name, holds in checks.items() if not holds]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("faults", nargs="*", choices=[[], *EXPECTED, "beside"])
    options = parser.parse_args(arguments)
    warm()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="kleash-bad-") as folder:
        bench = Bench(Path(folder))
        server = ForkServer(child_main)  # knows the bench's environment, has no database open
        settings = bench.settings.model_copy(update={"heartbeat_s": 0.2, "stop_grace_s": 5.0})
        for fault in options.faults or [*EXPECTED, "beside"]:
            result = (
                beside(bench, server, settings) if fault == "beside" else run(bench, server, fault, settings)
            )
            result["wrong"] = wrong(result)
            failed += bool(result["wrong"])
            if result.get("status") == Status.SUCCEEDED:
                result["outcome"] = bench.outcome(result["job"])
            os.write(1, json.dumps(result).encode() + b"\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
