"""Training an adapter or all weights of real tiny models, and saving them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

from rlhf_core.checkpoint import write_checkpoint
from rlhf_core.config.ppo import ModelConfig
from rlhf_core.errors import ModelLoadError
from rlhf_core.models import WeightSource, load_body, load_pair
from rlhf_core.policies import FullPolicy, load_policy
from tests.rlhf_core import tiny_policies
from tests.rlhf_core.tiny_policies import (
    IDS,
    TRAININGS,
    begin,
    config,
    logits,
    of_policy,
    of_reference,
    steps,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_policies.build(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("training", TRAININGS)
def test_training_moves_every_weight_of_the_policy_and_none_of_the_reference(
    models: dict[str, Path], name: str, training: str
) -> None:
    options = config(models[name], lora=TRAININGS[training])
    policy, state = begin(options)
    base = logits(load_body(str(models[name])).causal_lm)
    assert torch.equal(of_policy(policy), base)
    before = {n: p.detach().clone() for n, p in policy.trainable_parameters().items()}
    first, second = steps(policy, state, options)
    assert first["kl/sequence"] == 0.0 < second["kl/sequence"]
    assert torch.equal(of_reference(policy), base)  # trap 18: to the bit, after training
    assert not torch.allclose(of_policy(policy), base)
    still = [n for n, p in policy.trainable_parameters().items() if torch.equal(p, before[n])]
    assert not still


def test_a_tied_head_is_one_weight_with_the_gradient_of_both_its_uses(models: dict[str, Path]) -> None:
    """Against autograd through the whole model: the head's chunked gradient and the embedding's add up."""
    policy, _ = begin(config(models["gpt2"], lora=None))
    with policy.policy() as model:
        hidden = model.trunk(input_ids=IDS, use_cache=False).last_hidden_state
        model.logits(hidden).square().mean().backward()
    body = AutoModelForCausalLM.from_pretrained(models["gpt2"], dtype=torch.float32)
    body.eval()(input_ids=IDS).logits.square().mean().backward()
    named = policy.trainable_parameters()
    assert named.keys() == dict(body.named_parameters()).keys()
    assert "lm_head.weight" not in named
    for weight_name, weight in body.named_parameters():
        torch.testing.assert_close(named[weight_name].grad, weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_checkpoint_of_all_weights_is_a_model(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    """transformers loads it with the dropout that its base has, and the scorer says what the policy says."""
    options = config(models[name], steps=1, lora=None)
    policy, state = begin(options)
    list(steps(policy, state, options))
    write_checkpoint(tmp_path, policy, state)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=IDS).logits, of_policy(policy), rtol=1e-4, atol=1e-5)
    wanted, found = (json.loads((f / "config.json").read_text()) for f in (models[name], tmp_path))
    dropouts = [key for key in wanted if "drop" in key]
    assert any(wanted[key] == 0.1 for key in dropouts)
    assert [found[key] for key in dropouts] == [wanted[key] for key in dropouts]

    pair = load_pair(WeightSource(str(tmp_path)), WeightSource(str(models[name])))
    with pair.policy() as ours, pair.reference() as theirs:
        assert torch.equal(logits(ours), of_policy(policy))
        assert torch.equal(logits(theirs), of_reference(policy))


def test_the_reference_is_a_copy_of_what_was_loaded_once(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_core import policies

    opened: list[str] = []

    def recorded(path: str, **options: Any) -> Any:
        opened.append(path)
        return load_body(path, **options)

    monkeypatch.setattr(policies, "load_body", recorded)
    policy, _ = begin(config(models["gpt2"], lora=None))
    assert isinstance(policy, FullPolicy)
    assert opened == [str(models["gpt2"])]
    with policy.policy() as ours, policy.reference() as theirs:
        shared = {p.data_ptr() for p in ours.trunk.parameters()} & {
            p.data_ptr() for p in theirs.trunk.parameters()
        }
        assert not shared
        assert not any(p.requires_grad for p in theirs.trunk.parameters())


@pytest.mark.parametrize("changes", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_training_goes_on_from_no_adapter_of_the_head(
    models: dict[str, Path], tmp_path: Path, changes: dict[str, list[str]]
) -> None:
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(**({"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | changes))
    base = AutoModelForCausalLM.from_pretrained(models["llama"])
    get_peft_model(base, adapter).save_pretrained(tmp_path)
    options = ModelConfig(name="llama")
    with pytest.raises(ModelLoadError, match="adapter of the head"):
        load_policy(str(models["llama"]), tmp_path, options)
    with pytest.raises(ModelLoadError, match="an adapter, where a full model is needed"):
        load_policy(str(models["llama"]), tmp_path, options.model_copy(update={"lora": None}))


@pytest.mark.parametrize("layer", [0, 1, 5])
@pytest.mark.parametrize("value_adapter", [None, {"rank": 2}])
def test_an_adapter_that_a_signal_left_off_in_some_layers_is_on_again(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, layer: int, value_adapter: dict[str, int] | None
) -> None:
    """Ctrl-C while the reference's turn ends, in a process that goes on: a notebook."""
    options = config(models["llama"], lora={"rank": 2}, value_adapter=value_adapter)
    policy, state = begin(options)
    base, _ = of_reference(policy), list(steps(policy, state, options))
    trained, enable, calls = of_policy(policy), BaseTunerLayer.enable_adapters, iter(range(99))

    def interrupted(self: BaseTunerLayer, enabled: bool) -> None:
        if enabled and next(calls) == layer:
            raise KeyboardInterrupt
        enable(self, enabled)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), policy.reference():
        patch.setattr(BaseTunerLayer, "enable_adapters", interrupted)
    assert torch.equal(of_policy(policy), trained)
    assert all(p.requires_grad for p in policy.trainable_parameters().values())
    assert torch.equal(of_reference(policy), base)
    assert torch.equal(of_policy(policy), trained)
