"""What the heads and the sums over the vocabulary take, at 4 × 4096 tokens and a vocabulary of 151,936.

Hidden states and heads are random and 64 wide; they are not counted, for they are the models' own memory. Every
measurement has a process of its own. `rss` is what the system saw of the process at its peak (VmHWM, set back
through /proc/self/clear_refs) above what it had before: with buffers of the matrix product and the C kernel, and
with what malloc keeps for the next chunk. `allocator` is the peak of what torch had asked for and not given back:
none of these. `rss, nothing kept` is the first with a malloc that returns large blocks at once, and so must agree
with the second. The answers' 1 MB is in all three.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

TOKENS, VOCAB, HIDDEN = 4 * 4096, 151_936, 64
LIMIT_BYTES = 128 * 2**20
APART_BYTES = 16 * 2**20  # how far the last two may be from each other
NAIVE_BYTES = 2 * TOKENS * VOCAB * 4  # both models' logits in float32, before anything is done with them


def measure() -> dict[str, int]:
    """Each measurement in bytes."""
    nothing_kept = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    return {
        "rss": _child("rss", {}),
        "allocator": _child("allocator", {}),
        "rss, nothing kept": _child("rss", nothing_kept),
    }


def _child(way: str, env: dict[str, str]) -> int:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.scoring.memory", way]
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=os.environ | env)
    return int(done.stdout)


def by_rss(work: Callable[[], object]) -> int:
    """Growth of the resident set at its peak."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def by_allocator(work: Callable[[], object]) -> int:
    """Peak of torch's own live allocations, from the profiler's log of them."""
    import torch

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        work()
    with tempfile.NamedTemporaryFile(suffix=".json") as trace:
        profiler.export_chrome_trace(trace.name)
        events = json.loads(Path(trace.name).read_text())["traceEvents"]
    live = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return int(peak)


WAYS = {"rss": by_rss, "allocator": by_allocator}


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _main(way: str) -> int:
    import torch

    from rlhf_core.chunked import chunked_scores

    torch.manual_seed(0)
    heads = [torch.randn(VOCAB, HIDDEN) for _ in range(2)]
    hidden = [torch.randn(TOKENS, HIDDEN) for _ in range(2)]
    ids = torch.randint(VOCAB, (TOKENS,))
    apply = [partial(torch.nn.functional.linear, weight=head) for head in heads]

    def score(tokens: int) -> None:
        chunked_scores(hidden[0][:tokens], hidden[1][:tokens], apply[0], apply[1], ids[:tokens])

    score(4)  # libraries are loaded and threads started before the count
    print(WAYS[way](partial(score, TOKENS)))
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
