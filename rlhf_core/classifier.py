"""Sequence classifiers as rewards: a text in, the logit of one label out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForSequenceClassification
from transformers.utils import find_adapter_config_file

from rlhf_core.classifier_labels import output_index
from rlhf_core.config.rewards import ClassifierReward
from rlhf_core.errors import ModelLoadError
from rlhf_core.models import LOADER_ERRORS, load_tokenizer

UNLIMITED = 10**9  # tokens; tokenizers say 1e30
TextScores = Callable[[Sequence[str]], list[float]]


class Classifier:
    """A frozen classifier in float32, and the tokenizer it was trained with."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        tokenizer.truncation_side, tokenizer.padding_side = "left", "right"
        limits = (tokenizer.model_max_length, _positions(model))
        self._max_tokens = min((n for n in limits if 0 < n < UNLIMITED), default=None)

    @torch.inference_mode()
    def logits(self, texts: Sequence[str], *, batch_size: int) -> Float[Tensor, "texts labels"]:
        """Every label's logit for each text; of a text longer than the context, the end is read."""
        parts = []
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            tokens = self.tokenizer(
                batch,
                padding=len(batch) > 1,
                truncation=self._max_tokens is not None,
                max_length=self._max_tokens,
                return_tensors="pt",
            ).to(self.model.device)
            found = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            parts.append(found.logits.float().cpu())
        return torch.cat(parts)


def _positions(model: Any) -> int:
    """How many tokens it can read. RoBERTa's table has rows for padding that no token uses."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.num_embeddings) - int(module.padding_idx) - 1
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or UNLIMITED)


class Classifiers:
    """Those of one run: each is loaded once, onto the run's device."""

    def __init__(self, paths: Mapping[str, str] | None = None, *, device: str = "cpu") -> None:
        """`paths` holds folders or hub ids by the names that rewards use; a name that is not there is a path."""
        self._paths, self._device = paths or {}, device
        self._loaded: dict[str, Classifier] = {}

    def label_scores(self, config: ClassifierReward) -> TextScores:
        """The function from texts to one label's logits. Raises ModelLoadError."""
        path = self._paths.get(config.model, config.model)
        if path not in self._loaded:
            self._loaded[path] = load_classifier(path, device=self._device)
        classifier = self._loaded[path]
        index = output_index(classifier.model.config.to_dict(), config.label)
        if config.batch_size > 1 and classifier.tokenizer.pad_token_id is None:
            raise ModelLoadError(f"{path}: its tokenizer has no padding token, so batch_size must be 1")
        return lambda texts: classifier.logits(texts, batch_size=config.batch_size)[:, index].tolist()


def load_classifier(path: str, *, device: str = "cpu") -> Classifier:
    """From a folder or the hub. Runs no repository's code, reads safetensors only, draws no random number.

    Raises:
        ModelLoadError: it cannot be loaded, or is not a whole classifier.
    """
    tokenizer = load_tokenizer(path)
    try:
        if find_adapter_config_file(path) is not None:  # transformers would open the base that it names
            raise ModelLoadError(f"{path}: an adapter, where a full model is needed")
        with torch.random.fork_rng(devices=[]):
            model, found = AutoModelForSequenceClassification.from_pretrained(
                path,
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except LOADER_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelLoadError(f"cannot load {path}: {reason[:300]}") from error
    if found["missing_keys"]:  # transformers would make them up
        raise ModelLoadError(f"{path}: its weights lack {', '.join(sorted(found['missing_keys'])[:3])}")
    if tokenizer.pad_token_id is not None:  # decoders find a row's last token by it
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return Classifier(model.to(device).eval().requires_grad_(False), tokenizer)
