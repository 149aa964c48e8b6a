"""The value function's own adapter: its loss moves it and the head alone, the policy's loss neither of them."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_core.audit import audit, require_passed
from rlhf_core.checkpoint import write_checkpoint
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.experience import Experience, assess, response_hidden, sample, value_hidden, value_parameters
from rlhf_core.models import load_body
from rlhf_core.order import generator
from rlhf_core.policies import LoraPolicyWithValue
from rlhf_core.targets import Targets
from rlhf_core.update import TrainState, add_gradient
from tests.rlhf_core import tiny_policies
from tests.rlhf_core.tiny_policies import PROMPTS, begin, logits, of_policy, of_reference, steps

pytestmark = pytest.mark.usefixtures("no_shape_checks")
ADAPTERS: dict[str, Any] = {"lora": {"rank": 2}, "value_adapter": {"rank": 2}}
ROWS = torch.arange(len(PROMPTS))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_policies.build(tmp_path_factory.mktemp("models"))


def config(folder: Path, **changes: Any) -> PPOConfig:
    optimization = changes.pop("optimization", {})
    options = tiny_policies.config(folder, **{**ADAPTERS, **changes}).model_dump()
    return PPOConfig.model_validate(options | {"optimization": options["optimization"] | optimization})


def copied(parameters: dict[str, Any]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def moved(now: dict[str, Any], then: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in then.items() if not torch.equal(now[name], tensor)]


def first_gradient(
    policy: Any, state: TrainState, options: PPOConfig, *, advantage: float, off: float
) -> None:
    """The gradient of one batch; each return is its value and `off`."""
    torch.nn.init.ones_(state.value_head.weight)  # as zeros it would pass no gradient on to its trunk
    rollout = sample(
        policy, PROMPTS, options.rollout, generator("test", step=1, seed=0, device=torch.device("cpu"))
    )
    seen: Experience = assess(policy, state.value_head, rollout, [ROWS], 1.0)
    mask = rollout.response_mask
    targets = Targets(advantage * mask, seen.value + off * mask, torch.zeros_like(seen.value), 1.0, 0.1)
    add_gradient(policy, state, seen, targets, ROWS, options, token_count=int(mask.sum()))


def pushed(parameters: dict[str, Any]) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in parameters.values())


@pytest.mark.parametrize("extra", [{}, {"dtype": "bfloat16", "gradient_checkpointing": True}])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_each_loss_has_a_gradient_for_its_own_weights_alone(
    models: dict[str, Path], name: str, extra: dict[str, Any]
) -> None:
    """A = 0 and no KL loss: the policy's loss is 0, and so is its gradient. Return = value: the value's is."""
    options = config(models[name], **extra)
    policy, state = begin(options)
    first_gradient(policy, state, options, advantage=0.0, off=1.0)
    assert pushed(value_parameters(policy))
    assert not pushed(policy.trainable_parameters())

    policy, state = begin(options)
    first_gradient(policy, state, options, advantage=1.0, off=0.0)
    assert pushed(policy.trainable_parameters())
    assert not pushed(value_parameters(policy) | dict(state.value_head.named_parameters()))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_activations_made_again_are_the_value_trunks(models: dict[str, Path], name: str) -> None:
    """Recomputed under the policy's adapter, whose weights are others, the gradients would be others."""
    found = []
    for again in (False, True):
        options = config(models[name], gradient_checkpointing=again)
        policy, state = begin(options)
        random = torch.Generator().manual_seed(0)
        for parameter in (policy.trainable_parameters() | value_parameters(policy)).values():
            torch.nn.init.normal_(parameter, std=0.1, generator=random)
        first_gradient(policy, state, options, advantage=1.0, off=1.0)
        both = policy.trainable_parameters() | value_parameters(policy)
        found.append({n: p.grad.clone() for n, p in both.items() if p.grad is not None})
    once, twice = found
    assert once.keys() == twice.keys() == both.keys()
    assert not moved(twice, once)


def test_the_warmup_trains_the_value_function_and_keeps_the_policy(models: dict[str, Path]) -> None:
    options = config(models["llama"], steps=3, optimization={"value_only_steps": 2})
    policy, state = begin(options)
    weights, value = copied(policy.trainable_parameters()), copied(value_parameters(policy))
    assert len(list(islice(steps(policy, state, options), 2))) == 2
    assert not moved(policy.trainable_parameters(), weights)
    assert moved(value_parameters(policy), value)


def test_training_leaves_the_reference_to_the_bit_and_saves_the_policy_alone(
    models: dict[str, Path], tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM

    options = config(models["llama"])
    policy, state = begin(options)
    base = logits(load_body(str(models["llama"])).causal_lm)
    assert torch.equal(of_policy(policy), base)
    require_passed(audit(policy, state.value_head, options, PROMPTS, is_reference=True))
    weights, value = copied(policy.trainable_parameters()), copied(value_parameters(policy))
    list(steps(policy, state, options))
    assert torch.equal(of_reference(policy), base)
    assert moved(policy.trainable_parameters(), weights)
    assert moved(value_parameters(policy), value)
    write_checkpoint(tmp_path, policy, state)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path)
    assert list(loaded.peft_config) == ["default"]
    with torch.no_grad():
        found = loaded(input_ids=tiny_policies.IDS).logits
    torch.testing.assert_close(found, of_policy(policy), rtol=1e-4, atol=1e-5)


def test_a_switch_that_a_signal_broke_off_is_mended(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, _ = begin(config(models["llama"]))
    assert isinstance(policy, LoraPolicyWithValue)
    with torch.no_grad():
        for parameter in value_parameters(policy).values():
            parameter.add_(0.1)
    before, layers = of_policy(policy), type(policy._peft.base_model)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), policy.value_trunk():
        patch.setattr(layers, "set_adapter", _interrupted)
    assert torch.equal(of_policy(policy), before)


def _interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_the_adapter_learns_what_fixed_features_cannot_say(models: dict[str, Path]) -> None:
    """More tokens than the 32 features and the bias: a head alone is left with its least squares' residual."""
    options = config(models["llama"])
    policy, _ = begin(options)
    wide = options.rollout.model_copy(update={"max_new_tokens": 40})
    rollout = sample(policy, PROMPTS, wide, generator("test", step=1, seed=0, device=torch.device("cpu")))
    with torch.no_grad(), policy.policy() as model:
        frozen = response_hidden(model, rollout)
    assert len(frozen) > 40
    target = torch.randn(len(frozen), generator=torch.Generator().manual_seed(0))
    features = torch.cat([frozen, torch.ones(len(frozen), 1)], 1)
    best = (features @ torch.linalg.lstsq(features, target[:, None]).solution).squeeze(1) - target
    head = torch.nn.Linear(policy.hidden_size, 1)
    optimizer = torch.optim.Adam([*head.parameters(), *value_parameters(policy).values()], lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (head(value_hidden(policy, rollout, frozen)).squeeze(1) - target).square().mean()
        with policy.value_trunk():  # type: ignore[attr-defined]
            loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * best.square().mean().item()
