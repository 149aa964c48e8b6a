"""Makes examples/adapter: the policy of the default pair, trained by the PPO recipe of examples/demo_job.json.

    make example-adapter        about three minutes on 2 cores; prints each step and the adapter's sha256

It runs the same `train(...)` as a worker does, with an adapter small enough (rank 2) for the repository.
"""

import json
import shutil
import tempfile
from pathlib import Path

from prepare_model import HERE, prepare

from jobs.spec import PPOSpec
from rlhf_core.checkpoint import sha256
from rlhf_core.evaluation import paired_difference, summarise
from rlhf_core.policies import new_policy
from rlhf_core.ppo import train
from rlhf_core.rewards import make_reward
from rlhf_core.update import fresh_state

TARGET = HERE / "adapter"


def main() -> None:
    """Train, then keep the adapter alone: the tokenizer is its base's."""
    spec = PPOSpec.model_validate(json.loads((HERE / "demo_job.json").read_text()))
    model = spec.config.model.model_copy(
        update={"lora": spec.config.model.lora.model_copy(update={"rank": 2})}
    )
    steps = spec.config.optimization.model_copy(update={"steps": 14})
    config = spec.config.model_copy(update={"model": model, "optimization": steps, "seed": 1})
    assert config.data.prompts is not None
    assert config.data.eval_prompts is not None
    policy = new_policy(str(prepare()), model, seed=config.seed)
    state = fresh_state(policy, config)
    for step in train(
        policy,
        state,
        config,
        prompts=config.data.prompts,
        eval_prompts=config.data.eval_prompts,
        reward=make_reward(config.reward),
    ):
        shown = {name: round(value, 4) for name, value in (step.metrics | step.timings).items()}
        print(step.step, json.dumps(shown), flush=True)
    if state.baseline and state.latest:
        print("before", summarise(state.baseline))
        print("after", summarise(state.latest))
        print("difference", paired_difference(state.baseline, state.latest))
        for text, completion in list(zip(state.latest.prompts, state.latest.completions, strict=True))[:12]:
            print("  ", repr(text + completion))

    with tempfile.TemporaryDirectory() as scratch:
        policy.save(Path(scratch))
        TARGET.mkdir(exist_ok=True)
        shutil.copy(Path(scratch) / "adapter_model.safetensors", TARGET)
        adapter = json.loads((Path(scratch) / "adapter_config.json").read_text())
    adapter["base_model_name_or_path"] = spec.config.model.name
    (TARGET / "adapter_config.json").write_text(json.dumps(adapter, indent=2, sort_keys=True) + "\n")
    print("sha256", sha256(TARGET / "adapter_model.safetensors"))


if __name__ == "__main__":
    main()
