"""Before anything is trained: does this model, on this machine, give the numbers that PPO takes for granted?

Every check has a number and a bound. Each stands for a bug that trains silently and wrongly: dropout left on, a
reference that is not the base, a temperature on one side only, padding that leaks, a generation path that
disagrees with the training path.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_core.chunked import chunked_scores
from rlhf_core.chunked_logprobs import chunked_logprobs
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.errors import AuditFailed, NonFiniteLoss
from rlhf_core.experience import Experience, TrainablePolicy, assess, device_of, response_hidden, sample
from rlhf_core.logprobs import token_logprobs
from rlhf_core.order import generator
from rlhf_core.rollout import Rollout

PROMPTS, NEW_TOKENS = 4, 16  # what is sampled for the audit, at most
BOUND = 2e-4  # nats at T = 1: what packing and padding may move a float32 log-probability by (8e-5 measured)
BOUND_BFLOAT16 = 0.25  # the same for a trunk in bfloat16 (0.056 measured on SmolLM2-135M)


class Check(NamedTuple):
    """One number and the most it may be; no bound: it is only recorded."""

    name: str
    value: float
    bound: float | None
    meaning: str

    @property
    def passed(self) -> bool:
        """NaN passes nothing."""
        return self.bound is None or self.value <= self.bound


def audit(
    policy: TrainablePolicy,
    value_head: nn.Linear,
    config: PPOConfig,
    prompts: Sequence[str],
    *,
    is_reference: bool,
) -> list[Check]:
    """Check the policy on a few completions of its own; changes nothing and draws from no global generator.

    `is_reference`: the policy should still equal its reference, as before the first step. What to do about a
    check that is not passed is `require_passed`'s.

    Raises:
        NonFiniteLoss: the policy's logits hold NaN or infinity.
    """
    options = config.rollout
    few = options.model_copy(update={"max_new_tokens": min(options.max_new_tokens, NEW_TOKENS)})
    random = generator("audit", step=0, seed=config.seed, device=device_of(policy))
    try:
        rollout = sample(policy, list(dict.fromkeys(prompts))[:PROMPTS], few, random)
    except FloatingPointError as error:
        raise NonFiniteLoss(0, "logprob of the audit's rollout", "NaN") from error
    cold = min(1.0, options.temperature)  # log-probabilities are of logits / T: so is their rounding
    float32, bound = BOUND / cold, (BOUND if config.model.dtype == "float32" else BOUND_BFLOAT16) / cold
    everything = torch.arange(len(rollout.input_ids), device=rollout.input_ids.device)
    seen = assess(policy, value_head, rollout, [everything], options.temperature)
    return [
        *_repeats(policy, seen, options.temperature),
        *_references(policy, seen, is_reference=is_reference),
        _temperature(policy, seen, options.temperature, float32),
        _company(policy, value_head, seen, options.temperature, bound),
        _generation(seen, bound),
    ]


def require_passed(checks: Sequence[Check]) -> None:
    """Raise AuditFailed, which names each check that failed and its number, unless all passed."""
    findings = [
        f"{c.name} is {c.value:.3g}, at most {c.bound:g}: {c.meaning}" for c in checks if not c.passed
    ]
    if findings:
        raise AuditFailed(findings)


def _repeats(policy: TrainablePolicy, seen: Experience, temperature: float) -> Iterator[Check]:
    """Twice as the update runs it, and as the experience was made."""
    first, again = (_in_update(policy, seen.rollout, temperature) for _ in range(2))
    yield Check("dropout", _most(first - again), 0.0, "the same forward pass twice gives two answers")
    old = seen.logprob[seen.rollout.response_mask]
    meaning = "the update's log-probabilities are not the experience's: the first ratio is not 1"
    yield Check("log_ratio", _most(first - old), 0.0, meaning)


def _in_update(policy: TrainablePolicy, rollout: Rollout, temperature: float) -> Float[Tensor, " tokens"]:
    ids = rollout.response_ids[rollout.response_mask]
    with torch.enable_grad(), policy.policy() as model:
        hidden = response_hidden(model, rollout)
        weights = [weight for weight in model.head.parameters() if weight.requires_grad]
        found = chunked_logprobs(hidden, model.logits, ids, weights=weights, temperature=temperature)
    return found.logprob.detach()


def _references(policy: TrainablePolicy, seen: Experience, *, is_reference: bool) -> Iterator[Check]:
    """The reference against itself, and the policy against it."""
    ids = seen.rollout.response_ids[seen.rollout.response_mask]
    with torch.no_grad(), policy.reference() as model:
        one, other = (response_hidden(model, seen.rollout) for _ in range(2))
        kl = chunked_scores(one, other, model.logits, model.logits, ids).kl
    yield Check("kl_reference", _most(kl), 0.0, "the reference is at a distance from itself")
    bound = 0.0 if is_reference else None
    yield Check("kl_initial", _most(seen.kl), bound, "a policy that nobody trained is not its reference")


def _temperature(policy: TrainablePolicy, seen: Experience, temperature: float, bound: float) -> Check:
    """Both sides against softmax(logits / temperature) of whole logits in float64."""
    mask = seen.rollout.response_mask
    ids = seen.rollout.response_ids[mask]
    errors = []
    for side, told in ((policy.policy, seen.logprob), (policy.reference, seen.logprob - seen.k1)):
        with torch.no_grad(), side() as model:
            logits = model.logits(response_hidden(model, seen.rollout)).double()
        errors.append(token_logprobs(logits, ids, temperature=temperature) - told[mask])
    meaning = "a log-probability is not that of softmax(logits / temperature)"
    return Check("temperature", _most(torch.cat(errors)), bound, meaning)


def _company(
    policy: TrainablePolicy, value_head: nn.Linear, seen: Experience, temperature: float, bound: float
) -> Check:
    """Every sequence alone and without padding."""
    errors = []
    for row in range(len(seen.rollout.input_ids)):
        alone = assess(policy, value_head, *_unpadded(seen.rollout, row), temperature)
        length = alone.logprob.shape[1]
        for name in ("logprob", "k1"):
            errors.append((getattr(alone, name) - getattr(seen, name)[row : row + 1, :length]).flatten())
    return Check(
        "company",
        _most(torch.cat(errors)),
        bound,
        "padding or the batch's other sequences move a log-probability",
    )


def _unpadded(rollout: Rollout, row: int) -> tuple[Rollout, list[Tensor]]:
    """One sequence as a rollout of its own, and the only row of that."""
    start = rollout.prompt_width - int(rollout.attention_mask[row, : rollout.prompt_width].sum())
    end = rollout.prompt_width + int(rollout.response_mask[row].sum())
    ids = rollout.input_ids[row : row + 1, start:end]
    alone = Rollout(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        response_mask=rollout.response_mask[row : row + 1, : end - rollout.prompt_width],
        sampled_logprob=rollout.sampled_logprob[row : row + 1, : end - rollout.prompt_width],
        ended=rollout.ended[row : row + 1],
        prompt_width=rollout.prompt_width - start,
    )
    return alone, [torch.zeros(1, dtype=torch.long, device=ids.device)]


def _generation(seen: Experience, bound: float) -> Check:
    """Root mean square over the sampled tokens."""
    mask = seen.rollout.response_mask
    error = (seen.logprob - seen.rollout.sampled_logprob)[mask].double()
    rms = float(error.square().mean().sqrt())
    return Check("generation", rms, bound, "tokens are sampled from another distribution than is trained")


def _most(difference: Float[Tensor, "*b"]) -> float:
    return float(difference.abs().max())
