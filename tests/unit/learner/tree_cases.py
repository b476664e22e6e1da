"""Small decoders, catalogues and exact probabilities that the tests of tree decoding share."""

from functools import partial

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sluice.catalog.decoding import Decoding
from sluice.catalog.trie.vocabulary import Vocabulary
from tests.unit.learner.learner_cases import sharpen, tiny_llama, tiny_policy

LAYOUT = tiny_policy().layout  # tokens 3..6, 7..9, 10..14 of 15
ITEMS = np.array([[0, 0, 0], [0, 0, 4], [0, 2, 1], [1, 1, 1], [2, 0, 3], [2, 2, 2], [3, 1, 0], [3, 1, 1]])
HISTORIES = [[1, 3, 7, 10, 4, 8, 11], [1, 6, 9, 14], [1, 5, 7, 12]]
# Held to the catalogue, unless a test frees them.
beam = partial(Decoding, kind="beam", constrained=True)
sample = partial(Decoding, kind="sample", constrained=True)
stochastic_beam = partial(Decoding, kind="stochastic_beam", constrained=True)
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


def _model(kind, config):
    torch.manual_seed(2)
    model = kind._from_config(config, attn_implementation="sdpa").float().eval()
    with (
        torch.no_grad()
    ):  # biases are zero and norms one in a fresh model, which would hide that they are left out
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return sharpen(model)


def models():
    """Name -> a function that builds the model; the first four run layer by layer, the others through
    transformers.
    """
    return {
        "qwen3": lambda: sharpen(tiny_policy().model.eval()),
        "llama": lambda: sharpen(tiny_llama()),
        "qwen2": lambda: _model(Qwen2ForCausalLM, Qwen2Config(vocab_size=15, num_key_value_heads=2, **SIZES)),
        "mistral": lambda: _model(
            MistralForCausalLM,
            MistralConfig(vocab_size=15, num_key_value_heads=2, sliding_window=None, **SIZES),
        ),
        "gpt2": lambda: _model(
            GPT2LMHeadModel,
            GPT2Config(vocab_size=15, n_embd=16, n_inner=24, n_layer=2, n_head=4, n_positions=64),
        ),
        "phi": lambda: _model(PhiForCausalLM, PhiConfig(vocab_size=15, partial_rotary_factor=0.5, **SIZES)),
    }


def vocabulary():
    return Vocabulary.of(ITEMS, LAYOUT)


def padded(histories=None, filler=0):
    """Right-padded token rows and their lengths."""
    histories = HISTORIES if histories is None else histories
    lengths = torch.tensor([len(history) for history in histories])
    rows = torch.full((len(histories), int(lengths.max())), filler, dtype=torch.long)
    for row, history in enumerate(histories):
        rows[row, : len(history)] = torch.tensor(history)
    return rows, lengths


def next_log_probs(model, history, prefixes, allowed_items=None, temperature=1.0):
    """[P, V] float64 log-probs after each prefix, one plain row per prefix, over the tokens that lead to the
    items.
    """
    rows = torch.tensor([[*history, *prefix] for prefix in prefixes])
    with torch.no_grad():
        logits = model(input_ids=rows).logits[:, -1].double() / temperature
    if allowed_items is not None:
        for at, prefix in enumerate(prefixes):
            follow = {
                item[len(prefix)] for item in allowed_items if list(item[: len(prefix)]) == list(prefix)
            }
            logits[at, [token for token in range(logits.shape[1]) if token not in follow]] = -torch.inf
    return torch.log_softmax(logits, dim=-1).numpy()


def token_log_probs(model, history, sequences, allowed_items=None, temperature=1.0):
    """[S, L] float64 log-probs of each token of the sequences."""
    sequences = [list(sequence) for sequence in sequences]
    columns = []
    for level in range(len(sequences[0])):
        log_p = next_log_probs(model, history, [one[:level] for one in sequences], allowed_items, temperature)
        columns.append(log_p[np.arange(len(sequences)), [one[level] for one in sequences]])
    return np.stack(columns, axis=1)
