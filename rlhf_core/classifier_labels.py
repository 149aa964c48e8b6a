"""Which output of a sequence classifier is the reward, from its config.json. Torch-free: the API asks too."""

from collections.abc import Mapping
from typing import Any

from rlhf_core.errors import ModelLoadError

KIND = "ForSequenceClassification"
SHOWN_LABELS = 10
MAX_LABELS = 10_000  # a config.json may claim any number


def output_index(config: Mapping[str, Any], label: str | int | None) -> int:
    """The place of a label among the classifier's outputs; without a label, of its only one.

    Raises:
        ModelLoadError: it is no classifier, wants code of its own to run, or has no such label.
    """
    labels = _labels(config)
    shown = ", ".join(labels[:SHOWN_LABELS]) + (", …" if len(labels) > SHOWN_LABELS else "")
    if label is None:
        if len(labels) > 1:
            raise ModelLoadError(f"the classifier has {len(labels)} labels: label must name one of {shown}")
        return 0
    if isinstance(label, int) and label < len(labels):
        return label
    if label not in labels:
        raise ModelLoadError(f"the classifier has no such label, by name or index; it has {shown}")
    return labels.index(str(label))


def _labels(config: Mapping[str, Any]) -> list[str]:
    """Names by index; transformers leaves out the default, LABEL_0 and LABEL_1."""
    if "auto_map" in config:
        raise ModelLoadError(
            "the classifier's config.json asks for custom code (auto_map), which is never run"
        )
    try:
        architectures = [str(name) for name in config.get("architectures") or ()]
        names = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
        count = len(names) or int(config.get("num_labels") or 2)
        if not 0 < count <= MAX_LABELS:
            raise ModelLoadError(f"the classifier has {count} labels: at most {MAX_LABELS} are supported")
        labels = [names.get(index, f"LABEL_{index}") for index in range(count)]
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise ModelLoadError("the classifier's config.json cannot be read") from None
    if not any(name.endswith(KIND) for name in architectures):
        raise ModelLoadError(f"the model is no sequence classifier: its config.json names no …{KIND}")
    return labels
