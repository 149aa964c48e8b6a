"""A score job in a process whose memory is really not enough: halves of batches, and lines that fail alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

CHILD = """
import json, resource, sys
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from tests import tiny_models
from tests.worker.score_place import Place
from worker.run import Stop

torch.set_num_threads(1)
root = Path(sys.argv[1])
base = root / "models" / "wide"
tokenizer = tiny_models.byte_level_tokenizer(vocab_size=300)
config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32768, num_hidden_layers=1,
                     num_attention_heads=2, max_position_embeddings=4096)
LlamaForCausalLM(config).save_pretrained(base)
tokenizer.save_pretrained(base)
place = Place(root, tiny_models.TinyModels(base.parent, base, base, base, base))
windows = json.loads(sys.argv[3])
place.create("job_1", items_file=None, items=sum(windows, []), checkpoint={"every_items": len(windows[0])})
job, folder = place.claimed("job_1")
job.resolved["policy"] = job.resolved["reference"]
run = place.run(job, folder)
save = run._shards.save

def save_and_limit(index, *args, **options):
    save(index, *args, **options)
    if index == 0:
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + int(sys.argv[2]) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

run._shards.save = save_and_limit
run.run(Stop())
print(json.dumps({"rows": place.rows("job_1"), "result": place.store.get_job("job_1").result}))
"""


def test_a_real_allocation_failure_costs_the_line_that_is_too_large_and_no_other(tmp_path: Path) -> None:
    """One activation of the wide layer takes 32768 · 4 bytes = 128 KiB a token, and about three live at once.

    In 256 MiB fit some 680 tokens: each of the six texts of 255, which make one batch of 1,530 that does not fit,
    and never the text of 3,000. The first window runs before the limit is set, the last one after the failures.
    """
    alike = ["x" * 254 + letter for letter in "abcdef"]
    windows = [["x" * 8] * 7, [*alike, "x" * 3000], ["x" * 8] * 7]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), "256", json.dumps(windows)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    *log, last = child.stdout.splitlines()
    told = json.loads(last)
    rows = told["rows"]
    assert [row.get("n_tokens") for row in rows] == [8] * 7 + [255] * 6 + [None] + [8] * 7
    assert rows[13]["error"]["code"] == "out_of_memory"
    assert rows[13]["error"]["detail"].startswith("line 14: ")
    assert (told["result"]["items_done"], told["result"]["items_failed"]) == (21, 1)
    assert sum("out of memory" in line for line in log) >= 2, "the batch of six, and the text alone"
    assert rows[0]["sums"] == rows[20]["sums"]
