"""The gradient of a minibatch on a real model, against autograd of the definition over all logits at once."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_core import causal_lm
from rlhf_core.causal_lm import CausalLM
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.experience import Experience, assess
from rlhf_core.rollout import generate
from rlhf_core.targets import Targets, make_targets
from rlhf_core.update import TrainState, add_gradient, fresh_state, in_micro_batches
from tests.rlhf_core.kl_settings import KL_SETTINGS

VOCAB, BATCH, TEMPERATURE, BETA = 40, 6, 0.8, 0.3
PROMPTS = [[7, 8, 9], [11], [12, 13], [14, 15, 16, 17], [18, 19], [20]]


class Policy:
    """A tiny GPT-2 whose every weight is trained, the tied head's too, and another one as the reference."""

    def __init__(self, dtype: torch.dtype) -> None:
        size = {
            "vocab_size": VOCAB,
            "n_positions": 32,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        torch.manual_seed(0)
        self.model = GPT2LMHeadModel(GPT2Config(**size, initializer_range=0.3)).eval().to(dtype)
        self.reference_model = copy.deepcopy(self.model).requires_grad_(False)
        shake(self.model, 0.05)
        self._policy, self._reference = (causal_lm.split(m) for m in (self.model, self.reference_model))
        self.hidden_size = 16
        self.codec: Any = None

    @contextmanager
    def policy(self) -> Iterator[CausalLM]:
        yield self._policy

    @contextmanager
    def reference(self) -> Iterator[CausalLM]:
        yield self._reference

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())


def shake(module: nn.Module, scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += scale * noise.to(parameter.dtype)


def config(**kl: str) -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "model": {"name": "tiny"},
            "data": {"prompts": ["."]},
            "reward": {"kind": "sentiment"},
            "rollout": {"batch_size": BATCH, "max_new_tokens": 8, "temperature": TEMPERATURE},
            "kl": {"beta": BETA, **kl},
            "loss": {"dual_clip": 1.25, "entropy_coefficient": 0.05},
            "optimization": {"steps": 1, "minibatches": 1},
        }
    )


def problem(dtype: torch.dtype, options: PPOConfig) -> tuple[Policy, TrainState, Experience, Targets]:
    """A rollout, and a policy and value head that have moved on since."""
    policy = Policy(dtype)
    state = fresh_state(policy, options)
    shake(state.value_head, 0.3)
    rollout = generate(
        policy._policy,
        PROMPTS,
        max_new_tokens=8,
        temperature=TEMPERATURE,
        eos_ids=set(range(0, VOCAB, 4)),
        pad_id=0,
        generator=torch.Generator().manual_seed(2),
    )
    rows = [torch.tensor([4, 0, 5]), torch.tensor([1, 3, 2])]
    exact = options.kl.penalty == "exact"
    experience = assess(policy, state.value_head, rollout, rows, TEMPERATURE, keep_reference=exact)
    scores = torch.linspace(-1, 1, BATCH, dtype=torch.float64)
    targets = make_targets(experience, scores, BETA, options)
    shake(policy.model, 0.03)
    shake(state.value_head, 0.1)
    return policy, state, experience, targets


def gradient(policy: Policy, state: TrainState) -> tuple[Tensor, Tensor]:
    """Of the policy's weights and of the value head's, flat."""
    of = (policy.trainable_parameters().values(), state.value_head.parameters())
    return tuple(torch.cat([p.grad.flatten() for p in parameters]) for parameters in of)  # type: ignore[return-value]


def by_definition(
    policy: Policy, state: TrainState, experience: Experience, targets: Targets, options: PPOConfig
) -> tuple[Tensor, Tensor]:
    """In float64, one unpadded text at a time, with all logits of all tokens kept for autograd."""
    model, reference, head = (
        copy.deepcopy(m).double() for m in (policy.model, policy.reference_model, state.value_head)
    )
    mask = experience.rollout.response_mask
    total, bounded = torch.zeros((), dtype=torch.float64), 0
    for row, prompt in enumerate(PROMPTS):
        real = mask[row]
        answer = experience.rollout.response_ids[row][real]
        ids = torch.cat([torch.tensor(prompt), answer])[None]
        at = slice(len(prompt) - 1, -1)
        output = model(ids, output_hidden_states=True)
        p = (output.logits[0, at] / TEMPERATURE).log_softmax(-1)
        q = (reference(ids).logits[0, at] / TEMPERATURE).log_softmax(-1)
        logp, ref_logp = (x[torch.arange(len(answer)), answer] for x in (p, q))
        old, old_value, advantage, returns = (
            x[row][real].double()
            for x in (experience.logprob, experience.value, targets.advantage, targets.returns)
        )
        ratio, d = (logp - old).exp(), logp - ref_logp
        # The clipped surrogate; at A < 0 at most 1.25 |A|.
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        surrogate = torch.where(advantage < 0, torch.maximum(surrogate, 1.25 * advantage), surrogate)
        bounded += int(((advantage < 0) & (ratio > 1.25)).sum())
        value = head(output.hidden_states[-1][0, at].detach())[:, 0]
        near = old_value + (value - old_value).clamp(-0.2, 0.2)
        on_value = 0.5 * torch.maximum((value - returns) ** 2, (near - returns) ** 2)
        kl = {
            "k2": ratio.detach() * d**2 / 2,
            "k3": ratio * ((-d).exp() - 1 + d),
            "ratio_k1": ratio * d,
            "none": (p.exp() * (p - q)).sum(-1) * (options.kl.penalty == "exact"),
        }[options.kl.loss]
        entropy = -(p.exp() * p).sum(-1)
        total = total + (-surrogate + on_value + targets.beta_in_loss * kl - 0.05 * entropy).sum()
    assert bounded > 0  # the dual clip is at work
    (total / int(mask.sum())).backward()
    flat = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (model, head))
    return tuple(flat)  # type: ignore[return-value]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("kl", KL_SETTINGS, ids=str)
def test_the_gradient_of_all_terms_is_that_of_the_definition(
    kl: dict[str, str], dtype: torch.dtype, bound: float
) -> None:
    options = config(**kl)
    policy, state, experience, targets = problem(dtype, options)
    mask = experience.rollout.response_mask
    assert len(set(mask.sum(dim=1).tolist())) > 2  # uneven lengths
    reports = [
        add_gradient(policy, state, experience, targets, rows, options, token_count=int(mask.sum()))
        for rows in in_micro_batches([torch.tensor([2, 0, 5, 1, 4, 3])], 4)
    ]
    for name in ("policy/clip_fraction", "value/clip_fraction"):
        assert sum(report[name] for report in reports) > 0
    assert ("loss/kl" in reports[0]) == (kl["penalty"] in ("exact", "none"))
    for ours, theirs in zip(
        gradient(policy, state), by_definition(policy, state, experience, targets, options), strict=True
    ):
        assert theirs.norm() > 1e-2
        assert float((ours.double() - theirs).norm() / theirs.norm()) <= bound


def test_the_value_loss_moves_no_weight_of_the_policy() -> None:
    """Whatever the returns are, the policy's gradient is the same to the bit; the value head's is not."""
    options = config(penalty="exact")
    found = []
    for shift in (0.0, 100.0):
        policy, state, experience, targets = problem(torch.float64, options)
        targets = targets._replace(returns=targets.returns + shift)
        add_gradient(policy, state, experience, targets, torch.arange(BATCH), options, token_count=30)
        found.append(gradient(policy, state))
    (weights, head), (same, other) = found
    assert torch.equal(weights, same)
    assert not torch.allclose(head, other)


def test_only_an_exact_loss_keeps_the_references_hidden_states() -> None:
    """Real tokens only, each where its row and column say, in whatever order minibatches came."""
    for kl in KL_SETTINGS:
        policy, _, experience, _ = problem(torch.float64, config(**kl))
        kept = experience.reference_hidden
        if kl["penalty"] != "exact":
            assert kept is None
            continue
        mask = experience.rollout.response_mask
        assert kept is not None
        assert kept.shape == (int(mask.sum()), 16)
        reference = policy._reference.logits(kept) / TEMPERATURE
        logp = reference.log_softmax(-1).gather(1, experience.rollout.response_ids[mask][:, None])[:, 0]
        torch.testing.assert_close(logp, (experience.logprob - experience.k1)[mask], rtol=0, atol=1e-12)
