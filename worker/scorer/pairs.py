"""The pairs of models in memory: as many as a budget of bytes holds, the least recently used given up first.

Pairs with a common base share one copy of its weights; their adapters are put on it and taken off again.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from safetensors import SafetensorError, safe_open

from jobs.residents import Resident
from jobs.scoring_wire import ModelSource
from rlhf_core.batches import Capacity
from rlhf_core.causal_lm import CausalLM
from rlhf_core.models import Body, ModelPair, WeightSource
from rlhf_core.scoring import capacity
from worker.scorer.identity import identity
from worker.scorer.memory import release

PairKey = tuple[WeightSource, WeightSource]  # policy, reference
BYTES_PER_WEIGHT = 4  # as loaded: float32


class Loader(Protocol):
    """As rlhf_core.models.load_pair: bases in `bodies` are not loaded again, and new ones are put there."""

    def __call__(
        self, policy: WeightSource, reference: WeightSource, *, bodies: MutableMapping[str, Body]
    ) -> ModelPair:
        """The pair."""
        ...


class LoadedPair(NamedTuple):
    """A pair in memory, and what it can take."""

    models: ModelPair
    capacity: Capacity


class PairCache:
    """Pairs, least recently used first, with at most `memory_bytes` of weights; one pair is always kept.

    For one thread, but any may ask what is in memory.
    """

    def __init__(self, load: Loader, *, memory_bytes: float = math.inf) -> None:
        self._load, self._memory_bytes = load, memory_bytes
        self._pairs: OrderedDict[PairKey, LoadedPair] = OrderedDict()
        self._bodies: dict[str, Body] = {}  # by base
        self.resident: dict[WeightSource, Resident] = {}  # replaced as a whole: any thread may read it

    def __contains__(self, key: PairKey) -> bool:
        return key in self._pairs

    def find(self, key: PairKey) -> LoadedPair | None:
        """The pair if it is in memory. Any thread may ask, and keeps what it gets."""
        return self._pairs.get(key)

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def weights_bytes(self) -> int:
        """Of all that is loaded: a base that several pairs share counts once."""
        return sum(weights_bytes(body) for body in self._bodies.values())

    def get(self, key: PairKey) -> LoadedPair:
        """The pair, loaded if need be, also one whose heads differ in size: who asks says whether that may be.

        Raises ModelLoadError, TokenizerMismatch.
        """
        if key not in self._pairs:
            while self._pairs and self.weights_bytes + self._bytes_to_load(key) > self._memory_bytes:
                self._give_up_oldest()
            with self._undone_on_failure(key):
                models = self._load(*key, bodies=self._bodies)
                self._pairs[key] = LoadedPair(models, capacity(models, "intersect"))
            while len(self._pairs) > 1 and self.weights_bytes > self._memory_bytes:
                self._give_up_oldest()  # a hub id's size is known only now
            self._describe()
        self._pairs.move_to_end(key)
        return self._pairs[key]

    def clear(self) -> list[PairKey]:
        """Give up all pairs and their memory; returns which they were, least recently used first."""
        keys = list(self._pairs)
        self._pairs.clear()
        self._bodies.clear()
        self._describe()
        release()
        return keys

    def drop(self, source: WeightSource) -> None:
        """Give up every pair with this model."""
        for key in [key for key in self._pairs if source in key]:
            self._give_up(key)
        self._describe()

    def _describe(self) -> None:
        """Say what is in memory now."""
        now: dict[WeightSource, Resident] = {}
        for (policy, reference), (models, _) in self._pairs.items():
            for source, run in ((policy, models.policy), (reference, models.reference)):
                now[source] = self.resident.get(source) or _resident(source, models, run)
        self.resident = now

    def _bytes_to_load(self, key: PairKey) -> int:
        new = {path for source in key for path in source if path is not None and path not in self._bodies}
        return sum(map(stored_bytes, new))

    def _give_up_oldest(self) -> None:
        self._give_up(next(iter(self._pairs)))

    def _give_up(self, key: PairKey) -> None:
        """Forget a pair, the adapters that no other pair needs, and the bases on which none is left."""
        del self._pairs[key]
        in_use = {source for pair in self._pairs for source in pair}
        for source in set(key) - in_use:
            base = _base(source)
            if base not in map(_base, in_use):
                self._bodies.pop(base, None)
            elif source.base is not None:
                self._bodies[base].drop_adapter(source.path)
        release()

    @contextmanager
    def _undone_on_failure(self, key: PairKey) -> Iterator[None]:
        """A base on which an adapter was put by half would score wrongly: it goes, with the pairs that use it."""
        before = {base: _state(body) for base, body in self._bodies.items()}
        try:
            yield
        except BaseException:
            self._pairs.pop(key, None)
            touched = {base for base, body in self._bodies.items() if _state(body) != before.get(base)}
            for pair in [pair for pair in self._pairs if touched & set(map(_base, pair))]:
                del self._pairs[pair]
            for base in set(self._bodies) - {_base(source) for pair in self._pairs for source in pair}:
                del self._bodies[base]
            self._describe()
            release()
            raise


def weights_bytes(body: Body) -> int:
    """Bytes of the weights, with the adapters on them; tied ones count once."""
    tensors = [*body.model.parameters(), *body.model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def stored_bytes(folder: str) -> int:
    """What a folder's safetensors take once they are loaded; 0 for a hub id, or where they cannot be read."""
    weights = 0
    try:
        for path in Path(folder).glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                weights += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return 0
    return weights * BYTES_PER_WEIGHT


def _resident(
    source: WeightSource, models: ModelPair, run: Callable[[], AbstractContextManager[CausalLM]]
) -> Resident:
    weights = identity(source)
    with run() as model:
        return Resident(
            source=ModelSource(**source._asdict()),
            state="loaded",
            dtype=models.weights_dtype,
            vocab_size=model.vocab_size,
            max_context=model.context,
            tokenizer_sha256=models.tokenizer_sha256,
            bytes=stored_bytes(source.path) or None,
            revision=weights.revision,
            weights_sha256=weights.weights_sha256,
        )


def _base(source: WeightSource) -> str:
    return source.base or source.path


def _state(body: Body) -> tuple[int, frozenset[str]]:
    """Some adapters (prompt learning, IA3) add no module to the model."""
    adapters = frozenset() if body.peft is None else frozenset(body.peft.peft_config)
    return sum(1 for _ in body.model.modules()), adapters
