"""Policies to be trained, each with its frozen reference: an adapter on it, or all weights beside a copy."""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_core.causal_lm import CausalLM
from rlhf_core.config.ppo import LoraConfig, ModelConfig
from rlhf_core.errors import ModelLoadError
from rlhf_core.models import Body, as_load_error, load_body, load_tokenizer
from rlhf_core.products import arrange_for_forward
from rlhf_core.trained_trunk import TrainedTrunk, checkpoint_activations, silence

VALUE_ADAPTER = "value_function"  # no model calls a layer so: weights are told apart by it


@dataclass(frozen=True)
class TokenizerCodec:
    """Text to ids and back, and the ids that end or pad a sequence."""

    tokenizer: Any
    eos_ids: frozenset[int]
    pad_id: int

    @classmethod
    def of(cls, tokenizer: Any, model: Any) -> "TokenizerCodec":
        """Stop ids from tokenizer and generation config; padding is masked, so any id will do."""
        configured = getattr(model.generation_config, "eos_token_id", None)
        stops = configured if isinstance(configured, list) else [configured]
        eos = frozenset(i for i in [tokenizer.eos_token_id, *stops] if i is not None)
        pad = tokenizer.pad_token_id
        return cls(tokenizer, eos, pad if pad is not None else min(eos, default=0))

    def encode(self, text: str) -> list[int]:
        """Ids with the special tokens the tokenizer adds."""
        return list(self.tokenizer(text)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """Text without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


class Policy(ABC):
    """An `experience.TrainablePolicy` that can be saved. `source` is where the model it started from lies."""

    def __init__(self, model: Any, source: str, trainable: dict[str, nn.Parameter]) -> None:
        self.source = source
        self.tokenizer = load_tokenizer(source)
        self.codec = TokenizerCodec.of(self.tokenizer, model)
        self._model = model
        self._trainable = trainable

    @abstractmethod
    def policy(self) -> AbstractContextManager[CausalLM]:
        """The policy, while the context is entered."""

    @abstractmethod
    def reference(self) -> AbstractContextManager[CausalLM]:
        """The reference, while the context is entered."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights and tokenizer so that AutoModelForCausalLM loads them, with PEFT if it is an adapter."""

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return dict(self._trainable)

    @property
    def base(self) -> str:
        """What others may call the model it started from: no folder of ours."""
        return str(self._model.config.name_or_path)

    @property
    def hidden_size(self) -> int:
        """Width of the trunk's output."""
        return int(self._model.config.get_text_config().hidden_size)


class LoraPolicy(Policy):
    """An adapter, whose reference is the same weights with the adapter off."""

    def __init__(self, body: Body, source: str, causal_lm: CausalLM) -> None:
        trainable = {name: p for name, p in body.peft.named_parameters() if p.requires_grad}
        super().__init__(body.model, source, trainable)
        self._peft, self._causal_lm = body.peft, causal_lm
        # The adapter that all layers use. None: the reference's turn, or a signal came while layers were switched.
        self._on: str | None = "default"

    @contextmanager
    def policy(self) -> Iterator[CausalLM]:
        """The base with the adapter on, whatever a signal has left half switched."""
        if self._on != "default":
            self._switch("default")
        yield self._causal_lm

    @contextmanager
    def reference(self) -> Iterator[CausalLM]:
        """The base with the adapter off."""
        if self._on is None:
            self._switch("default")  # PEFT would leave layers off that it finds off
        self._on = None
        with self._peft.disable_adapter():
            yield self._causal_lm
        self._on = "default"

    def _switch(self, adapter: str) -> None:
        """All keep requires_grad: autograd drops the gradient of a leaf that lost it after the forward pass."""
        layers_may_be_off, self._on = self._on is None, None
        if layers_may_be_off:
            self._peft.base_model.enable_adapter_layers()
        self._peft.set_adapter(adapter)
        for parameter in self._adapters():
            parameter.requires_grad_(True)
        self._on = adapter

    def _adapters(self) -> Iterable[nn.Parameter]:
        return self._trainable.values()

    def save(self, folder: Path) -> None:
        """Write adapter and tokenizer so that AutoModelForCausalLM and PEFT load them."""
        self._peft.save_pretrained(
            str(folder),
            safe_serialization=True,
            selected_adapters=["default"],
            save_embedding_layers=False,  # they are the base's; PEFT would ask the hub for what is called as it is
        )
        self.tokenizer.save_pretrained(str(folder))


class LoraPolicyWithValue(LoraPolicy):
    """An `experience.OwnValueTrunk`: a second adapter on the same base is the value function's."""

    def __init__(self, body: Body, source: str, causal_lm: CausalLM, value: LoraConfig, seed: int) -> None:
        super().__init__(body, source, causal_lm)
        # The targets that "all-linear" meant: by now it would mean the first adapter's layers too.
        targets = self._peft.peft_config["default"].target_modules
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._peft.add_adapter(VALUE_ADAPTER, _peft_config(body, value, targets))
        named = self._peft.named_parameters()
        self._value = {name: p for name, p in named if VALUE_ADAPTER in name.split(".")}
        self._switch("default")

    def value_parameters(self) -> dict[str, nn.Parameter]:
        """The value function's adapter, by name."""
        return dict(self._value)

    @contextmanager
    def value_trunk(self) -> Iterator[CausalLM]:
        """The base with the value function's adapter on."""
        try:
            self._switch(VALUE_ADAPTER)
            yield self._causal_lm
        finally:
            self._switch("default")

    def _adapters(self) -> Iterable[nn.Parameter]:
        return (*self._trainable.values(), *self._value.values())


class FullPolicy(Policy):
    """All weights of a model, whose reference is a second, frozen copy of what they were at first."""

    def __init__(
        self, model: Any, source: str, causal_lm: CausalLM, reference: CausalLM, config: Any
    ) -> None:
        model.requires_grad_(True)
        super().__init__(model, source, dict(model.named_parameters()))  # weights that are tied come once
        self._causal_lm, self._reference = causal_lm, reference
        self._config = config  # as it was loaded, with its dropout

    def policy(self) -> AbstractContextManager[CausalLM]:
        """The model that is trained."""
        return nullcontext(self._causal_lm)

    def reference(self) -> AbstractContextManager[CausalLM]:
        """The copy."""
        return nullcontext(self._reference)

    def save(self, folder: Path) -> None:
        """Write the whole model and its tokenizer so that AutoModelForCausalLM loads them."""
        self._model.save_pretrained(str(folder))
        self._config.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))


def new_policy(source: str, options: ModelConfig, *, seed: int, device: str = "cpu") -> Policy:
    """A policy equal to its reference. Raises ModelLoadError."""
    if options.lora is not None:
        body = _load_base(source, options, device)
        with as_load_error(source):
            _add_adapter(body, options.lora, seed)
        return _lora_policy(body, source, options, seed)
    reference = _load(source, options, device)
    with as_load_error(source):
        policy = Body(copy.deepcopy(reference.model))
    return _full_policy(policy, reference, source, options)


def load_policy(source: str, folder: Path, options: ModelConfig, *, device: str = "cpu") -> Policy:
    """A policy that goes on from what was saved in a folder. Raises ModelLoadError."""
    if options.lora is not None:
        body = _load_base(source, options, device)
        with as_load_error(str(folder)):
            body.load_trainable_adapter(folder)
        return _lora_policy(body, source, options, seed=0)  # a value adapter's weights are the checkpoint's
    return _full_policy(_load(str(folder), options, device), _load(source, options, device), source, options)


def public_name(source: str, options: ModelConfig) -> str:
    """What a checkpoint, which may be downloaded, calls its base: a hub id, or the job's name for a folder."""
    return options.name if os.path.isabs(source) or os.path.isdir(source) else source


def _rename(model: Any, source: str, options: ModelConfig) -> str:
    """Let the model be called so wherever transformers and PEFT write down what it is."""
    model.name_or_path = model.config.name_or_path = public_name(source, options)
    return str(model.name_or_path)


def _load(path: str, options: ModelConfig, device: str) -> Body:
    body = load_body(path, device=device, products=options.dtype == "float32")
    if not body.causal_lm.splits:
        raise ModelLoadError(f"{path}: its head is not one linear layer; it can be scored, not trained")
    return body


def _load_base(path: str, options: ModelConfig, device: str) -> Body:
    """What adapters are trained on: it runs forward three times for every time that it runs backward."""
    body = _load(path, options, device)
    arrange_for_forward(body.model)
    return body


def _add_adapter(body: Body, lora: LoraConfig, seed: int) -> None:
    """A fresh adapter with B = 0 on every linear layer but the head."""
    config = _peft_config(body, lora, "all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body.peft = get_peft_model(body.model, config)


def _peft_config(body: Body, lora: LoraConfig, targets: str | set[str]) -> PeftLoraConfig:
    return PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in body.model.modules()),
        task_type="CAUSAL_LM",
    )


def _lora_policy(body: Body, source: str, options: ModelConfig, seed: int) -> LoraPolicy:
    body.peft.peft_config["default"].base_model_name_or_path = _rename(body.model, source, options)
    causal_lm = _to_train(body, options)
    if options.value_adapter is None:
        return LoraPolicy(body, source, causal_lm)
    return LoraPolicyWithValue(body, source, causal_lm, options.value_adapter, seed)


def _full_policy(policy: Body, reference: Body, source: str, options: ModelConfig) -> FullPolicy:
    _rename(policy.model, source, options)
    config = copy.deepcopy(policy.model.config)
    causal_lm = _to_train(policy, options)
    return FullPolicy(policy.model, source, causal_lm, _to_train(reference, options), config)


def _to_train(body: Body, options: ModelConfig) -> CausalLM:
    """The model as it runs in training."""
    silence(body.model)
    if options.gradient_checkpointing:
        checkpoint_activations(body.model)
    body.model.eval()
    trunk = TrainedTrunk(body.causal_lm.trunk, bfloat16=options.dtype == "bfloat16")
    return replace(body.causal_lm, trunk=trunk)
