"""Every error the core raises, drawn as a tree.

RLHFError
├── ModelLoadError      weights, tokenizer or adapter cannot be loaded
├── TokenizerMismatch   policy and reference do not share a tokenizer
├── InputTooLong        a text exceeds the model's context
├── EmptyInput          a text has no token to score
├── RewardError         a reward function raised or did not return one number per completion
├── NonFiniteLoss       NaN or infinity in a reward, log-probability, loss or gradient
└── CheckpointError     a checkpoint is missing, incomplete or damaged

Each class carries `code`, the stable name that a job's error or a problem document shows. All are picklable:
they keep the arguments they take.
"""


class RLHFError(Exception):
    """Root of the core's errors."""

    code = "internal"


class ModelLoadError(RLHFError):
    """Weights, tokenizer or adapter cannot be loaded."""

    code = "model_load_failed"


class TokenizerMismatch(RLHFError):
    """Policy and reference do not share a tokenizer: a per-token KL is undefined."""

    code = "tokenizer_mismatch"


class InputTooLong(RLHFError):
    """A text exceeds the model's context."""

    code = "input_too_long"


class EmptyInput(RLHFError):
    """A text has no token to score."""

    code = "empty_input"


class RewardError(RLHFError):
    """A reward function raised, or did not return one number per completion."""

    code = "reward_error"


class NonFiniteLoss(RLHFError):
    """NaN or infinity in a reward, log-probability, loss or gradient; the optimizer was not stepped."""

    code = "nan_loss"

    def __init__(self, step: int, tensor: str, value: str) -> None:
        super().__init__(step, tensor, value)
        self.step, self.tensor, self.value = step, tensor, value

    def __str__(self) -> str:
        return f"step {self.step}: {self.tensor} is {self.value}"


class CheckpointError(RLHFError):
    """A checkpoint is missing, incomplete or damaged."""

    code = "checkpoint_failed"
