"""Every error the core raises, drawn as a tree.

RLHFError
├── ModelLoadError      weights, tokenizer or adapter cannot be loaded
│   └── UnsafeModel         its folder could run code, leads elsewhere, or claims more than it holds
├── TokenizerMismatch   policy and reference do not share a tokenizer
├── UnusableInput       one item of a request cannot be scored; the others can
│   ├── InputTooLong        more tokens than the model's context
│   ├── EmptyInput          no token to score
│   ├── TokenIdOutOfRange   a token id that the model does not have
│   ├── NoChatTemplate      messages for a tokenizer without a chat template
│   ├── ChatTemplateFailed  the template raises on these messages, or runs too long
│   └── ChatTemplateMismatch  it renders a conversation that does not go on from the prompt's
├── UnknownToken        a setting names a token that the tokenizer or the model does not have
├── UnusableStop        a stop string that the tokenizer never writes
├── RewardError         a reward function raised or did not return one number per completion
├── AuditFailed         what PPO takes for granted does not hold for this model on this machine
├── NonFiniteLoss       NaN or infinity in a reward, log-probability, loss or gradient
├── KLDiverged          the policy stayed further from its reference than the run allows
└── CheckpointError     a checkpoint is missing, incomplete or damaged

Each class carries `code`, the stable name that a job's error or a problem document shows. All are picklable:
they keep the arguments they take.
"""

from collections.abc import Mapping


class RLHFError(Exception):
    """Root of the core's errors."""

    code = "internal"


class ModelLoadError(RLHFError):
    """Weights, tokenizer or adapter cannot be loaded."""

    code = "model_load_failed"


class UnsafeModel(ModelLoadError):
    """The folder could run code, leads elsewhere, or claims more than it holds."""

    code = "unsafe_model"


class TokenizerMismatch(RLHFError):
    """Policy and reference do not share a tokenizer: a per-token KL is undefined."""

    code = "tokenizer_mismatch"


class UnusableInput(RLHFError):
    """One item of a request cannot be scored; the others can. `context` has the numbers of the message."""

    def __init__(self, detail: str, context: Mapping[str, int] | None = None) -> None:
        super().__init__(detail, context)
        self.context = dict(context or {})

    def __str__(self) -> str:
        return str(self.args[0])


class InputTooLong(UnusableInput):
    """More tokens than the model's context."""

    code = "input_too_long"


class EmptyInput(UnusableInput):
    """No token to score."""

    code = "empty_input"


class TokenIdOutOfRange(UnusableInput):
    """A token id that the model does not have."""

    code = "token_id_out_of_range"


class NoChatTemplate(UnusableInput):
    """Messages for a tokenizer without a chat template."""

    code = "no_chat_template"


class ChatTemplateFailed(UnusableInput):
    """The template raises on these messages, runs too long or renders too much."""

    code = "chat_template_failed"


class ChatTemplateMismatch(UnusableInput):
    """The template renders a conversation that does not go on from its prompt's rendering."""

    code = "chat_template_mismatch"


class UnknownToken(RLHFError):
    """A setting names a token that the tokenizer or the model does not have."""

    code = "unknown_token"


class UnusableStop(RLHFError):
    """A stop string that the tokenizer never writes, so that no completion would end with it."""

    code = "unusable_stop"


class RewardError(RLHFError):
    """A reward function raised, or did not return one number per completion."""

    code = "reward_error"


class AuditFailed(RLHFError):
    """What PPO takes for granted does not hold for this model on this machine; nothing was trained."""

    code = "audit_failed"

    def __init__(self, findings: list[str]) -> None:
        super().__init__(findings)
        self.findings = findings

    def __str__(self) -> str:
        return "; ".join(self.findings)


class NonFiniteLoss(RLHFError):
    """NaN or infinity in a reward, log-probability, loss or gradient; the optimizer was not stepped."""

    code = "nan_loss"

    def __init__(self, step: int, tensor: str, value: str) -> None:
        super().__init__(step, tensor, value)
        self.step, self.tensor, self.value = step, tensor, value

    def __str__(self) -> str:
        return f"step {self.step}: {self.tensor} is {self.value}"


class KLDiverged(RLHFError):
    """The exact sequence KL was above its limit for too many steps in a row; the last of them changed nothing."""

    code = "kl_diverged"

    def __init__(self, step: int, kl: float, limit: float, steps: int) -> None:
        super().__init__(step, kl, limit, steps)
        self.step, self.kl, self.limit, self.steps = step, kl, limit, steps

    def __str__(self) -> str:
        return (
            f"step {self.step}: exact sequence KL is {self.kl:.4g} nats, above the limit of {self.limit:g} nats "
            f"for {self.steps} {'step' if self.steps == 1 else 'steps'} in a row"
        )


class CheckpointError(RLHFError):
    """A checkpoint is missing, incomplete or damaged."""

    code = "checkpoint_failed"
