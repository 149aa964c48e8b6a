"""The pair that is measured, as folders that later runs find again: reference, policy, and both for ctranslate2.

The policy is the reference with 2 % of noise on every weight. It is saved: all contenders read the same one.
"""

import hashlib
import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from rlhf_core.models import ModelPair, WeightSource, load_body, load_pair

NOISE, SEED = 0.02, 0
POLICY, REFERENCE = "bench-policy", "bench-reference"  # names in the registry


class Models(NamedTuple):
    """The pair for kleash, and its two models for those who run them whole."""

    pair: ModelPair
    plain: tuple[Any, Any]  # policy, reference, as transformers loads them
    folders: tuple[Path, Path]


def load(registry: Path, cache: Path) -> Models:
    """Both models of the pair; the policy is made first if the cache has none."""
    known = json.loads(registry.read_text())
    source = (registry.parent / known["models"][known["default_reference"]]["source"]).resolve()
    key = hashlib.sha256(f"{source} {NOISE} {SEED}".encode()).hexdigest()[:12]
    policy = _made(cache / f"policy-{key}", lambda folder: _perturb(source, folder))
    pair = load_pair(WeightSource(str(policy)), WeightSource(str(source)))
    plain = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (policy, source)]
    return Models(pair, (plain[0], plain[1]), (policy, source))


def write_registry(models: Models, folder: Path) -> Path:
    """A registry of exactly this pair, for a server."""
    sources = zip((POLICY, REFERENCE), models.folders, strict=True)
    path = folder / "models.json"
    path.write_text(
        json.dumps(
            {
                "models": {name: {"source": str(source)} for name, source in sources},
                "default_policy": POLICY,
                "default_reference": REFERENCE,
            }
        )
    )
    return path


def load_ctranslate2(models: Models, cache: Path, packages: Path | None) -> tuple[Any, Any] | str:
    """Generators of policy and reference in float32, or why there are none."""
    if packages is not None:
        sys.path.append(str(packages.resolve()))  # at the end: ours come first
    try:
        ctranslate2 = importlib.import_module("ctranslate2")
        converters = importlib.import_module("ctranslate2.converters")
    except ImportError as error:
        return f"{error}; `make bench-scoring` installs it"
    generators = []
    for source in models.folders:
        key = hashlib.sha256(f"{source} {ctranslate2.__version__}".encode()).hexdigest()[:12]
        convert = converters.TransformersConverter(str(source)).convert
        folder = _made(cache / f"ctranslate2-{key}", convert)
        generators.append(
            ctranslate2.Generator(
                str(folder),
                device="cpu",
                compute_type="float32",
                inter_threads=1,
                intra_threads=torch.get_num_threads(),
            )
        )
    return generators[0], generators[1]


def _perturb(source: Path, folder: Path) -> None:
    torch.manual_seed(SEED)
    body = load_body(str(source))
    for parameter in body.model.parameters():
        parameter.add_(torch.randn_like(parameter) * parameter.std() * NOISE)
    body.model.save_pretrained(folder)
    for file in source.iterdir():
        if not (folder / file.name).exists():  # the tokenizer's
            shutil.copy(file, folder)


def _made(folder: Path, make: Callable[[Path], object]) -> Path:
    """The folder, made under another name first: one that is there is whole."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = folder.with_name(f"{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        make(draft)
        draft.rename(folder)
    return folder.resolve()
