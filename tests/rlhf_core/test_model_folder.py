"""Folders that could run something are refused before a loader opens them; headers that lie are never believed.

`python -m tests.rlhf_core.test_model_folder 2000` tries so many headers.
"""

import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rlhf_core.errors import ModelLoadError, UnsafeModel
from rlhf_core.model_folder import read_header, refuse_unsafe
from rlhf_core.models import WeightSource, load_body, load_pair, load_tokenizer
from tests import tiny_models
from tests.rlhf_core.hostile_folders import DAMAGED, PICKLE, UNSAFE, Edit, copy_with, mutated_headers
from tests.tiny_models import TinyModels


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return tiny_models.build(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("edit", UNSAFE.values(), ids=UNSAFE.keys())
def test_what_could_run_lead_elsewhere_or_fill_the_memory_is_refused(
    tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: Edit
) -> None:
    """tests/conftest.py fails whoever unpickles anything."""
    monkeypatch.chdir(tmp_path)  # where the payloads would leave their canary
    folder = str(copy_with(tiny.base, tmp_path / "model", edit))
    for load in (load_body, load_tokenizer):
        with pytest.raises(UnsafeModel):
            load(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("edit", DAMAGED.values(), ids=DAMAGED.keys())
def test_what_is_damaged_is_refused(tiny: TinyModels, tmp_path: Path, edit: Edit) -> None:
    with pytest.raises(ModelLoadError):
        load_body(str(copy_with(tiny.base, tmp_path / "model", edit)))


def test_an_adapter_is_looked_through_too(tiny: TinyModels, tmp_path: Path) -> None:
    folder = copy_with(tiny.adapter, tmp_path / "adapter", UNSAFE["module to import"])
    with pytest.raises(UnsafeModel, match="megatron_config"):
        load_pair(WeightSource(str(folder), str(tiny.base)), WeightSource(str(tiny.base)))


def test_a_pickle_beside_safetensors_is_left_alone(tiny: TinyModels, tmp_path: Path) -> None:
    folder = copy_with(
        tiny.base, tmp_path / "model", lambda path: (path / "training_args.bin").write_bytes(PICKLE)
    )
    load_body(str(folder))


def test_folders_of_ours_and_hub_ids_are_safe(tiny: TinyModels) -> None:
    for folder in (tiny.base, tiny.adapter):
        refuse_unsafe(str(folder))
    refuse_unsafe("org/name")


def small_file(folder: Path) -> Path:
    """Tensors of several types, one of them empty, one a number."""
    tensors = {
        "a.weight": torch.arange(6.0).reshape(2, 3),
        "b": torch.zeros(4, dtype=torch.bfloat16),
        "c": torch.tensor(7),
        "empty": torch.zeros(0, 5),
        "bytes": torch.arange(5, dtype=torch.uint8),
    }
    save_file(tensors, folder / "small.safetensors", metadata={"format": "pt"})
    return folder / "small.safetensors"


def test_a_header_says_the_shapes(tmp_path: Path) -> None:
    shapes = {"a.weight": (2, 3), "b": (4,), "c": (), "empty": (0, 5), "bytes": (5,)}
    assert read_header(small_file(tmp_path)) == shapes


def try_headers(folder: Path, count: int, seed: int) -> tuple[int, int]:
    """How many lying files were refused, and how many told the truth about each tensor that was loaded."""
    original = small_file(folder)
    refused = taken = 0
    path = folder / "lying.safetensors"
    for content in mutated_headers(original, count, seed):
        path.write_bytes(content)
        try:
            shapes = read_header(path)
        except ModelLoadError:
            refused += 1
            continue
        try:
            loaded = load_file(path)
        except (SafetensorError, ValueError, RuntimeError):  # the library may be stricter: never less so
            refused += 1
            continue
        taken += 1
        assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == shapes
        assert sum(tensor.nbytes for tensor in loaded.values()) <= len(content)
    return refused, taken


def test_headers_that_lie_are_refused_or_loaded_as_they_say(tmp_path: Path) -> None:
    refused, taken = try_headers(tmp_path, 200, seed=1)
    assert refused > 120
    assert taken > 0


def test_a_large_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write((90_000_000).to_bytes(8, "little"))
        file.truncate(95_000_000)
    with pytest.raises(ModelLoadError, match="too long"):
        read_header(path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as where:
        refused, taken = try_headers(Path(where), int(sys.argv[1]), seed=0)
        print(f"{refused} refused, {taken} taken")  # noqa: T201
