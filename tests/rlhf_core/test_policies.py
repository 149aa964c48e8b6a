"""Training an adapter or all weights of real tiny models, and what a policy's options may and may not change."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf_core.audit import audit, require_passed
from rlhf_core.checkpoint import write_checkpoint
from rlhf_core.config.ppo import ModelConfig, PPOConfig
from rlhf_core.errors import ModelLoadError
from rlhf_core.models import WeightSource, load_body, load_pair
from rlhf_core.policies import FullPolicy, Policy, load_policy, new_policy
from rlhf_core.ppo import train
from rlhf_core.rewards import make_reward
from rlhf_core.update import TrainState, fresh_state
from tests.tiny_models import byte_level_tokenizer

PROMPTS = ("the cat", "the dog sat on", "human feedback", "café")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
TRAININGS: dict[str, Any] = {"lora": {"rank": 2}, "full": None}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """GPT-2: layers that hold their weights transposed (Conv1D), dropout modules, a tied head.

    Llama: dropout as a number that the attention reads, a head of its own.
    """
    root, tokenizer = tmp_path_factory.mktemp("policies"), byte_level_tokenizer(vocab_size=400)
    sizes = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 0, "initializer_range": 0.3}
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(**sizes, n_embd=32, n_layer=2, n_head=4, n_positions=96, resid_pdrop=0.1, attn_pdrop=0.1)
    )
    llama = LlamaForCausalLM(
        LlamaConfig(
            **sizes,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=96,
            attention_dropout=0.1,
            attn_implementation="eager",
        )
    )
    for name, model in {"gpt2": gpt2, "llama": llama}.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in ("gpt2", "llama")}


def config(folder: Path, *, steps: int = 2, **model: Any) -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "model": {"name": str(folder), **model},
            "data": {"prompts": PROMPTS},
            "reward": {"kind": "length", "target_tokens": 4},
            "rollout": {"batch_size": 4, "max_new_tokens": 6},
            "kl": {"beta": 0.1, "controller": {"kind": "fixed"}},
            "optimization": {"steps": steps, "learning_rate": 0.01, "minibatches": 1},
        }
    )


def begin(options: PPOConfig) -> tuple[Policy, TrainState]:
    policy = new_policy(options.model.name, options.model, seed=0)
    return policy, fresh_state(policy, options)


def steps(policy: Policy, state: TrainState, options: PPOConfig) -> Iterator[dict[str, float]]:
    reward = make_reward(options.reward)
    for step in train(policy, state, options, prompts=PROMPTS, eval_prompts=[], reward=reward):
        yield step.metrics


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.logits(model.trunk(input_ids=IDS, use_cache=False).last_hidden_state)


def of_policy(policy: Policy) -> Tensor:
    with policy.policy() as model:
        return logits(model)


def of_reference(policy: Policy) -> Tensor:
    with policy.reference() as model:
        return logits(model)


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
