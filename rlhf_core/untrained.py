"""A policy before its first step, and the best of what it answers."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch import nn

from rlhf_core.answers import answers
from rlhf_core.best_of_n import BestOf, best_of_n
from rlhf_core.causal_lm import CausalLM
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.experience import Codec, TrainablePolicy
from rlhf_core.judgement import Judges, judge
from rlhf_core.rollout import response_ids


class Untrained:
    """The reference in its policy's place, as an `experience.TrainablePolicy` that nobody trains."""

    def __init__(self, trained: TrainablePolicy) -> None:
        self._trained = trained

    @property
    def hidden_size(self) -> int:
        """Width of the trunk's output."""
        return self._trained.hidden_size

    @property
    def codec(self) -> Codec:
        """The policy's tokenizer."""
        return self._trained.codec

    def policy(self) -> AbstractContextManager[CausalLM]:
        """The reference, while the context is entered."""
        return self._trained.reference()

    def reference(self) -> AbstractContextManager[CausalLM]:
        """The reference too."""
        return self._trained.reference()

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Of the policy: they say on which device it is."""
        return self._trained.trainable_parameters()


def best_of_reference(
    policy: TrainablePolicy, prompts: Sequence[str], n: int, judges: Judges, config: PPOConfig
) -> tuple[BestOf, ...]:
    """n completions of each prompt by the reference, a rollout's number of them at a time."""
    texts = [prompt for prompt in prompts for _ in range(n)]
    completions: list[str] = []
    lengths: list[int] = []
    for rollout in answers(Untrained(policy), texts, config, "best_of_n", step=0):
        completions += [policy.codec.decode(ids) for ids in response_ids(rollout)]
        lengths += rollout.response_mask.sum(dim=1).tolist()
    judged = judge(judges, texts, completions, lengths, step=0, during=" of best of n")
    gold = None if judged.gold is None else judged.gold.view(-1, n).numpy()
    return best_of_n(judged.scores.view(-1, n).numpy(), gold, prompts)
