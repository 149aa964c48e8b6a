"""Small but real sequence classifiers on disk: an encoder with three labels, a decoder with one output."""

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from tests.tiny_models import byte_level_tokenizer

LABELS = ["bad", "plain", "good"]
CONTEXT = 24
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_encoder(folder: Path) -> Path:
    """BERT with the labels bad, plain and good, and a context of 24 tokens."""
    config = BertConfig(
        vocab_size=300,
        max_position_embeddings=CONTEXT,
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
        initializer_range=0.5,
        **SIZES,
    )
    return _save(folder, BertForSequenceClassification, config)


def save_decoder(folder: Path, *, pads: bool = True) -> Path:
    """Llama with one output: a reward model. Without a padding token if `pads` is False."""
    config = LlamaConfig(
        vocab_size=300, max_position_embeddings=CONTEXT, num_labels=1, initializer_range=0.5, **SIZES
    )
    return _save(folder, LlamaForSequenceClassification, config, pads=pads)


def _save(folder: Path, kind: type[PreTrainedModel], config: object, *, pads: bool = True) -> Path:
    tokenizer = byte_level_tokenizer(vocab_size=300)
    if pads:
        tokenizer.pad_token = "<|end|>"
    torch.manual_seed(5)
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
