"""The models' folders, and policies of two models for kleash's trainer and for its exact KL."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.ppo.cases import WORDS, Case, word
from rlhf_core import policies
from rlhf_core.causal_lm import CausalLM, split
from rlhf_core.config.ppo import LoraConfig, ModelConfig
from rlhf_core.experience import TrainablePolicy
from rlhf_core.policies import TokenizerCodec


def folder_of(case: Case, registry: Path, scratch: Path) -> Path:
    """Where the case's model is; the tiny one is made, always with the same weights."""
    if case.model == "tiny":
        return _tiny(scratch / "tiny")
    known = json.loads(registry.read_text())
    return (registry.parent / known["models"][known["default_reference"]]["source"]).resolve()


def _tiny(folder: Path) -> Path:
    """0.9 million parameters, words for tokens, logits of standard deviation 1 or so."""
    if folder.exists():
        return folder
    vocabulary = Tokenizer(models.WordLevel({word(i): i for i in range(WORDS)}, unk_token=word(0)))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"bos_token_id": None, "eos_token_id": None}
    config = GPT2Config(
        vocab_size=WORDS,
        n_positions=128,
        n_embd=128,
        n_layer=4,
        n_head=4,
        initializer_range=0.1,
        **dropout,
        **ends,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=vocabulary).save_pretrained(folder)
    return folder


class TwoModels:
    """A `TrainablePolicy` of two whole models that are there already."""

    def __init__(self, policy: Any, reference: Any, tokenizer: Any) -> None:
        self._policy, self._reference = split(policy), split(reference)
        self._weights = dict(policy.named_parameters())  # weights that are tied come once
        self.hidden_size = int(policy.config.get_text_config().hidden_size)
        self.codec = endless(TokenizerCodec.of(tokenizer, policy))

    @contextmanager
    def policy(self) -> Iterator[CausalLM]:
        """The model that is trained."""
        yield self._policy

    @contextmanager
    def reference(self) -> Iterator[CausalLM]:
        """The other."""
        yield self._reference

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """All of the policy's weights."""
        return self._weights


def endless(codec: TokenizerCodec) -> TokenizerCodec:
    """No token ends a completion: every one has its full length, as TRL's with `stop_token=None`."""
    return replace(codec, eos_ids=frozenset(), pad_id=0)


def new_policy(case: Case, folder: str, *, seed: int) -> TrainablePolicy:
    """kleash's policy of a case."""
    rank = case.lora_rank
    lora = None if rank is None else LoraConfig(rank=rank, alpha=2 * rank)
    policy = policies.new_policy(folder, ModelConfig(name=folder, lora=lora), seed=seed)
    policy.codec = endless(policy.codec)
    return policy
