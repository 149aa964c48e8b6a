"""When memory is not enough: the real thing in a process with a limit, and the cuts one by one."""

import gc
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.tokenization import TokenizedText
from tests.worker.scorer.bench import PATIENCE_S
from worker.scorer.memory import device_is_lost, is_out_of_memory, score_in_halves


def text(length):
    ids = np.zeros(length, dtype=np.int32)
    return TokenizedText(ids, ids, ids, 1)


@pytest.fixture(scope="module")
def little_garbage():
    """Each cut collects garbage: what is there before the test need not be looked at."""
    gc.freeze()
    yield
    gc.unfreeze()


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=8), room=st.integers(1, 200))
def test_what_fits_is_scored_and_only_what_does_not_fit_alone_is_not(little_garbage, lengths, room):
    """A stand-in for a model that holds `room` tokens; its score is the text's length."""
    failures = []

    def score(texts):
        if sum(len(t.ids) for t in texts) > room:
            torch.empty(2**50)  # torch's own error
        return [len(t.ids) for t in texts]

    scores = score_in_halves(
        score, [text(length) for length in lengths], on_failure=lambda: failures.append(1)
    )
    assert scores == [length if length <= room else None for length in lengths]
    # Every cut leaves two parts that are not empty, so there are at most as many as texts, less one.
    assert len(failures) <= 2 * len(lengths) - 1


def test_the_parts_have_about_half_of_the_tokens_each():
    seen = []

    def score(texts):
        seen.append([len(t.ids) for t in texts])
        if len(texts) > 2:
            raise MemoryError
        return texts

    score_in_halves(score, [text(n) for n in (40, 10, 10, 10, 10)], on_failure=lambda: None)
    assert seen == [[40, 10, 10, 10, 10], [40], [10, 10, 10, 10], [10, 10], [10, 10]]


def test_other_errors_are_not_tried_again():
    def score(texts):
        raise RuntimeError("the size of tensor a must match the size of tensor b")

    with pytest.raises(RuntimeError, match="must match"):
        score_in_halves(score, [text(3)] * 4, on_failure=lambda: pytest.fail("not a matter of memory"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("expected scalar type Float but found Half"), False),
    ],
)
def test_out_of_memory_is_known_by_its_errors(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_gpu_is_lost_when_it_answers_no_more(monkeypatch):
    """A CUDA error that its context does not survive is raised again by every call."""

    def broken():
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not device_is_lost()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_is_lost()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert not device_is_lost()


CHILD = """
import json, resource, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from jobs.scoring_wire import ItemError, ModelSource, ScoreItem, ScoreRequest
from rlhf_core.models import Body, ModelPair, WeightSource
from tests import tiny_models
from worker.scorer.batcher import Batcher
from worker.scorer.pairs import PairCache

torch.set_num_threads(1)
tokenizer = tiny_models.byte_level_tokenizer(vocab_size=300)

def wide(*_, **__):
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32768, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=4096)
    body = Body(LlamaForCausalLM(config).eval().requires_grad_(False))
    return ModelPair((body, None), (body, None), tokenizer)

key = (WeightSource("wide"), WeightSource("wide"))
batcher = Batcher(PairCache(wide, memory_bytes=2**30), max_batch_tokens=4096, max_queued_tokens=100_000)

def score(*lengths):
    items = [ScoreItem(text="x" * length) for length in lengths]
    source = ModelSource(path="wide")
    future = batcher.submit(ScoreRequest(policy=source, reference=source, items=items), key)
    while batcher.stats().waiting_requests:
        batcher.step()
    return [item.code if isinstance(item, ItemError) else len(item.token_ids) for item in future.result(0).items]

score(8)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
answers = score(*json.loads(sys.argv[2]))
print(json.dumps({"answers": answers, "out_of_memory": batcher.stats().out_of_memory, "after": score(8)}))
"""


def test_a_real_allocation_failure_costs_the_item_that_is_too_large_and_no_other():
    """One activation of the wide layer takes 32768 · 4 bytes = 128 KiB a token, and about three live at once.

    In 256 MiB fit some 680 tokens: each of the six texts, and never the one of 3,000.
    """
    lengths = [250, 251, 252, 253, 254, 255, 3000]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, "256", json.dumps(lengths)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    told = json.loads(child.stdout.splitlines()[-1])
    assert told["answers"] == [*lengths[:-1], "out_of_memory"]
    assert told["out_of_memory"] >= 1
    assert told["after"] == [8]
