"""What a job will take, from its config and its model's files alone: nothing is loaded, and torch is not needed.

Memory is that of the process that runs it, on a CPU, at its peak: the larger of loading and running. Counted are

- the runtime itself;
- loading: the weights' files and their float32 copy, of each model;
- running: the weights in float32; what is trained once more as gradient and twice as Adam's moments; where all
  weights are trained, the frozen copy that is the reference (an adapter shares its base with it);
- the activations that a minibatch's backward pass needs, and one chunk of logits.

Not counted: a reward's classifier, an evaluation with more prompts than a batch has rows, a GPU's libraries.
docs/http/jobs.md compares it with measured runs.
"""

import json
import math
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

from jobs.bulk import ScoreConfig
from jobs.scoring_wire import ModelSource
from rlhf_core.config.ppo import LoraConfig, PPOConfig

RUNTIME_BYTES = 368 << 20  # torch and transformers, imported
CHUNK_BYTES = 48 << 20  # of logits, as in rlhf_core/chunked.py
FLOAT = 4
SAVED_WIDTHS, SAVED_INNER = 14, 5  # floats that a layer keeps of a token, in hidden and in intermediate sizes
BYTES_A_TOKEN = 3  # of text, about
UNKNOWN_PROMPT_TOKENS = 128  # of prompts in a file, which is not read here
BATCH_TOKENS = 2048  # of a score job, unless the deployment says otherwise
MAX_HEADER_BYTES = 32 << 20
MAX_CONFIG_BYTES = 1 << 20
MAX_SIZE = 2**31  # of a tensor's axis, and of anything that a config counts
NO_LINEAR_LAYER = re.compile(r"embed|wte|wpe|lm_head|norm|ln_")


class Estimate(NamedTuple):
    """None: not known before it runs."""

    steps: int | None
    tokens: int | None
    memory_bytes: int | None


class Shape(NamedTuple):
    """A model's size. `linear` are the shapes of its layers' matrices."""

    parameters: int
    file_bytes: int
    layers: int
    hidden: int
    intermediate: int
    linear: tuple[tuple[int, int], ...]

    def adapter_parameters(self, lora: LoraConfig | None) -> int:
        """Two matrices beside each linear layer but the head."""
        return 0 if lora is None else sum(lora.rank * (rows + columns) for rows, columns in self.linear)

    def activations(self, tokens: int, *, checkpointing: bool = False) -> int:
        """Bytes that a backward pass finds of so many tokens."""
        layer = SAVED_WIDTHS * self.hidden + SAVED_INNER * self.intermediate
        floats = layer + self.layers * self.hidden if checkpointing else self.layers * layer
        return FLOAT * floats * tokens


def shape_of(folder: str) -> Shape | None:
    """The shape of a folder's model, from config.json and the headers of its safetensors; None if it has none."""
    try:
        with Path(folder, "config.json").open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))
        files = sorted(Path(folder).glob("*.safetensors"))
        tensors = {name: shape for file in files for name, shape in _tensors(file).items()}
        if not tensors:
            return None
        hidden = _size(config.get("hidden_size") or config["n_embd"])
        return Shape(
            parameters=sum(math.prod(shape) for shape in tensors.values()),
            file_bytes=sum(file.stat().st_size for file in files),
            layers=_size(config.get("num_hidden_layers") or config["n_layer"]),
            hidden=hidden,
            intermediate=_size(config.get("intermediate_size") or config.get("n_inner") or 4 * hidden),
            linear=tuple(
                (shape[0], shape[1])
                for name, shape in tensors.items()
                if len(shape) == 2 and not NO_LINEAR_LAYER.search(name)
            ),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        return None


def _tensors(file: Path) -> dict[str, list[int]]:
    """The shapes by name, from the header. Raises ValueError, KeyError, struct.error."""
    with file.open("rb") as opened:
        (size,) = struct.unpack("<Q", opened.read(8))
        if size > MAX_HEADER_BYTES:
            raise ValueError("the header is too large")
        header: dict[str, Any] = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    return {name: [_size(axis) for axis in tensor["shape"]] for name, tensor in header.items()}


def _size(value: Any) -> int:
    """What a file calls a size. Raises ValueError for one that nothing has: infinity, or thirty digits."""
    if type(value) is not int or not 0 <= value <= MAX_SIZE:
        raise ValueError("no size")
    return value


def of_training(config: PPOConfig, first_step: int, shape: Shape | None) -> Estimate:
    """Tokens are those that are sampled, at most."""
    steps = config.optimization.steps - first_step
    rollout = config.rollout
    tokens = steps * rollout.batch_size * rollout.max_new_tokens
    if shape is None:
        return Estimate(steps, tokens, None)
    adapters = shape.adapter_parameters(config.model.lora)
    adapters += shape.adapter_parameters(config.model.value_adapter)
    trained = adapters if config.model.lora is not None else shape.parameters
    base = shape.parameters  # an adapter's, or the reference
    rows = rollout.batch_size // config.optimization.minibatches
    width = _prompt_tokens(config) + rollout.max_new_tokens
    running = FLOAT * (base + 4 * trained) + CHUNK_BYTES
    running += shape.activations(rows * width, checkpointing=config.model.gradient_checkpointing)
    loading = shape.file_bytes + FLOAT * shape.parameters
    return Estimate(steps, tokens, RUNTIME_BYTES + max(loading, running))


def of_scoring(config: ScoreConfig, models: list[ModelSource]) -> Estimate:
    """Tokens are those of inline items, about; a base that both models share is counted once."""
    steps = tokens = None
    if config.items is not None:
        steps = math.ceil(len(config.items) / config.checkpoint.every_items)
        tokens = sum(_item_tokens(item) for item in config.items)
    shapes = [shape_of(path) for path in sorted({model.base or model.path for model in models})]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return Estimate(steps, tokens, None)
    weights = sum(FLOAT * shape.parameters for shape in known)
    loading = weights + max(shape.file_bytes for shape in known)
    one_layer = max(shape.activations(BATCH_TOKENS) // shape.layers for shape in known)
    return Estimate(steps, tokens, RUNTIME_BYTES + max(loading, weights + one_layer + 2 * CHUNK_BYTES))


def _prompt_tokens(config: PPOConfig) -> int:
    if config.data.prompts is None:
        return UNKNOWN_PROMPT_TOKENS
    return max(_text_tokens(prompt) for prompt in config.data.prompts)


def _text_tokens(text: str) -> int:
    return 1 + len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN


def _item_tokens(item: Any) -> int:
    if isinstance(item, str):
        return _text_tokens(item)
    if item.token_ids is not None:
        return len(item.token_ids)
    texts = [item.prompt, item.text, *(message.content for message in item.messages or ())]
    return sum(_text_tokens(text) for text in texts if text)
