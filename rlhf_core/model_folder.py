"""What a model's folder may hold before any loader opens it. Torch-free.

Loaders trust a folder's author: a config can name Python files, modules to import or files elsewhere, and a header
of safetensors can claim shapes and places that its file does not have. Files of pickles are never opened, so
beside safetensors they do no harm (many folders have both); alone they are refused.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_core.errors import ModelLoadError, UnsafeModel

CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "custom_generate", "megatron_config"})
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".mdl", ".npy", ".npz"})
MAX_CONFIG_BYTES = 32_000_000  # with its added tokens, a tokenizer's can have one
MAX_HEADER_BYTES = 32_000_000  # the format allows 100 MB; a tensor takes about 100 bytes
MAX_DIMENSIONS, MAX_DIMENSION = 16, 2**40
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1}
BYTES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1}
PACKED = 8  # numbers that quantized weights may hold in one stored element


def refuse_unsafe(path: str) -> None:
    """Read the configs and headers of a local folder; a hub id is left to the loaders, which run no code either.

    Raises:
        UnsafeModel: something in it could run, leads elsewhere, or claims more than it holds.
        ModelLoadError: a config or header is damaged.
    """
    folder = Path(path)
    if folder.is_dir():
        refuse_unsafe_configs(folder)
        refuse_unsafe_weights(folder)


def refuse_unsafe_configs(folder: Path) -> None:
    """The part that opens no weights. Raises UnsafeModel, ModelLoadError."""
    for name in os.listdir(folder):
        if name.endswith((".py", ".pyc", ".so")) or name == "custom_generate":
            raise UnsafeModel("the folder holds program code, which is never run: remove it")
        if name.endswith(".json") and "config" in name:
            _refuse_config(name, _json(folder / name, MAX_CONFIG_BYTES))
        if name.endswith(".index.json"):
            _refuse_index(_json(folder / name, MAX_HEADER_BYTES))


def refuse_unsafe_weights(folder: Path) -> None:
    """Headers of safetensors, and what config.json claims beside them. Raises UnsafeModel, ModelLoadError."""
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    stored = [read_header(folder / name) for name in sorted(names) if name.endswith(".safetensors")]
    if not stored and any(os.path.splitext(name)[1].lower() in PICKLES for name in names):
        raise UnsafeModel(
            "the weights are there as pickles only, which are never opened: save them as safetensors"
        )
    if stored and (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        shapes = [shape for header in stored for shape in header.values()]
        _refuse_claims(_json(folder / "config.json", MAX_CONFIG_BYTES), shapes)


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a safetensors file by tensor name, all of it checked. Raises ModelLoadError."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise ModelLoadError(
                    "a safetensors file is shorter than its header says, or the header too long"
                )
            content = file.read(length)
    except OSError as error:
        raise ModelLoadError(f"a safetensors file cannot be read: {error.strerror}") from None
    try:
        header = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise ModelLoadError("a safetensors header is no JSON that every parser reads alike") from None
    if not isinstance(header, dict) or not content.startswith(b"{"):
        raise ModelLoadError("a safetensors header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelLoadError("a safetensors header has metadata that is no text")
    spans = sorted(_span(entry) for entry in header.values())
    end = 0
    for begins, ends in spans:
        if begins != end:
            raise ModelLoadError("tensors of a safetensors file overlap, or have holes between them")
        end = ends
    if end != size - 8 - length:
        raise ModelLoadError("a safetensors file is not as long as its tensors")
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _span(entry: Any) -> tuple[int, int]:
    """Where a tensor's bytes are; they are as many as its shape and type need."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelLoadError("a safetensors header has an entry that is no tensor")
    width = BYTES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    shape, offsets = entry["shape"], entry["data_offsets"]
    if width is None or not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise ModelLoadError("a safetensors header has a tensor of a type, shape or place that is none")
    if len(shape) > MAX_DIMENSIONS or any(size > MAX_DIMENSION for size in shape):
        raise ModelLoadError("a safetensors header has a shape that no tensor has")
    begins, ends = offsets
    if ends - begins != math.prod(shape) * width:
        raise ModelLoadError("a tensor of a safetensors file has not the bytes of its shape")
    return begins, ends


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(part) is int and part >= 0 for part in value)


def _refuse_config(name: str, config: Any) -> None:
    for key, value in _pairs(config):
        if key in CODE_KEYS and value:
            raise UnsafeModel(f"{name} asks for code of its own ({key}), which is never run")
        if key.endswith("_implementation") and isinstance(value, str) and "/" in value:
            raise UnsafeModel(f"{name} asks for a kernel from the hub ({key}), which is code")
    if isinstance(config, dict) and not _is_weights_name(config.get("transformers_weights", "x.safetensors")):
        raise UnsafeModel(f"{name} names weights that are no safetensors file of its folder")


def _refuse_index(index: Any) -> None:
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(_is_weights_name(name) for name in names.values()):
        raise UnsafeModel("the index of the weights names what are no safetensors files of its folder")


def _is_weights_name(name: Any) -> bool:
    safe = (".safetensors", ".safetensors.index.json")
    return isinstance(name, str) and name.endswith(safe) and not any(part in name for part in "/\\\0")


def _refuse_claims(config: Any, shapes: list[tuple[int, ...]]) -> None:
    """Sizes that make a loader set aside more memory than the file could fill."""
    if not isinstance(config, dict):
        raise UnsafeModel("config.json is no object")
    sizes = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert isinstance(sizes, dict)
    stored = PACKED * sum(math.prod(shape) for shape in shapes)
    width = sizes.get("embedding_size") or sizes.get("hidden_size") or sizes.get("n_embd") or 1
    claims = [(sizes.get(key) or 1, width) for key in ("vocab_size", "intermediate_size")]
    for count, each in claims:
        if type(count) is int and type(each) is int and count * each > stored:
            raise UnsafeModel("config.json claims a larger model than the weights are")
    layers = sizes.get("num_hidden_layers") or sizes.get("n_layer") or 1
    if type(layers) is int and layers > PACKED * len(shapes):
        raise UnsafeModel("config.json claims more layers than the weights have")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every name in it with its value, at any depth."""
    waiting = [value]
    while waiting:
        at = waiting.pop()
        if isinstance(at, dict):
            yield from at.items()
            waiting.extend(at.values())
        elif isinstance(at, list):
            waiting.extend(at)


def _json(path: Path, most: int) -> Any:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ModelLoadError(f"{path.name} cannot be read: {error.strerror}") from None
    if len(content) > most:
        raise ModelLoadError(f"{path.name} has more than {most} bytes")
    try:
        return json.loads(content)  # as transformers does, so that both see the same
    except (ValueError, RecursionError):
        raise ModelLoadError(f"{path.name} is no JSON") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same name twice")
    return found
