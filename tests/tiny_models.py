"""Small but real models on disk: Llama blocks, a byte-level BPE tokenizer, a LoRA adapter that does something."""

from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 96
CORPUS = [
    "the cat sat on the mat and the dog sat on the log",
    "reinforcement learning from human feedback keeps the policy near its reference",
    "日本語の文章と絵文字 👩‍👩‍👧 café naïve",
]

CHATML = (  # as SmolLM2's and Qwen's, with this tokenizer's special tokens
    "{% for message in messages %}{{ '<｜begin｜>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<｜begin｜>assistant\n' }}{% endif %}"
)


class TinyModels(NamedTuple):
    root: Path
    base: Path
    adapter: Path  # of base, with B ≠ 0
    null_adapter: Path  # of base, with B = 0
    foreign: Path  # another tokenizer


def build(root: Path) -> TinyModels:
    tiny = TinyModels(root, *(root / name for name in TinyModels._fields[1:]))
    tokenizer = byte_level_tokenizer(vocab_size=400)
    tokenizer.chat_template = CHATML
    save_tiny(tiny.base, tokenizer, seed=0)
    save_tiny(tiny.foreign, byte_level_tokenizer(vocab_size=300), seed=0)
    for folder, scale in ((tiny.adapter, 0.2), (tiny.null_adapter, 0.0)):
        torch.manual_seed(1)
        peft = get_peft_model(
            LlamaForCausalLM.from_pretrained(tiny.base, dtype=torch.float32),
            LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        for name, weight in peft.named_parameters():
            if "lora_B" in name:
                weight.data.normal_().mul_(scale)
        peft.save_pretrained(folder)
    return tiny


def save_padded(tiny: TinyModels, folder: Path, *, rows: int) -> Path:
    """Another model of base's tokenizer, whose head has so many rows beyond it, with weights of their own."""
    config = LlamaForCausalLM.from_pretrained(tiny.base).config
    config.vocab_size += rows
    torch.manual_seed(3)
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(tiny.base).save_pretrained(folder)
    return folder


def byte_level_tokenizer(vocab_size: int, *, bos: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<|end|>", "<｜begin｜>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<｜begin｜> $A", special_tokens=[("<｜begin｜>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<｜begin｜>")


def save_tiny(folder: Path, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> None:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            initializer_range=0.3,
            eos_token_id=0,
            bos_token_id=1,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
