"""oneDNN's products against float64, beside torch's own."""

import copy
import gc
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config
from transformers.pytorch_utils import Conv1D

from rlhf_core.models import load_body
from rlhf_core.products import (
    LEAST_ROWS,
    OneDNNConv1D,
    OneDNNLinear,
    accelerate,
    arrange_for_forward,
    available,
)

pytestmark = pytest.mark.skipif(not available(), reason="no oneDNN for this CPU")


@pytest.mark.parametrize("shape", [(LEAST_ROWS, 5), (2, 17, 64), (1, 300, 33)])
@pytest.mark.parametrize("layer", ["linear", "linear without bias", "conv1d"])
@pytest.mark.parametrize("strided", [True, False])
def test_values_and_gradients_are_as_exact_as_torchs_own(shape, layer, strided):
    torch.manual_seed(0)
    if layer == "conv1d":
        plain = Conv1D(130, shape[-1])
        plain.bias.data.normal_()
    else:
        plain = torch.nn.Linear(shape[-1], 130, bias=layer == "linear")
    fast = copy.deepcopy(plain)
    accelerate(fast)
    assert type(fast) is (OneDNNConv1D if layer == "conv1d" else OneDNNLinear)
    x = torch.randn(*shape[:-1], shape[-1] * 2)[..., ::2] if strided else torch.randn(shape)
    of = torch.randn(*shape[:-1], 130)

    def run(layer, x, of):
        x = x.detach().requires_grad_()
        y = layer(x)
        (y * of).sum().backward()
        gradients = [p.grad for p in layer.parameters()]
        with torch.no_grad():
            assert torch.equal(layer(x), y)  # the same bits with and without a graph
        return [y.detach(), x.grad, *gradients]

    truth = run(copy.deepcopy(plain).double(), x.double(), of.double())
    for ours, theirs, exact in zip(run(fast, x, of), run(plain, x, of), truth, strict=True):
        error, usual = ((value.double() - exact).abs().max() for value in (ours, theirs))
        assert error <= 4 * usual + 1e-6


@pytest.mark.parametrize("kind", [torch.nn.Linear, Conv1D])
def test_only_what_asks_for_a_gradient_gets_one(kind):
    layer = kind(8, 8)
    accelerate(layer)
    layer.weight.requires_grad_(False)
    x = torch.randn(5, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    assert not layer(x.detach().double().float()).detach().isnan().any()


@pytest.mark.parametrize("kind", [torch.nn.Linear, Conv1D])
def test_other_dtypes_and_few_rows_are_torchs_own(kind):
    torch.manual_seed(0)
    plain = kind(8, 8)
    fast = copy.deepcopy(plain)
    accelerate(fast)
    few = torch.randn(LEAST_ROWS - 1, 8)
    assert torch.equal(fast(few), plain(few))
    x = torch.randn(64, 8)
    assert torch.equal(fast.double()(x.double()), plain.double()(x.double()))


def test_a_loaded_model_is_accelerated_and_says_the_same(tiny_model):
    body = load_body(str(tiny_model))
    layers = [m for m in body.model.modules() if isinstance(m, torch.nn.Linear)]
    assert layers
    assert all(type(m) is OneDNNLinear for m in layers)
    ids = torch.arange(24).reshape(2, 12)
    with torch.inference_mode():
        ours = body.model(input_ids=ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(tiny_model)(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert set(body.model.state_dict()) == set(AutoModelForCausalLM.from_pretrained(tiny_model).state_dict())


def test_gpt2_is_accelerated_and_says_the_same():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    plain = AutoModelForCausalLM.from_config(config).eval()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    layers = [type(m) for m in fast.modules() if isinstance(m, Conv1D)]
    assert layers == [OneDNNConv1D] * 8  # attention in and out, and two of the perceptron, in each block
    ids = torch.arange(24).reshape(2, 12)
    results = []
    for model in (fast, plain):
        logits = model(input_ids=ids).logits
        logits.square().mean().backward()
        results.append((logits.detach(), model.transformer.h[0].attn.c_attn.weight.grad))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_weights_arranged_for_the_forward_pass_say_the_same(tiny_model):
    plain, arranged = load_body(str(tiny_model)).model, load_body(str(tiny_model)).model
    arrange_for_forward(arranged)
    for name, weight in arranged.named_parameters():
        assert torch.equal(weight, plain.get_parameter(name))
        layer = arranged.get_submodule(name.rpartition(".")[0])
        in_trunk = type(layer) is OneDNNLinear and layer is not arranged.get_output_embeddings()
        assert weight.t().is_contiguous() if in_trunk else weight.is_contiguous()
    results = []
    for model in (arranged, plain):
        x = model.get_input_embeddings()(torch.arange(24).reshape(2, 12)).detach().requires_grad_()
        logits = model(inputs_embeds=x).logits
        logits.square().mean().backward()
        results.append((logits.detach(), x.grad))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    tied = AutoModelForCausalLM.from_pretrained(tiny_model).config.tie_word_embeddings
    shared = arranged.get_input_embeddings().weight is arranged.get_output_embeddings().weight
    assert shared == tied


def test_nothing_is_left_of_the_file_of_arranged_weights(tiny_model):
    body = load_body(str(tiny_model))
    arrange_for_forward(body.model)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    gc.collect()
    assert str(tiny_model) not in maps.read_text()
