"""Policies small enough to write down: a table of logits, trained by the same loop as a language model.

maximise E[score] − β KL(π ‖ ref)   ⇒   π* = ref · e^{score/β} / Z
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_core.causal_lm import CausalLM
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.ppo import StepResult, train
from rlhf_core.update import fresh_state


class StateTrunk(nn.Module):
    """Hidden state = one-hot of what has been said: nothing (state 0), or the last token v (state 1 + v)."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.states = states

    def forward(self, input_ids: Tensor, position_ids: Tensor, **_: Any) -> SimpleNamespace:
        """As transformers' trunks answer, without a cache."""
        state = torch.where(position_ids == 0, 0, (1 + input_ids).clamp(max=self.states - 1))
        hidden = nn.functional.one_hot(state, self.states).double()
        return SimpleNamespace(last_hidden_state=hidden, past_key_values=None)


class TabularPolicy:
    """Logits per state as the head's weight; the reference is a frozen copy of where the policy starts.

    `reference` holds a distribution over the tokens for each state.
    """

    eos_ids: frozenset[int] = frozenset()
    pad_id = 0

    def __init__(self, reference: list[list[float]]) -> None:
        table = torch.tensor(reference, dtype=torch.float64).log().T  # [vocab, states]
        self._policy, self._reference = (self._model(table) for _ in range(2))
        self._reference.head.requires_grad_(False)
        self.hidden_size = table.shape[1]
        self.codec = self

    def encode(self, _: str) -> list[int]:
        """A prompt that says nothing: its token leads to state 0."""
        return [0]

    def decode(self, ids: list[int]) -> str:
        """The ids themselves."""
        return " ".join(map(str, ids))

    @staticmethod
    def _model(table: Tensor) -> CausalLM:
        head = nn.Linear(table.shape[1], table.shape[0], bias=False, dtype=torch.float64)
        head.weight.data.copy_(table)
        return CausalLM(StateTrunk(table.shape[1]), head, vocab_size=table.shape[0], context=8)

    @contextmanager
    def policy(self) -> Iterator[CausalLM]:
        """The table that is trained."""
        yield self._policy

    @contextmanager
    def reference(self) -> Iterator[CausalLM]:
        """The table it began as."""
        yield self._reference

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The table."""
        return {"table": self._policy.head.weight}  # type: ignore[dict-item]

    def probabilities(self, state: int = 0) -> Tensor:
        """What the policy says in a state."""
        weight: Tensor = self._policy.head.weight.detach()  # type: ignore[assignment]
        return weight[:, state].softmax(0)


def config(kl: dict[str, str], *, beta: float, tokens: int, steps: int = 30, batch: int = 512) -> PPOConfig:
    """Settings by which a table reaches its optimum; `kl` are further fields of the section of that name."""
    return PPOConfig.model_validate(
        {
            "model": {"name": "tabular"},
            "data": {"prompts": ["."]},
            "reward": {"kind": "sentiment"},  # not asked: the score is given to run
            "rollout": {"batch_size": batch, "max_new_tokens": tokens},
            "kl": {"beta": beta, **kl},
            "optimization": {
                "steps": steps,
                "learning_rate": 0.1,
                "value_learning_rate": 0.1,
                "learning_rate_schedule": "linear",
                "epochs": 2,
                "minibatches": 2,
                "max_grad_norm": 1e6,
            },
            "advantages": {"gae_lambda": 1.0},
        }
    )


def run(policy: TabularPolicy, options: PPOConfig, score: Callable[[list[int]], float]) -> list[StepResult]:
    """The real loop; the reward reads the sampled tokens back from the text."""

    def reward(_: Sequence[str], completions: Sequence[str], __: Sequence[int]) -> list[float]:
        return [score([int(token) for token in text.split()]) for text in completions]

    state = fresh_state(policy, options)
    return list(train(policy, state, options, prompts=["."], eval_prompts=[], reward=reward))


def total_variation(a: Tensor, b: Tensor) -> float:
    """½ Σ |a − b|."""
    return float((a - b).abs().sum() / 2)
