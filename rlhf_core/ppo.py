"""PPO with a KL leash: `train(...)` yields once per step; heartbeat, cancel and storage are its caller's.

Nothing random is carried from step to step: every generator is seeded from (seed, purpose, step), so a run that
goes on from a checkpoint draws exactly what an undisturbed one draws.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from rlhf_core.config.ppo import PPOConfig
from rlhf_core.errors import NonFiniteLoss
from rlhf_core.evaluation import Evaluation, summarise
from rlhf_core.experience import Experience, TrainablePolicy, assess, device_of, sample
from rlhf_core.metrics import RolloutSample, describe, durations, peak_memory_bytes, samples_of
from rlhf_core.order import generator, minibatch_plan, prompt_indices
from rlhf_core.rewards import RewardFunction, checked_scores
from rlhf_core.rollout import Rollout, response_ids
from rlhf_core.targets import make_targets
from rlhf_core.update import TrainState, in_micro_batches, require_finite, update_policy


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did; step 0 is the evaluation before training.

    `metrics` are reproducible to the bit, `timings` (seconds, tokens per second, bytes) are not.
    """

    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    samples: tuple[RolloutSample, ...] = ()
    evaluation: Evaluation | None = None


def train(
    policy: TrainablePolicy,
    state: TrainState,
    config: PPOConfig,
    *,
    prompts: Sequence[str],
    eval_prompts: Sequence[str],
    reward: RewardFunction,
    micro_batch: int | None = None,
) -> Iterator[StepResult]:
    """Run the steps that are left. `policy` and `state` change in place; both are consistent at each yield, and
    still are while `state.intact`.

    `micro_batch` sequences at most are scored and differentiated at a time; the gradient stays the minibatch's.

    Raises:
        RewardError: the reward raised or did not return one number per completion.
        NonFiniteLoss: NaN or infinity in a reward, log-probability, loss or gradient; no optimizer step followed.
        InputTooLong: a prompt with its completion exceeds the model's context.
    """
    device = device_of(policy)
    if state.step == 0 and state.baseline is None and eval_prompts:
        state.baseline = state.latest = evaluate(policy, eval_prompts, reward, config, step=0)
        yield StepResult(step=0, evaluation=state.baseline)

    while state.step < config.optimization.steps:
        state.intact = True
        step = state.step + 1
        clock = [time.monotonic()]

        # 1. The policy answers; the reward judges the text.
        chosen = prompt_indices(len(prompts), batch=config.rollout.batch_size, step=step, seed=config.seed)
        texts = [prompts[index] for index in chosen]
        random = generator("rollout", step=step, seed=config.seed, device=device)
        rollout = roll_out(policy, texts, config, random, step=step)
        clock.append(time.monotonic())
        completions = [policy.codec.decode(ids) for ids in response_ids(rollout)]
        lengths = rollout.response_mask.sum(dim=1).tolist()
        scores = torch.tensor(checked_scores(reward, texts, completions, lengths), dtype=torch.float64)
        require_finite(step, "reward", scores)
        clock.append(time.monotonic())

        # 2. Both models score the policy's tokens, packed as in the first epoch: ratio exactly 1.
        plan = minibatch_plan(
            len(texts),
            parts=config.optimization.minibatches,
            epochs=config.optimization.epochs,
            step=step,
            seed=config.seed,
            device=device,
        )
        packed = in_micro_batches(plan[0], micro_batch)
        experience = assess(policy, state.value_head, rollout, packed, config.rollout.temperature)
        require_finite_experience(step, experience)
        clock.append(time.monotonic())

        # 3. The leash: β × k1 is taken from the reward of each token. Then advantages, then the update.
        beta = state.controller.beta
        targets = make_targets(experience, scores, beta, config)
        state.intact = False
        update = update_policy(policy, state, experience, targets, plan, config, micro_batch=micro_batch)
        clock.append(time.monotonic())

        # 4. The controller looks at the exact KL of the policy that made the rollout.
        state.controller = state.controller.update(experience.kl.sum(dim=1).mean().item(), len(texts))
        state.step = step

        metrics = update | describe(experience, targets.returns, scores, targets.beta_in_loss, beta, config)
        evaluation = None
        if is_due(config, step, eval_prompts):
            state.latest = evaluation = evaluate(policy, eval_prompts, reward, config, step=step)
            metrics["eval/reward_mean"] = summarise(evaluation)["reward_mean"]
            clock.append(time.monotonic())
        yield StepResult(
            step=step,
            metrics=metrics,
            timings=durations(clock, sum(lengths)) | {"peak_memory_bytes": peak_memory_bytes(device)},
            samples=samples_of(texts, completions, scores, experience),
            evaluation=evaluation,
        )


def roll_out(
    policy: TrainablePolicy, texts: Sequence[str], config: PPOConfig, random: torch.Generator, *, step: int
) -> Rollout:
    """One completion per text. Raises NonFiniteLoss."""
    try:
        return sample(policy, texts, config.rollout, random)
    except FloatingPointError as error:
        raise NonFiniteLoss(step, "logprob of the rollout", "NaN") from error


def require_finite_experience(step: int, experience: Experience) -> None:
    """Raise NonFiniteLoss unless every number that the update will use is finite."""
    for name in ("logprob", "k1", "kl", "entropy", "value"):
        require_finite(step, name, getattr(experience, name))


def evaluate(
    policy: TrainablePolicy, prompts: Sequence[str], reward: RewardFunction, config: PPOConfig, *, step: int
) -> Evaluation:
    """One completion per held-out prompt, always with the same random numbers: differences are paired."""
    completions: list[str] = []
    lengths: list[int] = []
    for start in range(0, len(prompts), config.rollout.batch_size):
        random = generator("evaluation", step=start, seed=config.seed, device=device_of(policy))
        texts = prompts[start : start + config.rollout.batch_size]
        rollout = roll_out(policy, texts, config, random, step=step)
        completions += [policy.codec.decode(ids) for ids in response_ids(rollout)]
        lengths += rollout.response_mask.sum(dim=1).tolist()
    scores = checked_scores(reward, list(prompts), completions, lengths)
    require_finite(step, "reward of the evaluation", torch.tensor(scores, dtype=torch.float64))
    return Evaluation(tuple(prompts), tuple(completions), tuple(scores), tuple(lengths))


def is_due(config: PPOConfig, step: int, eval_prompts: Sequence[str]) -> bool:
    """Evaluation at the last step, and every so many before."""
    every = config.evaluation.every_steps
    last = step == config.optimization.steps
    return bool(eval_prompts) and (last or (every is not None and step % every == 0))
