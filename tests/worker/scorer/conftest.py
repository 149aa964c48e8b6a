"""Tiny models that several tests share, and a batcher whose thread is the test's."""

import pytest
import torch

from rlhf_core.models import WeightSource
from tests import tiny_models
from tests.worker.scorer.bench import CountingLoader
from worker.scorer.batcher import Batcher
from worker.scorer.pairs import PairCache


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_models.build(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def pair_key(tiny):
    return WeightSource(str(tiny.adapter), str(tiny.base)), WeightSource(str(tiny.base))


@pytest.fixture
def loader():
    return CountingLoader()


@pytest.fixture
def pairs(loader):
    return PairCache(loader, memory_bytes=2**30)


@pytest.fixture
def batcher(pairs):
    return Batcher(pairs, max_batch_tokens=256, max_queued_tokens=1000)
