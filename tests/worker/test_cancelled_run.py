"""A cancel of a real training process leaves a last checkpoint, from which another job goes on.

And the process logs under the trace of the request. Without a last checkpoint: `test_supervisor_stops`.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.settings import Settings
from jobs.spec import PPOSpec
from jobs.sql_store import SqlStore
from jobs.states import Action, Status
from jobs.store_jobs import Ending
from rlhf_core.checkpoint import verify_checkpoint
from tests.worker.supervised import LONG_S, wait_until
from worker.supervisor import Supervisor

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
NEVER = 10_000  # steps that no test waits for


def spec(steps: int) -> PPOSpec:
    config = {
        "model": {"name": "tiny", "lora": {"rank": 2}},
        "data": {"prompts": ["The cat", "A lovely"]},
        "reward": {"kind": "length", "target_tokens": 4},
        "rollout": {"batch_size": 2, "max_new_tokens": 4},
        "optimization": {"steps": steps, "minibatches": 1},
        "checkpoint": {"every_steps": NEVER},
    }
    return PPOSpec.model_validate({"config": config})


def test_a_cancelled_run_leaves_a_checkpoint_to_go_on_from(
    tmp_path: Path, store: SqlStore, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLEASH_DATA", str(tmp_path))
    monkeypatch.setenv("KLEASH_MODEL_ROOTS", json.dumps([str(tiny_model.parent)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = Settings(data=tmp_path, heartbeat_s=0.05, lease_s=60.0, stop_grace_s=0.0)
    supervisor = Supervisor(store, settings, worker="w")
    model = {"model": {"path": str(tiny_model)}}
    store.create_job("job_1", "me", spec(NEVER), model, trace_id=TRACE)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(supervisor.run, "job_1", 1)
        wait_until(lambda: store.get_job("job_1").step >= 2 or run.done())
        store.request("job_1", Action.CANCEL, ending=Ending(grace_s=LONG_S))
        assert run.result() is Status.CANCELLED
    job, saved = store.get_job("job_1"), store.list_checkpoints("job_1")
    lines = (settings.artifacts / "job_1" / "1" / "log.txt").read_text().splitlines()
    told = [line for line in lines if TRACE in line]
    assert len(told) >= 3  # the run, and each step
    folders = [path.name for path in (settings.artifacts / "job_1").glob("*/*") if path.is_dir()]
    assert folders == [checkpoint.name for checkpoint in saved]
    (last,) = saved
    assert (last.name, last.step) == (f"step-{job.step}", job.step)
    verify_checkpoint(settings.artifacts / last.path, last.sha256)

    start = {"path": last.path, "sha256": last.sha256, "step": last.step, "job_id": "job_1"}
    start |= {"name": last.name, "same_kl": True, "same_evaluation": True}
    store.create_job("job_2", "me", spec(last.step + 1), model | {"resume_from": start})
    assert supervisor.run("job_2", 1) is Status.SUCCEEDED
    assert [row.step for row in store.list_metrics("job_2")] == [last.step + 1]
