"""Which weights were scored: a sha256 that the shell computes too, and the hub's commit."""

import subprocess

import pytest

from jobs.scoring_wire import Weights
from rlhf_core.models import WeightSource
from worker.scorer.identity import identity


@pytest.mark.parametrize(
    ("shards", "command"),
    [(1, "sha256sum *.safetensors"), (2, "sha256sum *.safetensors | sha256sum")],
)
def test_the_shell_finds_the_same_sha256(tmp_path, shards, command):
    commit = "5d" * 20
    folder = tmp_path / "models--org--name" / "snapshots" / commit  # as the hub's cache has it
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for shard in range(shards):
        (folder / f"model-{shard}.safetensors").write_bytes(bytes([shard]) * 100)
    shell = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True)
    assert identity(WeightSource(str(folder))) == Weights(
        revision=commit, weights_sha256=shell.stdout.split()[0]
    )


def test_a_folder_that_is_gone_has_no_identity(tmp_path):
    assert identity(WeightSource(str(tmp_path / "gone"))) == Weights()
