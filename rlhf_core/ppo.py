"""PPO with a KL leash: `train(...)` yields once per step; heartbeat, cancel and storage are its caller's.

Nothing random is carried from step to step: every generator is seeded from (seed, purpose, step), so a run that
goes on from a checkpoint draws exactly what an undisturbed one draws.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from rlhf_core.config.ppo import PPOConfig
from rlhf_core.errors import KLDiverged, NonFiniteLoss
from rlhf_core.evaluation import Evaluation, summarise
from rlhf_core.experience import Experience, TrainablePolicy, assess, device_of, sample
from rlhf_core.judgement import Judges, describe_rewards, judge
from rlhf_core.metrics import RolloutSample, describe, durations, samples_of
from rlhf_core.order import generator, minibatch_plan, prompt_indices
from rlhf_core.rewards import RewardFunction
from rlhf_core.rollout import Rollout, response_ids
from rlhf_core.score_shaping import describe_shaping, shape_scores
from rlhf_core.targets import make_targets
from rlhf_core.update import TrainState, in_micro_batches, require_finite, trains_value_only, update_policy


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did; step 0 is the evaluation before training.

    `metrics` are reproducible to the bit, `timings` (seconds, tokens per second) are not.
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
    gold: RewardFunction | None = None,
    micro_batch: int | None = None,
) -> Iterator[StepResult]:
    """Run the steps that are left. `policy` and `state` change in place; both are consistent at each yield, and
    still are while `state.intact`.

    `micro_batch` sequences at most are scored and differentiated at a time; the gradient stays the minibatch's.
    What `gold` says is reported and reaches no update.

    Raises:
        RewardError: the reward raised or did not return one number per completion.
        NonFiniteLoss: NaN or infinity in a reward, log-probability, loss or gradient; no optimizer step followed.
        KLDiverged: the exact sequence KL stayed above `kl.limit`; the step under way has changed nothing.
        InputTooLong: a prompt with its completion exceeds the model's context.
    """
    device, judges = device_of(policy), Judges(reward, gold)
    if state.step == 0 and state.baseline is None and eval_prompts:
        state.baseline = state.latest = evaluate(policy, eval_prompts, judges, config, step=0)
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
        judged = judge(judges, texts, completions, lengths, step=step)
        shaped = shape_scores(judged.scores, rollout.ended.cpu(), **config.scores.model_dump())
        require_finite(step, "shaped reward", torch.cat([shaped.scores, shaped.std.view(1)]))

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
        kl = experience.kl.sum(dim=1).mean().item()
        above = steps_above_limit(state, kl, config)
        clock.append(time.monotonic())

        # 3. The leash: β × k1 is taken from the shaped reward of each token. Then advantages, then the update.
        beta = state.controller.beta
        targets = make_targets(experience, shaped.scores, beta, config)
        state.intact = False
        update = update_policy(policy, state, experience, targets, plan, config, micro_batch=micro_batch)
        clock.append(time.monotonic())

        # 4. The controller looks at the exact KL of the policy that made the rollout, once that policy can move.
        if not trains_value_only(state, config):
            state.controller = state.controller.update(kl, len(texts))
        state.step, state.steps_above_limit = step, above

        metrics = update | describe_rewards(judged, texts) | describe_shaping(shaped, config.scores)
        metrics |= describe(experience, targets.returns, shaped.scores, targets.beta_in_loss, beta, config)
        metrics["rollout/truncated"] = float(config.rollout.truncates)
        evaluation = None
        if is_due(config, step, eval_prompts):
            state.latest = evaluation = evaluate(policy, eval_prompts, judges, config, step=step)
            found = summarise(evaluation)
            metrics |= {f"eval/{name}": found[name] for name in ("reward_mean", "gold_mean") if name in found}
        yield StepResult(
            step=step,
            metrics=metrics,
            timings=durations(clock, sum(lengths)),
            samples=samples_of(texts, completions, judged.scores, experience),
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


def steps_above_limit(state: TrainState, kl: float, config: PPOConfig) -> int:
    """How many steps in a row, this one included, had an exact sequence KL above the limit. Raises KLDiverged."""
    limit = config.kl.limit
    if limit is None or kl <= limit.max_nats_per_sequence:
        return 0
    above = state.steps_above_limit + 1
    if above >= limit.patience_steps:
        raise KLDiverged(state.step + 1, kl, limit.max_nats_per_sequence, above)
    return above


def evaluate(
    policy: TrainablePolicy, prompts: Sequence[str], judges: Judges, config: PPOConfig, *, step: int
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
    judged = judge(judges, list(prompts), completions, lengths, step=step, during=" of the evaluation")
    gold = () if judged.gold is None else judged.gold.tolist()
    return Evaluation(
        tuple(prompts), tuple(completions), tuple(judged.scores.tolist()), tuple(lengths), tuple(gold)
    )


def is_due(config: PPOConfig, step: int, eval_prompts: Sequence[str]) -> bool:
    """Evaluation at the last step, and every so many before."""
    every = config.evaluation.every_steps
    last = step == config.optimization.steps
    return bool(eval_prompts) and (last or (every is not None and step % every == 0))
