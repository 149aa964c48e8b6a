"""What becomes of a reward's score before the KL is taken from it."""

from pydantic import Field

from rlhf_core.config.base import Config


class ScoresConfig(Config):
    """Off by default. In this order: missing_eos_penalty, whiten, scale, clip; the KL is subtracted last.

    Each redefines β: with whitening by σ and a scale, β buys β·σ/scale of the reward's own units per nat.
    """

    missing_eos_penalty: float = Field(
        0.0, ge=0, description="Taken from the score of a response that was cut at its maximum length."
    )
    whiten: bool = Field(False, description="To mean 0 and variance 1 over the completions of each step.")
    scale: float = Field(1.0, gt=0, description="The score is multiplied by it.")
    clip: float | None = Field(None, gt=0, description="The score is kept within ± this.")
