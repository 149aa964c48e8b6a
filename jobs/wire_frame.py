"""How a scorer's answers are framed: `<u32 header length><header JSON><arrays>`, little-endian."""

import json
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt


def framed(header: dict[str, Any], arrays: Iterable[bytes]) -> bytes:
    """One answer; the header says how many arrays follow and how long they are."""
    head = json.dumps(header).encode()
    return struct.pack("<I", len(head)) + head + b"".join(arrays)


class Frame:
    """An answer that is read: its header, then its arrays, in order, as views into the body."""

    def __init__(self, body: bytes) -> None:
        (header_bytes,) = struct.unpack_from("<I", body)
        self.header: dict[str, Any] = json.loads(body[4 : 4 + header_bytes])
        self._body, self._offset = body, 4 + header_bytes

    def take(self, dtype: str, count: int) -> npt.NDArray[Any]:
        """The next `count` numbers."""
        array = np.frombuffer(self._body, dtype=dtype, count=count, offset=self._offset)
        self._offset += array.nbytes
        return array
