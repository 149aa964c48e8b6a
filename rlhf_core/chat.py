"""A conversation as the policy saw it: what came before its answer, and the answer up to its end of turn.

The tokenizer's chat template is Jinja that came with the model. transformers runs it in an
ImmutableSandboxedEnvironment: it reaches no attribute that begins with an underscore, changes nothing it is given,
and sees roles and contents only. Here its time and the length of its result are bounded. Its memory is not, nor
the time of one expression: `'a' * 10**10` is one. So a template is trusted as far as the model's folder is.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jinja2 import TemplateError

from rlhf_core.errors import ChatTemplateFailed, ChatTemplateMismatch, NoChatTemplate

RENDER_S = 5.0  # for both renderings; one takes a millisecond, compiling the longest templates a second
MAX_RENDERED_CHARS = 4_000_000
# What an expression of a template can raise.
TEMPLATE_ERRORS = (
    *(TemplateError, ArithmeticError, AttributeError, LookupError),
    *(MemoryError, RecursionError, TypeError, ValueError),
)


@runtime_checkable  # beartype asks
class Message(Protocol):
    """One turn: jobs.scoring_wire.ChatMessage."""

    @property
    def role(self) -> str: ...  # noqa: D102
    @property
    def content(self) -> str: ...  # noqa: D102


class Exchange(NamedTuple):
    """A rendered conversation in two parts."""

    prompt: str  # all turns but the last, and the beginning of the assistant's
    completion: str  # the last turn with its end-of-turn token, which the policy generates too


class _OutOfTime(Exception):
    pass


def render(tokenizer: Any, messages: Sequence[Message]) -> Exchange:
    """Split the rendered conversation where the assistant's last turn begins.

    Line breaks after the end-of-turn token are the template's, not the policy's: they are left out.

    Raises:
        NoChatTemplate: the tokenizer has none.
        ChatTemplateFailed: the template raises on these messages, runs too long or renders too much.
        ChatTemplateMismatch: the conversation does not begin with its own prompt.
    """
    if not tokenizer.chat_template:
        raise NoChatTemplate("the policy's tokenizer has no chat template: send a prompt and a completion")
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        with _deadline(RENDER_S):
            prompt = _apply(tokenizer, turns[:-1], add_generation_prompt=True)
            whole = _apply(tokenizer, turns, add_generation_prompt=False)
    except _OutOfTime:
        raise ChatTemplateFailed(f"the chat template ran for more than {RENDER_S:g} s") from None
    except TEMPLATE_ERRORS as error:
        kind = type(error).__name__  # its message may repeat the input
        raise ChatTemplateFailed(f"the chat template does not take these messages ({kind})") from None
    if len(whole) > MAX_RENDERED_CHARS:
        raise ChatTemplateFailed(f"the chat template rendered more than {MAX_RENDERED_CHARS} characters")
    if not whole.startswith(prompt):
        raise ChatTemplateMismatch(
            "the chat template renders the conversation otherwise than its prompt: the answer cannot be told apart"
        )
    return Exchange(prompt, _to_end_of_turn(tokenizer, whole[len(prompt) :]))


def _apply(tokenizer: Any, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    # As a batch of one: transformers refuses an empty conversation that stands alone.
    (text,) = tokenizer.apply_chat_template(
        [turns], tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return str(text)


def _to_end_of_turn(tokenizer: Any, completion: str) -> str:
    bare = completion.rstrip("\n")
    special = tuple(token.content for token in tokenizer.added_tokens_decoder.values())
    return bare if bare.endswith(special) else completion


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise _OutOfTime in this thread at the first line or call of Python after so many seconds."""
    give_up_at, before = time.monotonic() + seconds, sys.gettrace()

    def watch(_frame: Any, _event: str, _argument: Any) -> Any:
        if time.monotonic() > give_up_at:
            raise _OutOfTime
        return watch

    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
