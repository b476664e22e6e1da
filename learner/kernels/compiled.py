"""torch.compile of what lies between the matrix products of a decoder layer: feed-forward and norms.

The attention over packed rows depends on the lengths of the batch's histories, so a graph of it would be made
anew for every batch. Feed-forward and norms see rows of tokens and nothing else: one graph with a free number
of rows does for all batches.
"""

from transformers import PreTrainedModel

from sluice.catalog.errors import PolicyError

_PARTS = ("mlp", "input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")


def compile_layers(model: PreTrainedModel, backend: str = "inductor") -> int:
    """Compile the known parts of every layer in place, and return how many; parameters keep their names.

    The compiling itself happens at the first forward and backward, and takes a minute or two on a CPU, where
    it needs a C++ compiler.

    Raises:
        PolicyError: the decoder has none of the parts.
    """
    parts = [
        module
        for layer in getattr(model.get_decoder(), "layers", ())
        for name, module in layer.named_modules()
        if name in _PARTS
    ]
    if not parts:
        raise PolicyError(
            f"learner.compile knows no part of a {type(model).__name__} to compile (it looks for "
            f"{', '.join(_PARTS)} in its layers): set learner.compile to false"
        )
    for module in parts:
        module.compile(dynamic=True, backend=backend)
    return len(parts)
