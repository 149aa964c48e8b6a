"""Pairs in memory: a budget of bytes, one copy of a shared base, the least recently used given up."""

import shutil

import numpy as np
import pytest
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from rlhf_core.errors import ModelLoadError
from rlhf_core.models import WeightSource, load_body, load_pair
from rlhf_core.scoring import score_texts
from rlhf_core.tokenization import tokenize
from worker.scorer.pairs import PairCache, stored_bytes, weights_bytes


@pytest.fixture
def copies(tiny, tmp_path):
    """The same base in three folders, and the adapter in three."""
    folders = {}
    for n in range(3):
        folders[f"base {n}"] = shutil.copytree(tiny.base, tmp_path / f"base{n}")
        folders[f"adapter {n}"] = shutil.copytree(tiny.adapter, tmp_path / f"adapter{n}")
    return {name: str(folder) for name, folder in folders.items()}


def plain(path):
    return (WeightSource(path), WeightSource(path))


def kl(pair, text="the cat sat on the mat"):
    tokens = tokenize(pair.models.tokenizer, text, context=pair.capacity.context)
    return score_texts(pair.models, [tokens])[0].quantities["kl"]


def test_sizes_are_known_before_and_after_loading(tiny):
    body = load_body(str(tiny.base))
    # 377 tokens of 32, in and out, 2 layers of 4·32² + 3·32·64 + 2·32, a last norm of 32; and the rotary buffers
    weights = 4 * (2 * 377 * 32 + 2 * (4 * 32**2 + 3 * 32 * 64 + 2 * 32) + 32)
    assert stored_bytes(str(tiny.base)) == weights
    assert weights <= weights_bytes(body) <= weights + 100
    assert stored_bytes("org/name") == 0


def test_the_least_recently_used_is_given_up_for_what_does_not_fit(copies, loader):
    one, two, three = (plain(copies[f"base {n}"]) for n in range(3))
    size = stored_bytes(one[0].path) + 100
    cache = PairCache(loader, memory_bytes=2 * size)
    for key in (one, two, one, three, one, two):
        cache.get(key)
        assert cache.weights_bytes <= 2 * size
    assert loader.loaded == [one, two, three, two]


def test_a_pair_over_the_whole_budget_is_kept_alone(copies, loader):
    cache = PairCache(loader, memory_bytes=1)
    for n in range(2):
        cache.get(plain(copies[f"base {n}"]))
        assert len(cache) == 1


def test_pairs_with_one_base_share_its_weights_and_score_as_if_alone(tiny, copies, loader):
    cache = PairCache(loader, memory_bytes=2**30)
    base = WeightSource(str(tiny.base))
    keys = [
        (WeightSource(copies["adapter 0"], base.path), base),
        (base, WeightSource(str(tiny.null_adapter), base.path)),
    ]
    pairs = [cache.get(key) for key in keys]
    adapters = 2 * stored_bytes(str(tiny.adapter))
    assert cache.weights_bytes <= stored_bytes(base.path) + adapters + 100
    for key, pair in zip(keys, pairs, strict=True):
        alone = load_pair(*key)
        np.testing.assert_array_equal(kl(pair), kl(pair._replace(models=alone)))


def test_an_adapter_goes_with_its_pair_and_may_come_back(tiny, copies, loader):
    base = WeightSource(str(tiny.base))
    keys = [(WeightSource(copies[f"adapter {n}"], base.path), base) for n in range(3)]
    room = stored_bytes(base.path) + 2 * stored_bytes(str(tiny.adapter)) + 100
    cache = PairCache(loader, memory_bytes=room)
    expected = kl(cache.get(keys[0]))
    for key in (*keys, *keys):
        np.testing.assert_array_equal(kl(cache.get(key)), expected)  # copies of one adapter
        assert cache.weights_bytes <= room
    assert len(cache) == 2


def test_the_base_alone_is_itself_again_when_its_only_adapter_has_gone(tiny, copies, loader):
    base = WeightSource(str(tiny.base))
    tuned, same = (WeightSource(copies["adapter 0"], base.path), base), (base, base)
    cache = PairCache(loader, memory_bytes=stored_bytes(base.path) + stored_bytes(tuned[0].path) + 100)
    before = kl(cache.get(tuned))
    assert not kl(cache.get(same))[1:].any()
    cache._give_up_oldest()  # the adapter
    assert same in cache
    assert not kl(cache.get(same))[1:].any()
    np.testing.assert_array_equal(kl(cache.get(tuned)), before)


def test_an_adapter_that_does_not_fit_leaves_nothing_on_a_shared_base(tiny, copies, loader, tmp_path):
    weights = load_file(tiny.adapter / "adapter_model.safetensors")
    broken = shutil.copytree(tiny.adapter, tmp_path / "broken")
    save_file({name: w.repeat(2, 2) for name, w in weights.items()}, broken / "adapter_model.safetensors")
    base = WeightSource(str(tiny.base))
    good = (WeightSource(str(tiny.adapter), base.path), base)
    cache = PairCache(loader, memory_bytes=2**30)
    expected = kl(cache.get(good))
    with pytest.raises(ModelLoadError):
        cache.get((WeightSource(str(broken), base.path), base))
    np.testing.assert_array_equal(kl(cache.get(good)), expected)
    assert not kl(cache.get((base, base)))[1:].any()


def test_an_adapter_of_the_prompt_leaves_nothing_on_a_resident_base(tiny, loader, tmp_path):
    """It adds no module to the model, and what PEFT keeps of it would run in the place of the next adapter."""
    learned = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(LlamaForCausalLM.from_pretrained(tiny.base), learned).save_pretrained(tmp_path / "prompt")
    base = WeightSource(str(tiny.base))
    good = (WeightSource(str(tiny.adapter), base.path), base)
    expected = kl(PairCache(loader, memory_bytes=2**30).get(good))
    cache = PairCache(loader, memory_bytes=2**30)
    cache.get((base, base))
    with pytest.raises(ModelLoadError, match="prompt-learning"):
        cache.get((WeightSource(str(tmp_path / "prompt"), base.path), base))
    np.testing.assert_array_equal(kl(cache.get(good)), expected)
    assert not kl(cache.get((base, base)))[1:].any()


def test_a_folder_that_is_not_there_costs_the_others_nothing(tiny, pair_key, loader):
    cache = PairCache(loader, memory_bytes=2**30)
    cache.get(pair_key)
    with pytest.raises(ModelLoadError):
        cache.get((WeightSource(str(tiny.root / "nothing"), pair_key[1].path), pair_key[1]))
    cache.get(pair_key)
    assert loader.loaded.count(pair_key) == 1
