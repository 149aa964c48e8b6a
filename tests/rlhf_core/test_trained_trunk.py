"""What a trunk does in training: no dropout, on request activations made twice and products in bfloat16."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from rlhf_core.audit import audit, require_passed
from rlhf_core.errors import ModelLoadError
from rlhf_core.models import load_body
from tests.rlhf_core import tiny_policies
from tests.rlhf_core.tiny_policies import (
    IDS,
    PROMPTS,
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
def test_train_without_dropout_is_eval_to_the_bit(models: dict[str, Path], name: str, training: str) -> None:
    """Trap 6: GPT-2's dropout is modules, Llama's a number that its attention reads."""
    policy, _ = begin(config(models[name], lora=TRAININGS[training]))
    with policy.policy() as model:
        training_mode = model.trunk(input_ids=IDS, use_cache=False).last_hidden_state
        assert model.trunk.trunk.training
        with torch.no_grad():
            eval_mode = model.trunk(input_ids=IDS, use_cache=False).last_hidden_state
        assert not model.trunk.trunk.training
    assert training_mode.requires_grad
    assert torch.equal(training_mode, eval_mode)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_with_its_dropout_train_is_not_eval(models: dict[str, Path], name: str) -> None:
    """The negative control of the test above."""
    trunk = load_body(str(models[name])).causal_lm.trunk
    with torch.no_grad():
        found = [
            trunk.train(mode)(input_ids=IDS, use_cache=False).last_hidden_state for mode in (True, False)
        ]
    assert not torch.allclose(*found)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("training", TRAININGS)
def test_checkpointed_activations_are_made_twice_and_change_no_gradient(
    models: dict[str, Path], name: str, training: str
) -> None:
    layer = {"gpt2": "h", "llama": "layers"}[name]
    gradients, calls = [], []
    for engaged in (False, True):
        options = config(models[name], lora=TRAININGS[training], gradient_checkpointing=engaged)
        policy, _ = begin(options)
        if training == "lora":  # B = 0 would hide the gradient of A
            torch.manual_seed(1)
            for parameter in policy.trainable_parameters().values():
                parameter.data.normal_(std=0.1)
        with policy.policy() as model:
            seen: list[int] = []
            found = [
                m
                for n, m in model.trunk.named_modules()
                if n.endswith(f"{layer}.1.self_attn") or n.endswith(f"{layer}.1.attn")
            ]
            found[0].register_forward_hook(lambda *_, seen=seen: seen.append(1))
            model.logits(
                model.trunk(input_ids=IDS, use_cache=False).last_hidden_state
            ).square().mean().backward()
        calls.append(len(seen))
        gradients.append({n: p.grad for n, p in policy.trainable_parameters().items()})
    assert calls == [1, 2]
    for parameter_name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        assert torch.equal(gradient, gradients[1][parameter_name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("training", TRAININGS)
def test_a_run_with_checkpointed_activations_is_the_same_run(
    models: dict[str, Path], training: str, dtype: str
) -> None:
    """Sampling needs the cache, which transformers would drop if it checkpointed there."""
    runs = []
    for engaged in (False, True):
        model = {"lora": TRAININGS[training], "dtype": dtype, "gradient_checkpointing": engaged}
        options = config(models["gpt2"], **model)
        runs.append(list(steps(*begin(options), options)))
    assert json.dumps(runs[0]) == json.dumps(runs[1])


def test_a_model_that_cannot_checkpoint_is_refused(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(ModelLoadError, match="cannot checkpoint its activations"):
        begin(config(models["llama"], gradient_checkpointing=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("training", TRAININGS)
def test_the_audit_passes_a_fresh_policy(models: dict[str, Path], training: str, dtype: str) -> None:
    """Company and generation have a bound of their own in bfloat16; SmolLM2-135M needs it, tiny models do not."""
    policy, state = begin(options := config(models["llama"], lora=TRAININGS[training], dtype=dtype))
    checks = audit(policy, state.value_head, options, PROMPTS, is_reference=True)
    require_passed(checks)
    found = {check.name: check.value for check in checks}
    assert found["dropout"] == found["log_ratio"] == found["kl_reference"] == found["kl_initial"] == 0.0
    bounds = {check.bound for check in checks if check.name in ("company", "generation")}
    assert bounds == {2e-4 if dtype == "float32" else 0.25}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("training", TRAININGS)
def test_bfloat16_is_of_the_products_alone(models: dict[str, Path], name: str, training: str) -> None:
    """Weights, moments and logits are float32; the hidden states are off by bfloat16's rounding, 2⁻⁸ a product."""
    policy, state = begin(options := config(models[name], lora=TRAININGS[training], dtype="bfloat16"))
    products: set[torch.dtype] = set()
    with policy.policy() as model:
        for layer in model.trunk.modules():
            if type(layer).__name__ in ("OneDNNLinear", "Linear", "Conv1D"):
                layer.register_forward_hook(lambda _module, _input, output: products.add(output.dtype))
        of_policy(policy)
    assert products == {torch.bfloat16}
    exact = logits(load_body(str(models[name])).causal_lm)
    half = of_policy(policy)
    assert half.dtype == torch.float32
    assert torch.equal(half, of_reference(policy))
    error = (half - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.03
    first, second = steps(policy, state, options)
    assert first["kl/sequence"] == 0.0 < second["kl/sequence"]
    assert {p.dtype for p in policy.trainable_parameters().values()} == {torch.float32}
    assert all(m.dtype == torch.float32 for s in state.optimizer.state.values() for m in s.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("training", TRAININGS)
def test_t21_the_first_ratio_is_one(models: dict[str, Path], training: str, dtype: str) -> None:
    """Old log-probabilities come from eval(), new ones from train(). One epoch of one minibatch: all are first."""
    base = config(models["gpt2"], steps=3, lora=TRAININGS[training], dtype=dtype)
    options = base.model_copy(update={"optimization": base.optimization.model_copy(update={"epochs": 1})})
    lines = list(steps(*begin(options), options))
    assert [line["policy/ratio_max"] for line in lines] == [1.0, 1.0, 1.0]
    assert [line["policy/approx_kl"] for line in lines] == [0.0, 0.0, 0.0]
    assert lines[-1]["kl/sequence"] > 0
