"""The pairs of models in memory: a small LRU, so that a scorer's memory is bounded."""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from rlhf_core.batches import Capacity
from rlhf_core.models import ModelPair, WeightSource
from rlhf_core.scoring import capacity

PairKey = tuple[WeightSource, WeightSource]  # policy, reference


class LoadedPair(NamedTuple):
    """A pair in memory, and what it can take."""

    models: ModelPair
    capacity: Capacity


class PairCache:
    """At most `keep` pairs, the least recently used given up before another is loaded. For one thread."""

    def __init__(self, load: Callable[[WeightSource, WeightSource], ModelPair], *, keep: int = 2) -> None:
        self._load, self._keep = load, keep
        self._pairs: OrderedDict[PairKey, LoadedPair] = OrderedDict()

    def get(self, key: PairKey) -> LoadedPair:
        """The pair, loaded if need be. Raises ModelLoadError, TokenizerMismatch."""
        if key not in self._pairs:
            while len(self._pairs) >= self._keep:
                self._pairs.popitem(last=False)
            models = self._load(*key)
            self._pairs[key] = LoadedPair(models, capacity(models))
        self._pairs.move_to_end(key)
        return self._pairs[key]
