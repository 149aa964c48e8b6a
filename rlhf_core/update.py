"""The clipped update: epochs of minibatches, each one optimizer step, in micro-batches that fit memory."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rlhf_core.best_of_n import BestOf
from rlhf_core.chunked_logprobs import Reference, chunked_logprobs
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.controllers import Controller, make_controller
from rlhf_core.errors import NonFiniteLoss
from rlhf_core.evaluation import Evaluation
from rlhf_core.experience import (
    Experience,
    OwnValueTrunk,
    TrainablePolicy,
    response_hidden,
    token_places,
    value_hidden,
    value_parameters,
)
from rlhf_core.objective import Tokens, objective
from rlhf_core.pretraining_mix import TokenIds, text_logprobs, texts_of
from rlhf_core.schedules import learning_rate_factor
from rlhf_core.targets import Targets

Report = dict[str, float]
PER_MINIBATCH = ("grad/norm", "loss/ptx", "ptx/nats_per_token")  # what knows nothing of the rollout's tokens


@dataclass
class TrainState:
    """Everything that changes from step to step besides the policy's weights; a checkpoint holds it all."""

    step: int
    controller: Controller
    value_head: nn.Linear
    optimizer: torch.optim.Adam
    steps_above_limit: int = 0  # of kl.limit, in a row, up to the last step
    baseline: Evaluation | None = None  # on the held-out prompts, before the first step
    latest: Evaluation | None = None  # on the same prompts, most recently
    best_of_n: tuple[BestOf, ...] = ()  # of the reference on the same prompts, where it is asked for
    intact: bool = False  # True while the step under way has not changed policy or state yet


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
            {
                "params": [*head.parameters(), *value_parameters(policy).values()],
                "lr": config.optimization.value_learning_rate,
            },
        ],
        fused=True,  # one pass over weights, gradients and moments
    )
    return TrainState(0, make_controller(config.kl), head, optimizer)


def update_policy(
    policy: TrainablePolicy,
    state: TrainState,
    experience: Experience,
    targets: Targets,
    plan: Sequence[Sequence[Int[Tensor, " rows"]]],
    config: PPOConfig,
    *,
    micro_batch: int | None = None,
    ptx_texts: Sequence[TokenIds] = (),
) -> Report:
    """All epochs of minibatches, or up to the first that `is_too_far`; returns the means over tokens.

    `update/minibatches` counts the optimizer's steps; the minibatch that was refused one is in the means.
    """
    set_learning_rates(state, config)
    reports: list[Report] = []
    for number, rows in enumerate(chain.from_iterable(plan)):
        texts = texts_of(number, ptx_texts, config, steps_done=state.step)
        reports.append(
            update_minibatch(
                policy, state, experience, targets, rows, config, micro_batch=micro_batch, ptx_texts=texts
            )
        )
        if is_too_far(reports[-1], config):
            break
    state.optimizer.zero_grad(set_to_none=True)  # nobody needs them until the next update
    mask = experience.rollout.response_mask
    means = token_means(reports, [int(mask[rows].sum()) for rows in chain.from_iterable(plan)])
    means["policy/ratio_max"] = max(r["policy/ratio_max"] for r in reports)
    means["update/minibatches"] = float(len(reports) - is_too_far(reports[-1], config))
    return means | {"lr": float(state.optimizer.param_groups[0]["lr"])}


def token_means(reports: Sequence[Report], counts: Sequence[int]) -> Report:
    """Means over all minibatches' tokens, from the means over each one's; PER_MINIBATCH counts once each."""

    def mean(name: str) -> float:
        weights = [1 if name in PER_MINIBATCH else count for _, count in zip(reports, counts, strict=False)]
        total = math.fsum(weight * r[name] for weight, r in zip(weights, reports, strict=True))
        return total / sum(weights)

    return {name: mean(name) for name in reports[0]}


def update_minibatch(
    policy: TrainablePolicy,
    state: TrainState,
    experience: Experience,
    targets: Targets,
    rows: Int[Tensor, " rows"],
    config: PPOConfig,
    *,
    micro_batch: int | None = None,
    ptx_texts: Sequence[TokenIds] = (),
) -> Report:
    """One optimizer step, unless the whole minibatch `is_too_far` by now.

    The gradient is summed over micro-batches of at most `micro_batch` sequences or texts.

    Raises:
        NonFiniteLoss: before the optimizer is stepped.
    """
    count = int(experience.rollout.response_mask[rows].sum())
    state.optimizer.zero_grad(set_to_none=True)
    reports = [
        add_gradient(policy, state, experience, targets, part, config, token_count=count)
        for part in in_micro_batches([rows], micro_batch)
    ]
    mixed = add_ptx_gradient(policy, state, ptx_texts, config, micro_batch=micro_batch)
    norm = clip_gradients(policy, state, config.optimization.max_grad_norm)
    total = {name: math.fsum(r[name] for r in reports) for name in reports[0]}
    total["policy/ratio_max"] = max(r["policy/ratio_max"] for r in reports)
    if not is_too_far(total, config):
        state.optimizer.step()
    return total | mixed | {"grad/norm": norm}


def trains_value_only(state: TrainState, config: PPOConfig) -> bool:
    """True in the critic's warm-up: no gradient reaches the policy, whose weights and moments keep every bit."""
    return state.step < config.optimization.value_only_steps


def is_too_far(minibatch: Report, config: PPOConfig) -> bool:
    """True if the policy has left that of the rollout by more than `target_kl`, in the mean over the tokens."""
    limit = config.optimization.target_kl
    return limit is not None and minibatch["policy/approx_kl"] > limit


def add_gradient(
    policy: TrainablePolicy,
    state: TrainState,
    experience: Experience,
    targets: Targets,
    rows: Int[Tensor, " rows"],
    config: PPOConfig,
    *,
    token_count: int,
) -> Report:
    """Add a micro-batch's share of the minibatch's gradient; `token_count` is the whole minibatch's."""
    batch = experience.rollout.rows(rows)
    mask = batch.response_mask
    ids = batch.response_ids[mask]
    old, d, old_value, advantage, returns = (
        x[rows][mask]
        for x in (experience.logprob, experience.k1, experience.value, targets.advantage, targets.returns)
    )

    reference = kept_reference(policy, experience, rows)
    with policy.policy() as model:
        hidden = response_hidden(model, batch)
        weights = [weight for weight in model.head.parameters() if weight.requires_grad]
        found = chunked_logprobs(
            hidden,
            model.logits,
            ids,
            weights=weights,
            reference=reference,
            temperature=config.rollout.temperature,
        )
    # A leaf: the value loss cannot move the policy, nor the policy's loss the value function.
    predicted = state.value_head(value_hidden(policy, batch, hidden)).squeeze(-1)
    value = predicted.detach().requires_grad_()

    tokens = Tokens(old, old - d, old_value, advantage, returns)
    terms, report = objective(
        found, value, tokens, config, beta_in_loss=targets.beta_in_loss, token_count=token_count
    )
    for name, tensor in {"logprob": found.logprob, **terms}.items():
        require_finite(state.step + 1, name, tensor)
    if trains_value_only(state, config):
        terms = {"value/loss": terms["value/loss"]}
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    with policy.value_trunk() if isinstance(policy, OwnValueTrunk) else nullcontext():
        predicted.backward(value.grad)
    return report


def add_ptx_gradient(
    policy: TrainablePolicy,
    state: TrainState,
    texts: Sequence[TokenIds],
    config: PPOConfig,
    *,
    micro_batch: int | None,
) -> Report:
    """Add the gradient of −ptx_coefficient · mean log π over the texts' tokens, none in the critic's warm-up."""
    if not texts or trains_value_only(state, config):
        return {}
    coefficient, count = config.loss.ptx_coefficient, sum(len(text) - 1 for text in texts)
    nats = []
    for rows in in_micro_batches([torch.arange(len(texts))], micro_batch):
        with policy.policy() as model:
            logprob = text_logprobs(model, [texts[row] for row in rows.tolist()])
        share = -logprob.sum() / count
        require_finite(state.step + 1, "loss/ptx", coefficient * share)
        (coefficient * share).backward()  # type: ignore[no-untyped-call]
        nats.append(share.item())
    return {"loss/ptx": coefficient * math.fsum(nats), "ptx/nats_per_token": math.fsum(nats)}


def kept_reference(
    policy: TrainablePolicy, experience: Experience, rows: Int[Tensor, " rows"]
) -> Reference | None:
    """The reference's side of an exact KL loss: hidden states as the rollout was assessed, only the head runs."""
    if experience.reference_hidden is None:
        return None
    mask = experience.rollout.response_mask
    with policy.reference() as model:
        return Reference(experience.reference_hidden[token_places(mask)[rows][mask[rows]]], model.logits)


def clip_gradients(policy: TrainablePolicy, state: TrainState, max_norm: float) -> float:
    """Scale the policy's gradient down to `max_norm`; returns its norm before.

    Raises:
        NonFiniteLoss: a gradient, the value function's included, holds NaN or infinity, or the norm overflows.
    """
    parameters = policy.trainable_parameters()
    head = {f"value_head.{name}": p for name, p in state.value_head.named_parameters()}
    value = head | value_parameters(policy)
    norm = _norm(parameters)
    if not torch.isfinite(norm + _norm(value)):
        for name, parameter in (parameters | value).items():
            if parameter.grad is not None:
                require_finite(state.step + 1, f"the gradient of {name}", parameter.grad)
        require_finite(state.step + 1, "the gradient's norm", norm + _norm(value))
    nn.utils.clip_grads_with_norm_(parameters.values(), max_norm, norm)
    return float(norm)


def _norm(parameters: dict[str, nn.Parameter]) -> Float[Tensor, ""]:
    return nn.utils.get_total_norm([p.grad for p in parameters.values() if p.grad is not None])


def require_finite(step: int, name: str, tensor: Float[Tensor, "*b"]) -> None:
    """Raise NonFiniteLoss, naming the tensor, unless all of it is finite."""
    if not torch.isfinite(tensor).all():
        raise NonFiniteLoss(step, name, "NaN" if torch.isnan(tensor).any() else "infinite")


def in_micro_batches(
    minibatches: Sequence[Int[Tensor, " _"]], micro_batch: int | None
) -> list[Int[Tensor, " _"]]:
    """The same rows in the same order, in parts of at most `micro_batch`."""
    parts = []
    for rows in minibatches:
        size = micro_batch or len(rows)
        parts += [rows[start : start + size] for start in range(0, len(rows), size)]
    return parts


def set_learning_rates(state: TrainState, config: PPOConfig) -> None:
    """The schedule, as a function of the step alone."""
    options = config.optimization
    factor = learning_rate_factor(
        state.step,
        shape=options.learning_rate_schedule,
        warmup_steps=options.warmup_steps,
        steps=options.steps,
    )
    for group, rate in zip(
        state.optimizer.param_groups, (options.learning_rate, options.value_learning_rate), strict=True
    ):
        group["lr"] = rate * factor
