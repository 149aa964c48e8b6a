"""kleash's trainer as a contender."""

from benchmarks.ppo.cases import Case, prompts_of, reward_of
from benchmarks.ppo.models import new_policy
from benchmarks.ppo.turn import Task, Turn
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.ppo import train
from rlhf_core.update import fresh_state

NO_CLIPPING = 1e9  # TRL's PPO does not clip gradients


def run(task: Task, turn: Turn) -> None:
    """All iterations, each after the turn's permission."""
    case = task.case
    config = config_of(case, task.folder, seed=task.seed, steps=task.iterations)
    policy = new_policy(case, task.folder, seed=task.seed)
    state = fresh_state(policy, config)
    turn.ready(lambda: policy)
    steps = train(policy, state, config, prompts=prompts_of(case), eval_prompts=[], reward=reward_of(case))
    for step in steps:
        if step.metrics["length/mean"] != case.tokens:
            raise AssertionError(f"completions of {step.metrics['length/mean']} tokens, not {case.tokens}")
        turn.finished(step.metrics["kl/sequence"], step.metrics["reward/mean"])


def config_of(case: Case, folder: str, *, seed: int, steps: int) -> PPOConfig:
    """The case as kleash's configuration; what is not named here has one value in both trainers."""
    return PPOConfig.model_validate(
        {
            "model": {"name": folder},
            "data": {"prompts": prompts_of(case)},
            "reward": {"kind": "sentiment"},  # `train` is given the function
            "rollout": {"batch_size": case.batch, "max_new_tokens": case.tokens, "temperature": 1.0},
            "kl": {"beta": case.beta, "penalty": "k1"},
            "advantages": {"gamma": 1.0, "gae_lambda": 0.95, "whiten": True},
            "loss": {"clip_range": 0.2, "value_clip_range": 0.2},
            "optimization": {
                "steps": steps,
                "epochs": case.epochs,
                "minibatches": case.minibatches,
                "learning_rate": case.learning_rate,
                "max_grad_norm": NO_CLIPPING,
            },
            "seed": seed,
        }
    )
