"""Loading: what is damaged, foreign or executable is refused with one error, and one base is loaded once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlhf_core.causal_lm import CausalLM
from rlhf_core.errors import ModelLoadError, TokenizerMismatch
from rlhf_core.models import WeightSource, load_body, load_pair
from tests import tiny_models
from tests.tiny_models import TinyModels


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return tiny_models.build(tmp_path_factory.mktemp("models"))


def rewrite(folder: Path, name: str, **changes: object) -> None:
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(config | changes))


def truncate(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: rewrite(folder, "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"}),
        lambda folder: rewrite(folder, "config.json", model_type="no-such-architecture"),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: truncate(folder, "model.safetensors"),
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        lambda folder: (folder / "tokenizer.json").write_text("[]"),
    ],
    ids=["auto_map", "architecture", "config", "truncated", "empty", "bin", "tokenizer"],
)
def test_a_base_that_cannot_be_trusted_or_read_is_one_error(
    tiny: TinyModels, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.base, folder)
    damage(folder)
    with pytest.raises(ModelLoadError):
        load_pair(WeightSource(str(folder)), WeightSource(str(folder)))


def test_a_pickled_adapter_is_never_opened(tiny: TinyModels, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(tiny.adapter, folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelLoadError, match=r"needs adapter_model\.safetensors"):
        load_pair(WeightSource(str(folder), str(tiny.base)), WeightSource(str(tiny.base)))


def test_an_adapter_is_no_base(tiny: TinyModels) -> None:
    """Left to itself, transformers would open the base that the adapter's config names."""
    with pytest.raises(ModelLoadError, match="an adapter, where a full model is needed"):
        load_body(str(tiny.adapter))


@pytest.mark.parametrize("changes", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_of_the_head_is_refused(
    tiny: TinyModels, tmp_path: Path, changes: dict[str, list[str]]
) -> None:
    """Trunk and head are run apart: a head that PEFT has wrapped would be missed."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    options = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | changes
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny.base), LoraConfig(**options)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ModelLoadError, match="adapter of the head"):
        load_pair(WeightSource(str(tmp_path), str(tiny.base)), WeightSource(str(tiny.base)))


def test_different_tokenizers_have_no_per_token_kl(tiny: TinyModels) -> None:
    with pytest.raises(TokenizerMismatch):
        load_pair(WeightSource(str(tiny.base)), WeightSource(str(tiny.foreign)))


def test_an_adapter_and_its_base_are_one_copy_of_the_weights(tiny: TinyModels) -> None:
    pair = load_pair(WeightSource(str(tiny.adapter), str(tiny.base)), WeightSource(str(tiny.base)))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        with pair.policy() as policy:
            ours = policy.logits(policy.trunk(input_ids=ids, use_cache=False).last_hidden_state)
        with pair.reference() as reference:
            theirs = reference.logits(reference.trunk(input_ids=ids, use_cache=False).last_hidden_state)
    assert policy.trunk is reference.trunk
    assert not torch.allclose(ours, theirs)


@pytest.mark.parametrize("bias", [True, False])
def test_the_head_of_a_bfloat16_trunk_answers_in_float32(bias):
    """numerics §2: in bfloat16 the same logits would be off by up to half a unit of 1/16 at 8."""
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 300, bias=bias, dtype=torch.bfloat16)
    model = CausalLM(torch.nn.Identity(), head, vocab_size=300, context=8)
    hidden = torch.randn(7, 64).bfloat16() * 8
    exact = hidden.double() @ head.weight.double().T + (head.bias.double() if bias else 0.0)
    for grad in (torch.enable_grad, torch.no_grad):
        with grad():
            logits = model.logits(hidden)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)
    assert (head(hidden).double() - exact).abs().max() > 0.01
