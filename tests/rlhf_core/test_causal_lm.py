"""Trunk and head apart, on architectures that make it hard: what is found out about each is what holds."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BloomConfig,
    ElectraConfig,
    Gemma3TextConfig,
    GPTNeoConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Phi3Config,
)

from rlhf_core.causal_lm import split
from rlhf_core.config.ppo import LoraConfig, ModelConfig
from rlhf_core.errors import ModelLoadError
from rlhf_core.layouts import lay_out
from rlhf_core.models import Body, ModelPair
from rlhf_core.policies import new_policy
from rlhf_core.scoring import capacity
from rlhf_core.tokenization import TokenizedText

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def made(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_head_is_known_in_every_dtype(dtype):
    """Logits of size 3 are rounded by more than 1e-3 in bfloat16: both sides have to be."""
    model = made(LlamaConfig(**SIZES, intermediate_size=64, initializer_range=0.2)).to(dtype)
    found = split(model)
    assert found.splits
    assert found.packs
    assert found.caches
    hidden = torch.randn(3, 32).to(dtype)
    exact = hidden.double() @ model.lm_head.weight.double().T
    torch.testing.assert_close(found.logits(hidden).double(), exact, rtol=1e-5, atol=1e-5)
    assert found.logits(hidden[:0]).shape == (0, 97)


@pytest.mark.parametrize(
    "config",
    [
        ElectraConfig(**SIZES, embedding_size=16, is_decoder=True),
        BartConfig(vocab_size=97, d_model=32, decoder_layers=2, decoder_attention_heads=4, is_decoder=True),
    ],
    ids=["a layer before the head", "a decoder alone"],
)
def test_what_cannot_be_split_or_probed_is_run_as_a_whole_or_plainly(config):
    model = made(config)
    found = split(model)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        hidden = found.trunk(input_ids=ids, use_cache=False).last_hidden_state
        expected = model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(found.logits(hidden), expected, rtol=1e-4, atol=1e-5)


def test_longrope_ends_where_a_long_text_would_change_short_ones():
    """Beyond it the frequencies of the whole batch change."""
    rope = {
        **{"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 40},
        **{"short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
    }
    config = Phi3Config(
        **SIZES,
        **{"intermediate_size": 64, "max_position_embeddings": 256, "rope_parameters": rope},
        **{"original_max_position_embeddings": 40, "pad_token_id": 0, "num_key_value_heads": 4},
    )
    assert split(made(config)).context == 40


def test_a_packed_row_is_no_longer_than_a_table_of_positions():
    config = GPTNeoConfig(
        vocab_size=97,
        **{"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
        max_position_embeddings=64,
    )
    body = Body(made(config))
    pair = ModelPair.__new__(ModelPair)
    pair._policy = pair._reference = (body, None)
    assert capacity(pair).packed_tokens == 64
    ids = np.arange(32, dtype=np.int32)
    text = TokenizedText(ids=ids, start=ids, end=ids, first_scored=1)
    where = {"branched_tokens": 0, "device": torch.device("cpu")}
    layout = lay_out([text, text._replace(ids=ids[:31])], prefix=0, packs=True, **where)
    assert layout.predicting(body.causal_lm).shape == (61, 32)


@pytest.mark.parametrize(
    ("config", "branches"),
    [
        (LlamaConfig(**SIZES), True),
        (BloomConfig(**SIZES), False),  # ALiBi counts columns, not positions
        (MistralConfig(**SIZES, num_key_value_heads=4), False),  # sees the latest 4096 columns
        (MistralConfig(**SIZES, num_key_value_heads=4, sliding_window=None), True),
        (Gemma3TextConfig(**SIZES, num_key_value_heads=4, head_dim=8), False),  # some of its layers do
        (MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2), False),  # has a state, no mask
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_completions_share_a_row_only_where_the_model_keeps_them_apart(config, branches):
    assert split(made(config)).branches is branches


def test_a_model_without_a_linear_head_is_not_trained(tmp_path, monkeypatch, tiny_model):
    monkeypatch.setattr("rlhf_core.causal_lm._agrees", lambda *_: False)
    with pytest.raises(ModelLoadError, match="scored, not trained"):
        new_policy(str(tiny_model), ModelConfig(name="tiny", lora=LoraConfig(rank=2, alpha=4)), seed=0)
