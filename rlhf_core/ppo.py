"""PPO with a KL leash: `train(...)` yields once per step; heartbeat, cancel and storage are its caller's.

Nothing random is carried from step to step: every generator is seeded from (seed, purpose, step), so a run that
goes on from a checkpoint draws exactly what an undisturbed one draws.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import nn

from rlhf_core.answers import answers, roll_out
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.errors import KLDiverged
from rlhf_core.evaluation import Evaluation, repeated_bigrams, summarise
from rlhf_core.experience import Experience, TrainablePolicy, assess, device_of, weights_of
from rlhf_core.gradient_noise import signal_to_noise, watched_gradients
from rlhf_core.judgement import Judges, describe_rewards, judge
from rlhf_core.kl import sequence_kl
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
from rlhf_core.pretraining_mix import tokenize_texts
from rlhf_core.rewards import RewardFunction
from rlhf_core.rollout import response_ids
from rlhf_core.score_shaping import describe_shaping, shape_scores
from rlhf_core.targets import make_targets
from rlhf_core.untrained import Untrained, best_of_reference
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
    device, judges, weights = device_of(policy), Judges(reward, gold), weights_of(policy, config)
    mixed_in = tokenize_texts(policy, ptx_texts, config)
    if lacks_baseline(state, config, eval_prompts):
        measure_baseline(policy, state, eval_prompts, judges, config, micro_batch=micro_batch)
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
        experience = assess(
            policy,
            state.value_head,
            rollout,
            packed,
            config.rollout.temperature,
            keep_reference=config.kl.penalty == "exact",
            weights=weights,
        )
        require_finite_experience(step, experience)
        kl = experience.kl.sum(dim=1).mean().item()
        above = steps_above_limit(state, kl, config)
        clock.append(time.monotonic())

        # 3. The leash: β × KL is taken from the shaped reward of each token. Then advantages, then the update.
        beta = state.controller.beta
        targets = make_targets(experience, shaped.scores, beta, config)
        state.intact = False
        trained = list(policy.trainable_parameters().values())
        with watched_gradients(state.optimizer, trained, first=len(plan[0])) as gradients:
            update = update_policy(
                *(policy, state, experience, targets, plan, config),
                micro_batch=micro_batch,
                ptx_texts=mixed_in,
            )
        clock.append(time.monotonic())

        # 4. The controller looks at the exact KL of the policy that made the rollout, once that policy can move.
        if not trains_value_only(state, config):
            state.controller = state.controller.update(kl, len(texts))
        state.step, state.steps_above_limit = step, above

        metrics = update | describe_rewards(judged, texts) | describe_shaping(shaped, config.scores)
        metrics |= describe(experience, targets, shaped.scores, beta, config)
        metrics |= standard_errors(experience, judged.scores, texts) | kl_shares(experience)
        if (ratio := signal_to_noise(gradients)) is not None:
            metrics["grad/snr"] = ratio
        metrics["text/repeated_bigrams"] = fmean(repeated_bigrams(text) for text in completions)
        metrics["rollout/truncated"] = float(config.rollout.truncates)
        samples = samples_of(texts, completions, judged.scores, experience, policy.codec)
        del experience, targets  # with `exact` they hold the reference's hidden states
        evaluation = None
        if is_due(config, step, eval_prompts):
            state.latest = evaluation = evaluate(
                policy, state.value_head, eval_prompts, judges, config, step=step, micro_batch=micro_batch
            )
            metrics |= {
                f"eval/{name}": number for name, number in summarise(evaluation).items() if name != "n"
            }
            clock.append(time.monotonic())
        yield StepResult(
            step=step,
            metrics=metrics,
            timings=durations(clock, sum(lengths)) | {"peak_memory_bytes": peak_memory_bytes(device)},
            samples=samples,
            evaluation=evaluation,
        )


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


def lacks_baseline(state: TrainState, config: PPOConfig, eval_prompts: Sequence[str]) -> bool:
    """True if held-out prompts are still to be looked at before training."""
    best_of_n = config.evaluation.best_of_n is not None and not state.best_of_n
    return bool(eval_prompts) and (state.baseline is None or best_of_n)


def measure_baseline(
    policy: TrainablePolicy,
    state: TrainState,
    prompts: Sequence[str],
    judges: Judges,
    config: PPOConfig,
    *,
    micro_batch: int | None,
) -> None:
    """What `state` lacks of it: the evaluation before the first step, though it may be over, and best-of-n."""
    if state.baseline is None:
        before = policy if state.step == 0 else Untrained(policy)
        state.baseline = state.latest = evaluate(
            before, state.value_head, prompts, judges, config, step=0, micro_batch=micro_batch
        )
    n = config.evaluation.best_of_n
    if n is not None and not state.best_of_n:
        state.best_of_n = best_of_reference(policy, prompts, n, judges, config)


def evaluate(
    policy: TrainablePolicy,
    value_head: nn.Linear,
    prompts: Sequence[str],
    judges: Judges,
    config: PPOConfig,
    *,
    step: int,
    micro_batch: int | None = None,
) -> Evaluation:
    """One completion per held-out prompt, always with the same random numbers: differences are paired.

    Both models score them, no more at a time than in a step, for the exact KL.
    """
    at_once = micro_batch or config.rollout.batch_size // config.optimization.minibatches
    completions: list[str] = []
    lengths: list[int] = []
    kl: list[float] = []
    for rollout in answers(policy, prompts, config, "evaluation", step=step):
        completions += [policy.codec.decode(ids) for ids in response_ids(rollout)]
        lengths += rollout.response_mask.sum(dim=1).tolist()
        rows = torch.arange(len(rollout.input_ids), device=device_of(policy))
        packed = in_micro_batches([rows], at_once)
        seen = assess(policy, value_head, rollout, packed, config.rollout.temperature)
        require_finite(step, "kl of the evaluation", seen.kl)
        kl += sequence_kl(seen.kl, rollout.response_mask).tolist()
    judged = judge(judges, list(prompts), completions, lengths, step=step, during=" of the evaluation")
    return Evaluation(
        prompts=tuple(prompts),
        completions=tuple(completions),
        scores=tuple(judged.scores.tolist()),
        lengths=tuple(lengths),
        gold=() if judged.gold is None else tuple(judged.gold.tolist()),
        kl=tuple(kl),
    )


def is_due(config: PPOConfig, step: int, eval_prompts: Sequence[str]) -> bool:
    """Evaluation at the last step, and every so many before."""
    every = config.evaluation.every_steps
    last = step == config.optimization.steps
    return bool(eval_prompts) and (last or (every is not None and step % every == 0))
