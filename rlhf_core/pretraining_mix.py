"""The pretraining mix: language modelling on texts beside PPO (Ouyang et al. 2022, PPO-ptx)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf_core.causal_lm import CausalLM
from rlhf_core.chunked_logprobs import chunked_logprobs
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.errors import EmptyInput, InputTooLong
from rlhf_core.experience import TrainablePolicy, response_hidden
from rlhf_core.order import text_indices
from rlhf_core.rollout import Rollout

TokenIds = list[int]


def tokenize_texts(policy: TrainablePolicy, texts: Sequence[str], config: PPOConfig) -> list[TokenIds]:
    """The first `data.ptx_max_tokens` tokens of each text; none without `loss.ptx_coefficient`.

    Raises:
        EmptyInput: a text has no token that another one precedes, or there is no text.
        InputTooLong: what is left of a text exceeds the model's context.
    """
    if not config.loss.ptx_coefficient:
        return []
    if not texts:
        raise EmptyInput("loss.ptx_coefficient needs texts, and there is none")
    with policy.policy() as model:
        context = model.context
    found = [policy.codec.encode(text)[: config.data.ptx_max_tokens] for text in texts]
    for index, ids in enumerate(found):
        if len(ids) < 2:
            raise EmptyInput(
                f"ptx text {index} has {len(ids)} of the 2 tokens it needs: nothing predicts the first"
            )
        if len(ids) > context:
            raise InputTooLong(
                f"ptx text {index}: {len(ids)} tokens are more than the model's context of {context}; "
                f"lower data.ptx_max_tokens ({config.data.ptx_max_tokens})"
            )
    return found


def texts_of(
    minibatch: int, texts: Sequence[TokenIds], config: PPOConfig, *, steps_done: int
) -> list[TokenIds]:
    """Those of minibatch number `minibatch` (from 0, all epochs counted) of the step after `steps_done`."""
    if not texts:
        return []
    options = config.optimization
    number = steps_done * options.epochs * options.minibatches + minibatch + 1
    chosen = text_indices(len(texts), batch=options.ptx_batch_size, minibatch=number, seed=config.seed)
    return [texts[index] for index in chosen]


def text_logprobs(model: CausalLM, texts: Sequence[TokenIds]) -> Float[Tensor, " tokens"]:
    """log π of every token but each text's first, in nats at temperature 1, with a gradient."""
    batch = as_rollout(texts, model.device)
    return chunked_logprobs(
        response_hidden(model, batch),
        model.logits,
        batch.response_ids[batch.response_mask],
        weights=[weight for weight in model.head.parameters() if weight.requires_grad],
    ).logprob


def as_rollout(texts: Sequence[TokenIds], device: torch.device) -> Rollout:
    """Each text as a prompt of one token and a response, which is what is scored and packed."""
    ids = pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    column = torch.arange(ids.shape[1])
    real = column < torch.tensor([len(text) for text in texts])[:, None]
    return Rollout(
        input_ids=ids.to(device),
        attention_mask=real.long().to(device),
        position_ids=column.expand(ids.shape).to(device),
        response_mask=real[:, 1:].to(device),
        sampled_logprob=torch.zeros(real[:, 1:].shape, device=device),
        ended=torch.zeros(len(texts), dtype=torch.bool, device=device),
        prompt_width=1,
    )
