"""What is trained: the model's shape and how it is updated, the prompts and the reward. Free of torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rlhf_core.config.rewards import SentimentReward

if TYPE_CHECKING:
    from rlhf_core.rewards import RewardFunction

OURS, TRL, TRL_FROZEN = "kleash", "TRL 1.12.0", "TRL 1.12.0, value trunk frozen"
WORDS, EVERY = 1000, 5
EXAMPLE = Path(__file__).parents[2] / "examples" / "demo_job.json"


class Case(NamedTuple):
    """One iteration is `batch` completions of `tokens` tokens and `epochs` × `minibatches` optimizer steps."""

    model: str  # "tiny": GPT-2 with random weights; "smollm2": the registry's reference
    lora_rank: int | None  # None: all weights are trained
    batch: int
    tokens: int
    epochs: int
    minibatches: int
    learning_rate: float
    beta: float
    rounds: int
    contenders: tuple[str, ...] = (OURS, TRL)

    @property
    def optimizer_steps(self) -> int:
        """Of one iteration."""
        return self.epochs * self.minibatches


CASES = {
    "tiny": Case("tiny", None, 32, 24, 4, 4, 3e-4, 0.05, rounds=15),
    "full": Case("smollm2", None, 8, 16, 2, 2, 1e-5, 0.05, rounds=5),
    "lora": Case("smollm2", 8, 8, 16, 2, 2, 1e-4, 0.05, rounds=5, contenders=(OURS, TRL, TRL_FROZEN)),
}


def prompts_of(case: Case) -> list[str]:
    """As many as a batch has completions: every iteration answers each of them once, in whatever order."""
    if case.model == "tiny":
        return [" ".join(word(7 * row + 31 * at) for at in range(6)) for row in range(case.batch)]
    prompts: list[str] = json.loads(EXAMPLE.read_text())["config"]["data"]["prompts"]
    return prompts[: case.batch]


def reward_of(case: Case) -> "RewardFunction":
    """The same function for both trainers."""
    from rlhf_core.rewards import make_reward  # which imports torch: `--help` does without

    return share_of_fifths if case.model == "tiny" else make_reward(SentimentReward())


def word(number: int) -> str:
    """A word of the tiny model's vocabulary."""
    return f"w{number % WORDS}"


def share_of_fifths(prompts: Sequence[str], completions: Sequence[str], _: Sequence[int]) -> list[float]:
    """Share of a completion's words whose number is a multiple of five: 0.2 for words at random."""
    numbers = [[int(name[1:]) for name in completion.split()] for completion in completions]
    return [sum(number % EVERY == 0 for number in row) / max(1, len(row)) for row in numbers]
