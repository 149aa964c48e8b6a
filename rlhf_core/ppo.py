"""PPO with a KL leash: `train(...)` yields once per step; heartbeat, cancel and storage are its caller's.

Nothing random is carried from step to step: every generator is seeded from (seed, purpose, step), so a run that
goes on from a checkpoint draws exactly what an undisturbed one draws.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rlhf_core.advantages import gae, token_rewards
from rlhf_core.config import PPOConfig
from rlhf_core.controllers import Controller, make_controller
from rlhf_core.errors import NonFiniteLoss
from rlhf_core.evaluation import Evaluation, summarise
from rlhf_core.experience import Experience, TrainablePolicy, assess, device_of, response_hidden, sample
from rlhf_core.logprobs import token_logprobs
from rlhf_core.losses import beta_in_loss, k2_loss, policy_loss, value_loss
from rlhf_core.masking import masked_whiten
from rlhf_core.metrics import RolloutSample, describe, durations, samples_of
from rlhf_core.order import generator, minibatch_plan, prompt_indices
from rlhf_core.rewards import RewardFunction, checked_scores
from rlhf_core.rollout import response_ids


@dataclass
class TrainState:
    """Everything that changes from step to step besides the policy's weights; a checkpoint holds it all."""

    step: int
    controller: Controller
    value_head: nn.Linear
    optimizer: torch.optim.Adam
    baseline: Evaluation | None = None  # on the held-out prompts, before the first step
    latest: Evaluation | None = None  # on the same prompts, most recently


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


class Targets(NamedTuple):
    """What the update works towards."""

    advantage: Float[Tensor, "batch response"]
    returns: Float[Tensor, "batch response"]
    beta_in_loss: float


def fresh_state(policy: TrainablePolicy, config: PPOConfig) -> TrainState:
    """The state before the first step: a value head of zeros and an optimizer without history."""
    parameters = policy.trainable_parameters()
    anchor = next(iter(parameters.values()))
    head = nn.Linear(policy.hidden_size, 1, device=anchor.device, dtype=anchor.dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.Adam(
        [
            {"params": list(parameters.values()), "lr": config.optimization.learning_rate},
            {"params": list(head.parameters()), "lr": config.optimization.value_learning_rate},
        ]
    )
    return TrainState(0, make_controller(config.kl), head, optimizer)


def train(
    policy: TrainablePolicy,
    state: TrainState,
    config: PPOConfig,
    *,
    prompts: Sequence[str],
    eval_prompts: Sequence[str],
    reward: RewardFunction,
) -> Iterator[StepResult]:
    """Run the steps that are left. `policy` and `state` change in place; both are consistent at each yield.

    Raises:
        RewardError: the reward raised or returned something that is no finite number.
        NonFiniteLoss: NaN or infinity in a loss or gradient; the optimizer was not stepped.
        InputTooLong: a prompt with its completion exceeds the model's context.
    """
    device = device_of(policy)
    if state.step == 0 and state.baseline is None and eval_prompts:
        state.baseline = state.latest = evaluate(policy, eval_prompts, reward, config)
        yield StepResult(step=0, evaluation=state.baseline)

    while state.step < config.optimization.steps:
        step = state.step + 1
        clock = [time.monotonic()]

        # 1. The policy answers; the reward judges the text.
        chosen = prompt_indices(len(prompts), batch=config.rollout.batch_size, step=step, seed=config.seed)
        texts = [prompts[index] for index in chosen]
        random = generator("rollout", step=step, seed=config.seed, device=device)
        rollout = sample(policy, texts, config.rollout, random)
        clock.append(time.monotonic())
        completions = [policy.codec.decode(ids) for ids in response_ids(rollout)]
        lengths = rollout.response_mask.sum(dim=1).tolist()
        scores = torch.tensor(checked_scores(reward, texts, completions, lengths), dtype=torch.float64)

        # 2. Both models score the policy's tokens, in the minibatches of the first epoch: ratio exactly 1.
        plan = minibatch_plan(
            len(texts),
            parts=config.optimization.minibatches,
            epochs=config.optimization.epochs,
            step=step,
            seed=config.seed,
            device=device,
        )
        experience = assess(policy, state.value_head, rollout, plan[0], config.rollout.temperature)
        clock.append(time.monotonic())

        # 3. The leash: β × k1 is taken from the reward of each token. Then advantages, then the update.
        beta = state.controller.beta
        targets = make_targets(experience, scores, beta, config)
        update = update_policy(policy, state, experience, targets, plan, config)
        clock.append(time.monotonic())

        # 4. The controller looks at the exact KL of the policy that made the rollout.
        state.controller = state.controller.update(experience.kl.sum(dim=1).mean().item(), len(texts))
        state.step = step

        metrics = update | describe(experience, targets.returns, scores, targets.beta_in_loss, beta, config)
        evaluation = None
        if is_due(config, step, eval_prompts):
            state.latest = evaluation = evaluate(policy, eval_prompts, reward, config)
            metrics["eval/reward_mean"] = summarise(evaluation)["reward_mean"]
        yield StepResult(
            step=step,
            metrics=metrics,
            timings=durations(clock, sum(lengths)),
            samples=samples_of(texts, completions, scores, experience),
            evaluation=evaluation,
        )


def make_targets(
    experience: Experience, scores: Float[Tensor, " batch"], beta: float, config: PPOConfig
) -> Targets:
    """Rewards with the KL penalty in them, GAE, whitening; the loss's β follows the whitening."""
    mask = experience.rollout.response_mask
    penalty = experience.k1 if config.kl.penalty == "k1" else torch.zeros_like(experience.k1)
    rewards = token_rewards(scores.to(experience.value), penalty, mask, beta=beta)
    estimate = gae(
        rewards,
        experience.value,
        mask,
        gamma=config.optimization.gamma,
        lam=config.optimization.gae_lambda,
    )
    if not config.optimization.whiten_advantages:
        return Targets(estimate.advantages, estimate.returns, beta)
    whitened = masked_whiten(estimate.advantages, mask)
    return Targets(whitened.values, estimate.returns, beta_in_loss(beta, float(whitened.std)))


def update_policy(
    policy: TrainablePolicy,
    state: TrainState,
    experience: Experience,
    targets: Targets,
    plan: Sequence[Sequence[Int[Tensor, " rows"]]],
    config: PPOConfig,
) -> dict[str, float]:
    """All epochs of minibatches; returns the means of what the losses reported."""
    set_learning_rates(state, config)
    reports = [
        update_minibatch(policy, state, experience, targets, rows, config) for epoch in plan for rows in epoch
    ]
    means = {name: math.fsum(r[name] for r in reports) / len(reports) for name in reports[0]}
    means["policy/ratio_max"] = max(r["policy/ratio_max"] for r in reports)
    return means | {"lr": float(state.optimizer.param_groups[0]["lr"])}


def update_minibatch(
    policy: TrainablePolicy,
    state: TrainState,
    experience: Experience,
    targets: Targets,
    rows: Int[Tensor, " rows"],
    config: PPOConfig,
) -> dict[str, float]:
    """One optimizer step.

    Raises:
        NonFiniteLoss: before the optimizer is stepped.
    """
    options = config.optimization
    batch = experience.rollout.rows(rows)
    mask = batch.response_mask
    ids, count = batch.response_ids[mask], int(mask.sum())
    old, old_value, advantage, returns, d = (
        x[rows][mask]
        for x in (experience.logprob, experience.value, targets.advantage, targets.returns, experience.k1)
    )

    with policy.policy() as model:
        hidden = response_hidden(model, batch)
        logprob = token_logprobs(model.logits(hidden), ids, temperature=config.rollout.temperature)
    value = state.value_head(hidden.detach()).squeeze(-1)  # the value loss cannot move the policy

    on_policy = policy_loss(logprob, old, advantage, clip_range=options.clip_range, token_count=count)
    on_value = value_loss(value, old_value, returns, clip_range=options.value_clip_range, token_count=count)
    loss = on_policy.loss + on_value.loss
    if config.kl.loss == "k2":
        loss = loss + targets.beta_in_loss * k2_loss(logprob, old, old - d, token_count=count)

    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(policy.trainable_parameters().values(), options.max_grad_norm)
    if not (torch.isfinite(loss) and torch.isfinite(norm)):
        raise NonFiniteLoss(f"step {state.step + 1}: loss {loss.item()}, gradient norm {norm.item()}")
    state.optimizer.step()
    return {
        "loss/policy": on_policy.loss.item(),
        "value/loss": on_value.loss.item(),
        "value/clip_fraction": float(on_value.clip_fraction),
        "policy/clip_fraction": float(on_policy.clip_fraction),
        "policy/approx_kl": float(on_policy.approx_kl),
        "policy/ratio_max": float(on_policy.ratio_max),
        "grad/norm": norm.item(),
    }


def set_learning_rates(state: TrainState, config: PPOConfig) -> None:
    """The schedule, as a function of the step alone."""
    options = config.optimization
    decay = 1.0 - state.step / options.steps if options.learning_rate_schedule == "linear" else 1.0
    for group, rate in zip(
        state.optimizer.param_groups, (options.learning_rate, options.value_learning_rate), strict=True
    ):
        group["lr"] = rate * decay


def evaluate(
    policy: TrainablePolicy, prompts: Sequence[str], reward: RewardFunction, config: PPOConfig
) -> Evaluation:
    """One completion per held-out prompt, always with the same random numbers: differences are paired."""
    completions: list[str] = []
    lengths: list[int] = []
    for start in range(0, len(prompts), config.rollout.batch_size):
        random = generator("evaluation", step=start, seed=config.seed, device=device_of(policy))
        texts = prompts[start : start + config.rollout.batch_size]
        rollout = sample(policy, texts, config.rollout, random)
        completions += [policy.codec.decode(ids) for ids in response_ids(rollout)]
        lengths += rollout.response_mask.sum(dim=1).tolist()
    scores = checked_scores(reward, list(prompts), completions, lengths)
    return Evaluation(tuple(prompts), tuple(completions), tuple(scores), tuple(lengths))


def is_due(config: PPOConfig, step: int, eval_prompts: Sequence[str]) -> bool:
    """Evaluation at the last step, and every so many before."""
    every = config.evaluation.every_steps
    last = step == config.optimization.steps
    return bool(eval_prompts) and (last or (every is not None and step % every == 0))
