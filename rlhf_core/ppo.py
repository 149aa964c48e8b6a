"""PPO with a KL leash: `train(...)` yields once per step; heartbeat, cancel and storage are its caller's.

Nothing random is carried from step to step: every generator is seeded from (seed, purpose, step), so a run that
goes on from a checkpoint draws exactly what an undisturbed one draws.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_core.answers import roll_out
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.errors import KLDiverged
from rlhf_core.evaluation import Evaluation, repeated_bigrams, summarise
from rlhf_core.experience import Experience, TrainablePolicy, assess, device_of, weights_of
from rlhf_core.gradient_noise import signal_to_noise, watched_gradients
from rlhf_core.held_out import evaluate, is_due, lacks_baseline, measure_baseline
from rlhf_core.judgement import Judgement, Judges, describe_rewards, judge
from rlhf_core.kl_weights import WeightTable
from rlhf_core.metrics import (
    RolloutSample,
    describe,
    durations,
    kl_shares,
    peak_memory_bytes,
    samples_of,
    standard_errors,
)
from rlhf_core.order import generator, minibatch_plan, prompt_indices
from rlhf_core.pretraining_mix import TokenIds, tokenize_texts
from rlhf_core.rewards import RewardFunction
from rlhf_core.rollout import Rollout, response_ids
from rlhf_core.score_shaping import Shaped, describe_shaping, shape_scores
from rlhf_core.targets import Targets, make_targets
from rlhf_core.update import TrainState, in_micro_batches, require_finite, trains_value_only, update_policy


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


@dataclass(frozen=True)
class _Run:
    """What stays the same from step to step; `policy`'s weights do not."""

    policy: TrainablePolicy
    config: PPOConfig
    prompts: Sequence[str]
    eval_prompts: Sequence[str]
    judges: Judges
    weights: WeightTable | None
    ptx_texts: Sequence[TokenIds]
    micro_batch: int | None


class _Answers(NamedTuple):
    """Completions of a step's prompts, and what the rewards say of them."""

    prompts: list[str]
    completions: list[str]
    rollout: Rollout
    judged: Judgement
    shaped: Shaped


def train(
    policy: TrainablePolicy,
    state: TrainState,
    config: PPOConfig,
    *,
    prompts: Sequence[str],
    eval_prompts: Sequence[str],
    reward: RewardFunction,
    gold: RewardFunction | None = None,
    ptx_texts: Sequence[str] = (),
    micro_batch: int | None = None,
) -> Iterator[StepResult]:
    """Run the steps that are left. `policy` and `state` change in place; both are consistent at each yield, and
    still are while `state.intact`. The evaluation before training is made where `state` lacks it.

    `micro_batch` sequences at most are scored and differentiated at a time; the gradient stays the minibatch's.
    What `gold` says is reported and reaches no update.

    Raises:
        RewardError: the reward raised or did not return one number per completion.
        NonFiniteLoss: NaN or infinity in a reward, log-probability, loss or gradient; no optimizer step followed.
        KLDiverged: the exact sequence KL stayed above `kl.limit`; the step under way has changed nothing.
        InputTooLong: a prompt with its completion, or a text of `ptx_texts`, exceeds the model's context.
        EmptyInput: a text of `ptx_texts` is shorter than two tokens.
        UnknownToken: `kl.weights` or `rollout.stop_token_ids` names a token that the policy does not have.
        UnusableStop: a string of `rollout.stop` is one that the policy's tokenizer never writes.
    """
    judges, weights = Judges(reward, gold), weights_of(policy, config)
    mixed_in = tokenize_texts(policy, ptx_texts, config)
    run = _Run(policy, config, prompts, eval_prompts, judges, weights, mixed_in, micro_batch)
    if lacks_baseline(state, config, eval_prompts):
        measure_baseline(policy, state, eval_prompts, judges, config, micro_batch=micro_batch)
        yield StepResult(step=0, evaluation=state.baseline)
    while state.step < config.optimization.steps:
        yield _step(run, state)


def _step(run: _Run, state: TrainState) -> StepResult:
    """The policy answers and is scored, learns, and is reported on."""
    state.intact = True
    config, step, clock = run.config, state.step + 1, [time.monotonic()]
    answers = _answer(run, step, clock)
    count = len(answers.prompts)

    plan = _plan(run, count, step)
    experience = _assess(run, state, answers.rollout, plan[0])
    kl = experience.kl.sum(dim=1).mean().item()
    above = steps_above_limit(state, kl, config)
    clock.append(time.monotonic())

    # The leash: β × KL is taken from the shaped reward of each token. Then advantages, then the update.
    beta = state.controller.beta
    targets = make_targets(experience, answers.shaped.scores, beta, config)
    state.intact = False
    metrics = _update(run, state, experience, targets, plan)
    clock.append(time.monotonic())

    # The controller looks at the exact KL of the policy that made the rollout, once that policy can move.
    if not trains_value_only(state, config):
        state.controller = state.controller.update(kl, count)
    state.step, state.steps_above_limit = step, above

    metrics |= _describe(answers, experience, targets, beta, config)
    shown = (answers.prompts, answers.completions, answers.judged.scores)
    samples = samples_of(*shown, experience, run.policy.codec)
    del experience, targets  # with `exact` they hold the reference's hidden states
    evaluation = _evaluate(run, state) if is_due(config, step, run.eval_prompts) else None
    if evaluation is not None:
        metrics |= {f"eval/{name}": x for name, x in summarise(evaluation).items() if name != "n"}
        clock.append(time.monotonic())
    timings = durations(clock, int(answers.rollout.response_mask.sum()))
    timings["peak_memory_bytes"] = peak_memory_bytes(device_of(run.policy))
    return StepResult(step=step, metrics=metrics, timings=timings, samples=samples, evaluation=evaluation)


def _answer(run: _Run, step: int, clock: list[float]) -> _Answers:
    """The policy answers; the reward judges the text."""
    config, policy = run.config, run.policy
    chosen = prompt_indices(len(run.prompts), batch=config.rollout.batch_size, step=step, seed=config.seed)
    texts = [run.prompts[index] for index in chosen]
    random = generator("rollout", step=step, seed=config.seed, device=device_of(policy))
    rollout = roll_out(policy, texts, config, random, step=step)
    clock.append(time.monotonic())
    completions = [policy.codec.decode(ids) for ids in response_ids(rollout)]
    lengths = rollout.response_mask.sum(dim=1).tolist()
    judged = judge(run.judges, texts, completions, lengths, step=step)
    shaped = shape_scores(judged.scores, rollout.ended.cpu(), **config.scores.model_dump())
    require_finite(step, "shaped reward", torch.cat([shaped.scores, shaped.std.view(1)]))
    clock.append(time.monotonic())
    return _Answers(texts, completions, rollout, judged, shaped)


def _plan(run: _Run, count: int, step: int) -> list[list[Int[Tensor, " rows"]]]:
    """Which sequences are updated on together: minibatches by epoch."""
    return minibatch_plan(
        count,
        parts=run.config.optimization.minibatches,
        epochs=run.config.optimization.epochs,
        step=step,
        seed=run.config.seed,
        device=device_of(run.policy),
    )


def _assess(
    run: _Run, state: TrainState, rollout: Rollout, first_epoch: Sequence[Int[Tensor, " rows"]]
) -> Experience:
    """Both models score the policy's tokens, packed as in the first epoch: ratio exactly 1."""
    experience = assess(
        run.policy,
        state.value_head,
        rollout,
        in_micro_batches(first_epoch, run.micro_batch),
        run.config.rollout.temperature,
        keep_reference=run.config.kl.penalty == "exact",
        weights=run.weights,
    )
    require_finite_experience(state.step + 1, experience)
    return experience


def _update(
    run: _Run,
    state: TrainState,
    experience: Experience,
    targets: Targets,
    plan: Sequence[Sequence[Int[Tensor, " rows"]]],
) -> dict[str, float]:
    """All minibatches' optimizer steps, and what is to be said of them."""
    trained = list(run.policy.trainable_parameters().values())
    given = (run.policy, state, experience, targets, plan, run.config)
    with watched_gradients(state.optimizer, trained, first=len(plan[0])) as gradients:
        metrics = update_policy(*given, micro_batch=run.micro_batch, ptx_texts=run.ptx_texts)
    ratio = signal_to_noise(gradients)
    return metrics if ratio is None else metrics | {"grad/snr": ratio}


def _describe(
    answers: _Answers, experience: Experience, targets: Targets, beta: float, config: PPOConfig
) -> dict[str, float]:
    """What is reported of answers, rewards, KL and advantages."""
    judged, shaped = answers.judged, answers.shaped
    metrics = describe_rewards(judged, answers.prompts) | describe_shaping(shaped, config.scores)
    metrics |= describe(experience, targets, shaped.scores, beta, config)
    metrics |= standard_errors(experience, judged.scores, answers.prompts) | kl_shares(experience)
    metrics["text/repeated_bigrams"] = fmean(repeated_bigrams(text) for text in answers.completions)
    metrics["rollout/truncated"] = float(config.rollout.truncates)
    return metrics


def _evaluate(run: _Run, state: TrainState) -> Evaluation:
    given = (run.policy, state.value_head, run.eval_prompts, run.judges, run.config)
    state.latest = evaluate(*given, step=state.step, micro_batch=run.micro_batch)
    return state.latest


def require_finite_experience(step: int, experience: Experience) -> None:
    """Raise NonFiniteLoss unless every number that the update will use is finite."""
    for name in ("logprob", "k1", "kl", "entropy", "value"):
        require_finite(step, name, getattr(experience, name))
    for name, numbers in (experience.weighted._asdict() if experience.weighted else {}).items():
        require_finite(step, f"weighted {name}", numbers)


def steps_above_limit(state: TrainState, kl: float, config: PPOConfig) -> int:
    """How many steps in a row, this one included, had an exact sequence KL above the limit. Raises KLDiverged."""
    limit = config.kl.limit
    if limit is None or kl <= limit.max_nats_per_sequence:
        return 0
    above = state.steps_above_limit + 1
    if above >= limit.patience_steps:
        raise KLDiverged(state.step + 1, kl, limit.max_nats_per_sequence, above)
    return above
