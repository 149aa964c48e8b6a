"""Logits of 4096 tokens over 151,936 items would take 2.5 GB a model; scoring them takes as much as a chunk."""

import subprocess
import sys
from pathlib import Path

TOKENS, VOCAB, LIMIT_MIB = 4096, 151_936, 128

SCORE = """
import sys
from pathlib import Path
import torch
from rlhf_core.chunked import chunked_scores
from rlhf_core.products import accelerate

tokens, vocab = int(sys.argv[1]), int(sys.argv[2])
heads = torch.nn.ModuleList(torch.nn.Linear(8, vocab, bias=False) for _ in range(2))
accelerate(heads)
hidden, ids = torch.randn(tokens, 8), torch.randint(vocab, (tokens,))

def kib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

chunked_scores(hidden[:2], hidden[:2], *heads, ids[:2])  # loads what is loaded at first use
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
before = kib("VmRSS")
scores = chunked_scores(hidden, hidden, *heads, ids)
print(kib("VmHWM") - before - sum(x.nbytes for x in scores[:-1]) // 1024, float(scores.kl.min()))
"""


def test_extra_memory_at_the_largest_shape():
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(TOKENS), str(VOCAB)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    extra_kib, least = done.stdout.split()
    assert float(least) >= 0
    assert int(extra_kib) <= LIMIT_MIB * 1024
    assert int(extra_kib) > 16 * 1024  # a chunk was seen: the measurement works
