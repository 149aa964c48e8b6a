"""A tiny real model that every suite shares: Llama with random weights and its own byte-level BPE tokenizer."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist runs one process per core
os.environ["HF_HUB_OFFLINE"] = "1"

import runpy
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

if "PYTEST_XDIST_WORKER" in os.environ:
    # What an instrumented module is the first to import is compiled anew, here 3,000 files; imported before, it
    # comes from the caches that pip made.
    import peft  # noqa: F401

CORE = Path(__file__).parents[1] / "rlhf_core"
SHAPED = [
    ".".join(file.relative_to(CORE.parent).with_suffix("").parts)
    for file in CORE.rglob("*.py")
    if "from jaxtyping import" in file.read_text()
]
install_import_hook(SHAPED, "beartype.beartype")  # shapes and dtypes, in every test; types are mypy's

settings.register_profile("kleash", deadline=None)  # no test asserts a time
settings.load_profile("kleash")

UNPICKLING = Path(__file__).with_name("unpickling")


@pytest.fixture(scope="session", autouse=True)
def _nobody_unpickles() -> Iterator[None]:
    """An audit hook in this process and in every Python process it starts; fails at the end of the session."""
    with tempfile.TemporaryDirectory(prefix="kleash-unpickled-") as folder:
        os.environ["KLEASH_TEST_UNPICKLED"] = folder
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(UNPICKLING), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        runpy.run_path(str(UNPICKLING / "sitecustomize.py"))
        yield
        found = sorted({line for file in Path(folder).iterdir() for line in file.read_text().splitlines()})
        assert not found, "something unpickled:\n" + "\n".join(found)


CORPUS = [
    "The cat sat on the mat. The quick brown fox jumps over the lazy dog.",
    "A lovely morning by the sea; the coffee was good and the bread was warm.",
    "Naïve café — 東京 is big 👩‍👩‍👧 and people are kind.",
]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 2-layer model of width 32 with float32 weights and a context of 96 tokens."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny"
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(CORPUS * 4, vocab_size=400, min_frequency=1, special_tokens=["<|end|>"])
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|end|>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=bpe.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
