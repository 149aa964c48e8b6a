"""How much memory tensors take at once."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """The most bytes that the tensors made inside the context, views of `given` apart, held at once."""

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self.given = {x.untyped_storage().data_ptr() for x in given}
        self.peak = 0
        self._made: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else (out,)
        self._made += [weakref.ref(x) for x in made if isinstance(x, torch.Tensor)]
        alive = [tensor for made in self._made if (tensor := made()) is not None]
        self._made = [weakref.ref(tensor) for tensor in alive]
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in alive}
        self.peak = max(self.peak, sum(size for at, size in storages.items() if at not in self.given))
        return out
