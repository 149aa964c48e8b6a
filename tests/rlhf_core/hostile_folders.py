"""Model folders with what a careless loader would run, follow or believe; and headers that lie."""

import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Edit = Callable[[Path], object]
EVIL = "import pathlib; pathlib.Path('canary').touch()\n"
# Protocol 0 names what to import in clear text: nothing here was made by a pickler.
PICKLE = b"cos\nsystem\n(S'touch canary'\ntR."


def config(name: str, **changes: Any) -> Edit:
    """Change a JSON file of the folder, or make it."""

    def edit(folder: Path) -> None:
        path = folder / name
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(before | changes))

    return edit


def added(name: str, content: str | bytes = EVIL) -> Edit:
    """Another file."""

    def edit(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return edit


def only(name: str) -> Edit:
    """A pickle in place of the safetensors."""

    def edit(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(PICKLE)

    return edit


def zipped(folder: Path) -> None:
    """What torch.save writes, under the name of safetensors."""
    with zipfile.ZipFile(folder / "model.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", PICKLE)


AUTO = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", None]}
UNSAFE: dict[str, Edit] = {
    "auto_map in config.json": config("config.json", auto_map=AUTO),
    "auto_map from another repository": config("config.json", auto_map={"AutoModel": "org/evil--evil.Model"}),
    "auto_map below": config("config.json", vision_config={"deep": [{"auto_map": AUTO}]}),
    "auto_map in tokenizer_config.json": config("tokenizer_config.json", auto_map=AUTO),
    "auto_map in generation_config.json": config("generation_config.json", auto_map=AUTO),
    "auto_map in processor_config.json": config("processor_config.json", auto_map=AUTO),
    "auto_map in preprocessor_config.json": config("preprocessor_config.json", auto_map=AUTO),
    "custom pipelines": config("config.json", custom_pipelines={"evil": {"impl": "evil.Pipeline"}}),
    "custom generation": added("custom_generate/generate.py"),
    "custom generation's name": config("generation_config.json", custom_generate="org/evil"),
    "Python file": added("modeling_evil.py"),
    "compiled Python file": added("evil.pyc"),
    "shared object": added("evil.so", b"\x7fELF"),
    "kernel from the hub": config("config.json", attn_implementation="org/kernel"),
    "kernel of experts from the hub": config("config.json", _experts_implementation="org/kernel:evil"),
    "weights elsewhere": config("config.json", transformers_weights="../other/model.safetensors"),
    "weights that are a pickle": config("config.json", transformers_weights="adapter_model.bin"),
    "index that leads elsewhere": config(
        "model.safetensors.index.json", weight_map={"a": "../../x.safetensors"}
    ),
    "index of pickles": config("model.safetensors.index.json", weight_map={"a": "pytorch_model-1.bin"}),
    "module to import": config("adapter_config.json", megatron_config={"a": 1}, megatron_core="antigravity"),
    "only pytorch_model.bin": only("pytorch_model.bin"),
    "only a .pt": only("model.pt"),
    "only a .pth": only("consolidated.00.pth"),
    "only a .pkl": only("model.pkl"),
    "only a .ckpt": only("model.ckpt"),
    "endless vocabulary": config("config.json", vocab_size=10**12),
    "endless layers": config("config.json", num_hidden_layers=10**9),
}
DAMAGED: dict[str, Edit] = {
    "zip named safetensors": zipped,
    "pickle named safetensors": added("model.safetensors", PICKLE),
    "config that is no JSON": added("config.json", "{"),
    "config that is deep": added("config.json", "[" * 100_000),
}


def copy_with(source: Path, target: Path, edit: Edit) -> Path:
    """The folder with one change."""
    shutil.copytree(source, target)
    edit(target)
    return target


def mutated_headers(path: Path, count: int, seed: int) -> Iterator[bytes]:
    """The file again and again, each time with another lie: in its header's JSON, or in its bytes."""
    content, rng = path.read_bytes(), random.Random(seed)
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(count):
        if rng.random() < 0.35:
            yield _other_bytes(content, length, rng)
            continue
        lying = json.loads(json.dumps(header))
        _lie(lying, rng, len(data))
        text = json.dumps(lying).encode()
        if rng.random() < 0.1:  # the same name twice
            text = b'{"twice": %s, %s' % (json.dumps(next(iter(header.values()))).encode(), text[1:])
        yield struct.pack("<Q", len(text)) + text + data


NUMBERS = [-1, 0, 1, 2, 7, 2**31, 2**63 - 1, 2**64, 10**30, 1.5, "1", None, [], True]


def _lie(header: dict[str, Any], rng: random.Random, size: int) -> None:
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.choice(names), rng.choice(names)
    entry, numbers = header[name], [*NUMBERS, size, size - 1, size + 1]
    match rng.randrange(10):
        case 0:
            entry["data_offsets"][rng.randrange(2)] = rng.choice(numbers)
        case 1:
            entry["shape"] = [rng.choice(numbers) for _ in range(rng.randrange(5))]
        case 2:
            entry["shape"].append(rng.choice(numbers))
        case 3:
            entry["dtype"] = rng.choice(
                ["F64", "F16", "I8", "U8", "F4", "C64", "", "float32", None, 4, [], {}]
            )
        case 4:
            entry["data_offsets"] = header[other]["data_offsets"]
        case 5:
            entry["data_offsets"] = [offset + 4 for offset in entry["data_offsets"]]
        case 6:
            header[name] = rng.choice([None, [], "x", 1, {}, {"dtype": "F32"}, entry | {"extra": 1}])
        case 7:
            header["__metadata__"] = rng.choice(
                [None, [], "x", {"a": 1}, {"a": {"b": "c"}}, {"a": "b" * 1000}]
            )
        case 8:
            header[rng.choice(["", "\0", "../../x", "x" * 10_000, "\u202e", name + " "])] = header.pop(name)
        case 9:
            header["more"] = {
                "dtype": "F32",
                "shape": rng.choice([[0], [2**60], []]),
                "data_offsets": [size, size],
            }


def _other_bytes(content: bytes, length: int, rng: random.Random) -> bytes:
    match rng.randrange(4):
        case 0:  # another length of the header
            claimed = rng.choice(
                [0, 1, length - 1, length + 1, len(content), 2**31, 100_000_001, 2**63, 2**64 - 1]
            )
            return struct.pack("<Q", claimed) + content[8:]
        case 1:  # cut off
            return content[: rng.choice([0, 1, 7, 8, 9, 8 + length // 2, 8 + length, len(content) - 1])]
        case 2:  # something behind the end
            return content + b"x" * rng.randrange(1, 100)
        case _:  # a byte of the header
            at = 8 + rng.randrange(length)
            return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
