"""The ways to score texts: kleash's own, and what one would do without it.

Each takes texts and returns, by quantity, one array per text: an entry for every scored token, in nats.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.scoring.workloads import Text
from rlhf_core.kernels import scores as native
from rlhf_core.models import ModelPair
from rlhf_core.scoring import score_texts

PADDED_BATCH = 8
LONGEST_BATCH_TOKENS = 2048  # of ours, as the scorer's default
CTRANSLATE2_BATCH_TOKENS = 1024  # it sorts by length and pads; 512 to 4096 were tried
LOGPROBS = ("policy_logprob", "reference_logprob")

Answers = dict[str, list[np.ndarray]]
Contender = Callable[[Sequence[Text]], Answers]


def exact(pair: ModelPair, texts: Sequence[Text], **options: Any) -> Answers:
    """The scorer's engine."""
    scored = score_texts(
        pair, [text.tokens for text in texts], max_batch_tokens=LONGEST_BATCH_TOKENS, **options
    )
    return {name: [item.quantities[name][item.scored] for item in scored] for name in ("kl", *LOGPROBS)}


def sampled(pair: ModelPair, texts: Sequence[Text]) -> Answers:
    """The same engine, whose kernel computes log-probabilities of the tokens and nothing else."""
    only = partial(native.scores, level=native.LOGPROBS_ONLY)
    with mock.patch.object(native, "scores", only):
        answers = exact(pair, texts)
    del answers["kl"]  # zeros
    return answers


def plain(models: tuple[Any, Any], texts: Sequence[Text]) -> Answers:
    """(a) Both models' logits, and nothing done with them: a naive user's lower bound."""
    for _ in _padded(models, texts):
        pass
    return {}


def trl(models: tuple[Any, Any], texts: Sequence[Text]) -> Answers:
    """(b) As TRL's `selective_log_softmax`: the gathered logit minus the log-sum-exp, row by row."""
    answers: Answers = {name: [] for name in LOGPROBS}
    for batch, both, ids in _padded(models, texts):
        for name, logits in zip(LOGPROBS, both, strict=True):
            picked = logits.gather(-1, ids[..., None]).squeeze(-1)
            found = picked - torch.stack([torch.logsumexp(row, dim=-1) for row in logits])
            answers[name] += _scored(found, batch)
    return answers


def naive(models: tuple[Any, Any], texts: Sequence[Text]) -> Answers:
    """(c) KL as it is written down, from both models' whole log-softmax."""
    answers: Answers = {"kl": []}
    for batch, (policy, reference), _ in _padded(models, texts):
        a, b = policy.float().log_softmax(-1), reference.float().log_softmax(-1)
        answers["kl"] += _scored((a.exp() * (a - b)).sum(-1), batch)
    return answers


def ctranslate2(generators: tuple[Any, Any], tokenizer: Any) -> Contender:
    """(d) `score_batch` of both models in float32, with its own batching; sampled log-probabilities only.

    It takes tokens as strings; making them takes a thousandth of the time.
    """

    def run(texts: Sequence[Text]) -> Answers:
        tokens = [tokenizer.convert_ids_to_tokens(text.tokens.ids.tolist()) for text in texts]
        answers: Answers = {}
        for name, generator in zip(LOGPROBS, generators, strict=True):
            found = generator.score_batch(
                tokens, max_batch_size=CTRANSLATE2_BATCH_TOKENS, batch_type="tokens", max_input_length=0
            )
            answers[name] = [np.array(item.log_probs, dtype=np.float32) for item in found]
        return answers

    return run


@torch.inference_mode()
def _padded(
    models: tuple[Any, Any], texts: Sequence[Text]
) -> Iterator[tuple[Sequence[Text], tuple[Tensor, Tensor], Tensor]]:
    """Batches of 8 in the order of arrival, padded: texts, both models' logits, and the ids they predict."""
    device = models[0].device
    for first in range(0, len(texts), PADDED_BATCH):
        batch = texts[first : first + PADDED_BATCH]
        rows = [torch.from_numpy(text.tokens.ids).long() for text in batch]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        policy, reference = (
            model(input_ids=ids, attention_mask=mask.to(device), use_cache=False).logits for model in models
        )
        yield batch, (policy[:, :-1], reference[:, :-1]), ids[:, 1:]


def _scored(found: Tensor, batch: Sequence[Text]) -> list[np.ndarray]:
    """Of each row, the entries about scored tokens."""
    return [
        row[text.tokens.first_scored - 1 : len(text.tokens.ids) - 1].cpu().numpy()
        for row, text in zip(found, batch, strict=True)
    ]
