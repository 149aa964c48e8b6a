"""Tiny models that several tests share, and a batcher whose thread is the test's."""

import pytest
import torch

from jobs.scoring_wire import ModelSource, ScoreRequest, decode_reply, encode_reply
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


@pytest.fixture
def score(tiny, pairs):
    """What a request's items come back as, through both wire formats."""
    batcher = Batcher(pairs, max_batch_tokens=256, max_queued_tokens=100_000)

    def call(*items, policy=None, reference=None, **rest):
        policy, base = policy or WeightSource(str(tiny.adapter), str(tiny.base)), str(reference or tiny.base)
        request = ScoreRequest(
            policy=ModelSource(path=policy.path, base=policy.base),
            reference=ModelSource(path=base),
            items=list(items),
            **rest,
        )
        wire = ScoreRequest.model_validate_json(request.model_dump_json())
        future = batcher.submit(wire, (policy, WeightSource(base)))
        while not future.done():
            batcher.step()
        return decode_reply(encode_reply(future.result(0))).items

    return call
