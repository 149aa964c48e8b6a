"""The evaluation on held-out prompts: before training, every so many steps, and after the last."""

from collections.abc import Sequence

import torch
from torch import nn

from rlhf_core.answers import answers
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.evaluation import Evaluation
from rlhf_core.experience import TrainablePolicy, assess, device_of
from rlhf_core.judgement import Judges, judge
from rlhf_core.kl import sequence_kl
from rlhf_core.rollout import response_ids
from rlhf_core.untrained import Untrained, best_of_reference
from rlhf_core.update import TrainState, in_micro_batches, require_finite


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
