"""Loading and running models to be scored; rlhf_core/policies.py has those to be trained.

A policy that is an adapter shares one copy of the base weights with its reference (adapter off).
"""

import hashlib
from collections.abc import Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import find_adapter_config_file
from transformers.utils import logging as transformers_logging

from rlhf_core.causal_lm import CausalLM, split
from rlhf_core.errors import ModelLoadError, TokenizerMismatch
from rlhf_core.model_folder import refuse_unsafe
from rlhf_core.products import accelerate

transformers_logging.disable_progress_bar()

# What transformers, PEFT, tokenizers and safetensors raise on a damaged or foreign folder.
LOADER_ERRORS = (
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


class WeightSource(NamedTuple):
    """A folder or hub id; for a PEFT adapter also the base it belongs to."""

    path: str
    base: str | None = None


class Body:
    """One copy of base weights, with any number of adapters on it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.peft: Any = None
        self.causal_lm = split(model)

    def load_adapter(self, path: str) -> str:
        """Put the adapter of a folder on the weights; returns its name.

        Raises:
            ModelLoadError: it acts on the head, on whole modules or on the prompt, which our split would miss.
        """
        _require_safetensors_adapter(Path(path))
        name = _adapter_name(path)
        if self.peft is None:
            self.peft = PeftModel.from_pretrained(self.model, path, adapter_name=name)
        elif name not in self.peft.peft_config:
            self.peft.load_adapter(path, adapter_name=name)
        self.peft.eval()
        self._refuse_beyond_trunk(name, path)
        return name

    def load_trainable_adapter(self, folder: Path) -> None:
        """Put the adapter of a folder on the weights as `default`, to be trained on. Raises as `load_adapter`."""
        _require_safetensors_adapter(folder)
        self.peft = PeftModel.from_pretrained(self.model, str(folder), is_trainable=True)
        self._refuse_beyond_trunk("default", str(folder))

    def _refuse_beyond_trunk(self, name: str, path: str) -> None:
        config = self.peft.peft_config[name]
        if config.is_prompt_learning:
            raise ModelLoadError(f"{path}: a prompt-learning adapter works outside the trunk; not supported")
        if config.modules_to_save or not _is_plain(self.model.get_output_embeddings()):
            raise ModelLoadError(f"{path}: an adapter of the head or of whole modules is not supported")

    def drop_adapter(self, path: str) -> None:
        """Take the adapter of a folder off again; the weights and other adapters stay."""
        name = _adapter_name(path)
        if self.peft is None or name not in self.peft.peft_config:
            return
        if len(self.peft.peft_config) > 1:
            self.peft.delete_adapter(name)
        else:  # PEFT cannot run a model that has lost its last one
            self.peft.unload()
            self.peft = None

    @contextmanager
    def run(self, adapter: str | None) -> Iterator[CausalLM]:
        """The model with this adapter, or with none."""
        if adapter is not None:
            self.peft.set_adapter(adapter, inference_mode=True)
            yield self.causal_lm
        else:
            with self.peft.disable_adapter() if self.peft is not None else nullcontext():
                yield self.causal_lm


class ModelPair:
    """A policy and a reference that share a tokenizer, ready to be scored."""

    def __init__(self, policy: tuple[Body, str | None], reference: tuple[Body, str | None], tokenizer: Any):
        self._policy, self._reference = policy, reference
        self.tokenizer = tokenizer
        self.tokenizer_sha256 = tokenizer_sha256(tokenizer)
        self.weights_dtype = str(policy[0].model.dtype).removeprefix("torch.")

    @property
    def vocab_sizes(self) -> tuple[int, int]:
        """Logits per token: of the policy, of the reference."""
        return self._policy[0].causal_lm.vocab_size, self._reference[0].causal_lm.vocab_size

    @property
    def packs(self) -> bool:
        """True if both models take packed texts."""
        return self._policy[0].causal_lm.packs and self._reference[0].causal_lm.packs

    @property
    def caches(self) -> bool:
        """True if both models go on from the keys and values of a prefix."""
        return self._policy[0].causal_lm.caches and self._reference[0].causal_lm.caches

    @property
    def branched_tokens(self) -> int:
        """The longest row of a prompt and completions of it that both models take; 0: none."""
        both = (self._policy[0].causal_lm, self._reference[0].causal_lm)
        return min(model.context if model.branches else 0 for model in both)

    @property
    def splits(self) -> bool:
        """False if one of them makes the logits of all tokens at once: slow, and memory for all of them."""
        return self._policy[0].causal_lm.splits and self._reference[0].causal_lm.splits

    @property
    def same(self) -> bool:
        """True if policy and reference are one model."""
        return self._policy == self._reference

    def policy(self) -> AbstractContextManager[CausalLM]:
        """The policy, while the context is entered."""
        body, adapter = self._policy
        return body.run(adapter)

    def reference(self) -> AbstractContextManager[CausalLM]:
        """The reference, while the context is entered."""
        body, adapter = self._reference
        return body.run(adapter)


def load_pair(
    policy: WeightSource,
    reference: WeightSource,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    bodies: MutableMapping[str, Body] | None = None,
) -> ModelPair:
    """Load both models; equal bases are loaded once, and those in `bodies` not again.

    Raises:
        ModelLoadError: weights, tokenizer or adapter cannot be loaded.
        TokenizerMismatch: the two do not share a tokenizer.
    """
    bodies = {} if bodies is None else bodies

    def place(source: WeightSource) -> tuple[Body, str | None]:
        base = source.base or source.path
        if base not in bodies:
            bodies[base] = load_body(base, device=device, dtype=dtype)
        body = bodies[base]
        if source.base is None:
            return body, None
        with as_load_error(source.path):
            return body, body.load_adapter(source.path)

    policy_tokenizer, reference_tokenizer = tokenizer_of(policy), tokenizer_of(reference)
    ours, theirs = tokenizer_sha256(policy_tokenizer), tokenizer_sha256(reference_tokenizer)
    if ours != theirs:
        raise TokenizerMismatch(
            f"policy and reference have different tokenizers (sha256 {ours[:12]}… and {theirs[:12]}…)"
        )
    return ModelPair(place(policy), place(reference), policy_tokenizer)


def load_body(
    path: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, products: bool = True
) -> Body:
    """A full model from a folder or the hub. Never runs a repository's code, reads safetensors only.

    With `products` all its linear layers multiply as rlhf_core/products.py does, else the head alone: autocast
    cannot see into these.
    """
    with as_load_error(path):
        refuse_unsafe(path)
        if find_adapter_config_file(path) is not None:  # transformers would open the base that it names
            raise ModelLoadError(f"{path}: an adapter, where a full model is needed")
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
        model = model.to(device).eval().requires_grad_(False)
        accelerate(model if products else model.get_output_embeddings())
        return Body(model)


def load_tokenizer(path: str) -> Any:
    """The fast tokenizer of a folder or hub id."""
    with as_load_error(path):
        refuse_unsafe(path)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, use_fast=True)
        if not getattr(tokenizer, "is_fast", False):
            raise ModelLoadError(f"{path}: only fast tokenizers (tokenizer.json) are supported")
        return tokenizer


def tokenizer_sha256(tokenizer: Any) -> str:
    """Fingerprint of vocabulary, merges, normaliser and special tokens."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def tokenizer_of(source: WeightSource) -> Any:
    """An adapter's own tokenizer if its folder has one, else its base's."""
    own = source.base is None or (Path(source.path) / "tokenizer.json").is_file()
    return load_tokenizer(source.path if own else source.base or source.path)


def _adapter_name(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()[:16]


def _is_plain(head: nn.Module) -> bool:
    """False once PEFT has wrapped it."""
    return type(head).__module__.split(".")[0] != "peft"


def _require_safetensors_adapter(folder: Path) -> None:
    """PEFT would unpickle a lone adapter_model.bin, and ask the hub for what is missing."""
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelLoadError(f"{folder}: an adapter needs adapter_model.safetensors")
    refuse_unsafe(str(folder))


@contextmanager
def as_load_error(path: str) -> Iterator[None]:
    """What loaders raise on a bad folder, as one error without a traceback's noise."""
    try:
        yield
    except LOADER_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelLoadError(f"cannot load {path}: {reason[:300]}") from error
