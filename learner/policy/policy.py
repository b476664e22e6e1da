"""The policy: a Hugging Face causal LM, its tokenizer and where the semantic-ID tokens sit in its vocabulary.

A policy directory is a plain Hugging Face directory (config, safetensors, tokenizer) that transformers and
vLLM load as it is. Its config carries two entries of ours. With `sluice_level_sizes` and the tokenizer the
token layout is recovered, and each must fit the other. `sluice_catalogue` is the fingerprint of the catalogue
whose items the tokens stand for; a policy of an earlier release has none, and is taken to fit.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging as transformers_logging

from sluice.catalog.errors import PolicyError
from sluice.catalog.files import directory_aside
from sluice.catalog.tokens import TokenLayout, token_name
from sluice.learner.scoring.shared_prefix import branch_log_probs
from sluice.learner.settings import PolicySettings

LEVEL_SIZES_KEY = "sluice_level_sizes"
CATALOGUE_KEY = "sluice_catalogue"
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A model with the tokenizer and the layout that belong to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    layout: TokenLayout


def build_policy(
    settings: PolicySettings, level_sizes: tuple[int, ...], max_positions: int, seed: int
) -> Policy:
    """A fresh float32 policy of Qwen3 architecture that knows nothing but semantic-ID tokens.

    `max_positions` is the longest row in tokens: BOS, the history and the item to predict.
    """
    layout = TokenLayout.fresh(tuple(level_sizes))
    config = Qwen3Config(
        vocab_size=layout.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.feed_forward_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        head_dim=settings.hidden_size // settings.heads,
        max_position_embeddings=max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        tie_word_embeddings=True,
        initializer_range=settings.initializer_range,
        pad_token_id=layout.pad,
        bos_token_id=layout.bos,
        eos_token_id=layout.eos,
        attn_implementation="sdpa",  # type: ignore[call-arg]  # taken by every config, declared by none
        dtype=torch.float32,
    )
    setattr(config, LEVEL_SIZES_KEY, list(level_sizes))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).float().eval()
    return Policy(model=model, tokenizer=_fresh_tokenizer(layout.level_sizes), layout=layout)


def adapt_policy(base_dir: str | Path, level_sizes: tuple[int, ...], seed: int = 0) -> Policy:
    """An existing causal LM with one new token per level and code, in float32.

    The new embeddings are drawn around the mean of the old ones with their spread. A base without a BOS
    starts prompts with its EOS, which separated its documents; a base without a PAD pads with EOS too, since
    padding is always masked.

    Raises:
        PolicyError: the directory is no causal LM that Sluice can train, or was adapted to other level sizes
            before.
    """
    level_sizes = tuple(level_sizes)
    model, tokenizer = _load_parts(base_dir)
    model = model.float()
    already = getattr(model.config, LEVEL_SIZES_KEY, None)
    if already is not None and tuple(already) != level_sizes:
        raise PolicyError(
            f"{base_dir} already has semantic-ID tokens for level sizes {list(already)}, not "
            f"{list(level_sizes)}: start from the model as it was before, or prepare the data with those "
            "level sizes"
        )
    if tokenizer.eos_token_id is None:
        raise PolicyError(
            f"the tokenizer in {base_dir} has no EOS token: set `eos_token` in its tokenizer_config.json"
        )
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.eos_token
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    known = len(tokenizer)
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in _names(level_sizes)])
    _grow_embeddings(model, known, len(tokenizer), seed)
    model.config.bos_token_id, model.config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    setattr(model.config, LEVEL_SIZES_KEY, list(level_sizes))
    return _policy(model, tokenizer, base_dir)


def load_policy(directory: str | Path, catalogue: str | None = None) -> Policy:
    """Read a policy directory.

    `catalogue` is the fingerprint (`sluice.catalog.fingerprint`) of the catalogue that it is to be used with;
    None: any.

    Raises:
        PolicyError: it cannot be read, its tokenizer does not fit its level sizes, its architecture cannot be
            trained on shared prefixes, or it was made for another catalogue.
    """
    policy = _policy(*_load_parts(directory), directory)
    own = getattr(policy.model.config, CATALOGUE_KEY, None)
    if catalogue is not None and own is not None and own != catalogue:
        raise PolicyError(
            f"the policy in {directory} was made for another catalogue ({own}) than that of this data set "
            f"({catalogue}), so that its tokens mean other items: give a policy that was trained on this "
            "data set, or the data set that this one was trained on"
        )
    return policy


def mark_catalogue(policy: Policy, catalogue: str) -> None:
    """Have the policy carry the fingerprint of the catalogue that it is trained for."""
    setattr(policy.model.config, CATALOGUE_KEY, catalogue)


def save_policy(policy: Policy, directory: str | Path) -> None:
    """Write the policy so that a reader of `directory` finds all of it or nothing, never a part.

    A policy that is there already is moved aside only when the new one is complete.
    """
    with directory_aside(Path(directory)) as fresh:
        with _no_progress_bars():
            policy.model.save_pretrained(fresh)
        policy.tokenizer.save_pretrained(fresh)


def move_model(model: PreTrainedModel, device: torch.device | str) -> PreTrainedModel:
    """The model, moved in place. `PreTrainedModel.to` has no types; it adds a check of quantized models."""
    return torch.nn.Module.to(model, device)


def _load_parts(directory: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise PolicyError(
            f"{directory} is no policy directory: it has no config.json; give a Hugging Face model directory"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        with _no_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(
                directory, local_files_only=True, attn_implementation="sdpa", dtype="auto"
            )
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise PolicyError(f"{directory} cannot be loaded as a causal LM with a tokenizer: {error}") from error
    return model.eval(), cast(PreTrainedTokenizerFast, tokenizer)


def _policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: str | Path) -> Policy:
    layout = _recover_layout(model, tokenizer, directory)
    _check_shared_prefix(model, layout, directory)
    return Policy(model=model, tokenizer=tokenizer, layout=layout)


def _recover_layout(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: str | Path
) -> TokenLayout:
    sizes = getattr(model.config, LEVEL_SIZES_KEY, None)
    if (
        not isinstance(sizes, list | tuple)
        or not sizes
        or not all(isinstance(size, int) and size > 0 for size in sizes)
    ):
        raise PolicyError(
            f"config.json in {directory} has {LEVEL_SIZES_KEY} {sizes!r}, not a list of codes per level: "
            "this model has no semantic-ID tokens; name it as policy.base, and `sluice pretrain` adds them"
        )
    vocabulary = tokenizer.get_vocab()
    offsets = tuple(vocabulary.get(token_name(level, 0), -1) for level in range(len(sizes)))
    for level, (size, offset) in enumerate(zip(sizes, offsets, strict=True)):
        for code in range(size):
            token = vocabulary.get(token_name(level, code))
            if token is None or token != offset + code:
                raise PolicyError(
                    f"the tokenizer in {directory} gives {token_name(level, code)} the id {token}, but the "
                    "codes of a level need consecutive ids: it does not fit "
                    f"{LEVEL_SIZES_KEY} {list(sizes)} in config.json"
                )
    special = {"pad": tokenizer.pad_token_id, "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    missing = [name for name, token in special.items() if token is None]
    if missing:
        raise PolicyError(
            f"the tokenizer in {directory} has no {', '.join(missing)} token: set it in its "
            "tokenizer_config.json"
        )
    vocab_size = _weight_of(model.get_input_embeddings()).shape[0]
    highest = max(
        *special.values(), *(offset + size - 1 for offset, size in zip(offsets, sizes, strict=True))
    )
    if highest >= vocab_size:
        raise PolicyError(
            f"the tokenizer in {directory} uses token id {highest}, but the model has {vocab_size} "
            "embeddings: they do not belong together"
        )
    return TokenLayout(level_sizes=tuple(sizes), level_offsets=offsets, vocab_size=vocab_size, **special)


def _names(level_sizes: tuple[int, ...]) -> list[str]:
    return [token_name(level, code) for level, size in enumerate(level_sizes) for code in range(size)]


def _fresh_tokenizer(level_sizes: tuple[int, ...]) -> PreTrainedTokenizerFast:
    """Tokens in the order of `TokenLayout.fresh`; text is read as a run of `<...>` words."""
    vocabulary = {name: index for index, name in enumerate([PAD, BOS, EOS, *_names(level_sizes)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"<[^<>]*>"), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)


@torch.no_grad()
def _grow_embeddings(model: PreTrainedModel, known: int, needed: int, seed: int) -> None:
    """Make room for tokens `known..needed-1` and draw their embeddings around those of the tokens before.

    Many bases have more embeddings than tokens; those spare rows are untrained, so they are drawn like new
    ones.
    """
    if needed == known:
        return
    if needed > _weight_of(model.get_input_embeddings()).shape[0]:
        model.resize_token_embeddings(needed, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = {id(weight): weight for weight in map(_weight_of, embeddings)}  # tied ones once
    for weight in weights.values():
        old = weight[:known]
        noise = torch.randn((needed - known, weight.shape[1]), generator=generator, dtype=weight.dtype)
        weight[known:needed] = old.mean(dim=0) + noise * old.std(dim=0)


def _weight_of(embedding: nn.Module) -> torch.Tensor:
    weight = embedding.weight
    assert isinstance(weight, torch.Tensor), f"{type(embedding).__name__} has no weight"
    return weight


@torch.no_grad()
def _check_shared_prefix(model: PreTrainedModel, layout: TokenLayout, directory: str | Path) -> None:
    """Refuse an architecture that does not honour the masks and positions of shared prefixes, or its head.

    Branches that are scored behind a shared history must have the log-probs of the same rows alone.
    """
    first_L = torch.tensor(layout.level_offsets)
    branches_SL = torch.stack([first_L, first_L + torch.tensor(layout.level_sizes) - 1])
    history_T = torch.cat([torch.tensor([layout.bos]), first_L])
    remedy = (
        "Sluice trains causal LMs of Llama or Qwen style: sdpa attention, position ids, a linear output head"
    )
    try:
        scores = branch_log_probs(model, history_T[None], torch.tensor([len(history_T)]), branches_SL[None])
        rows = torch.cat([history_T.expand(2, -1), branches_SL], dim=1)
        logits = model(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False).logits.float()
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise PolicyError(
            f"{type(model).__name__} in {directory} fails on shared prefixes ({error}). {remedy}"
        ) from error
    log_p = torch.log_softmax(logits[:, len(history_T) - 1 : -1], dim=-1)
    expected_SL = log_p.gather(-1, branches_SL[..., None])[..., 0]
    gap = (scores.log_probs_BSL[0].float() - expected_SL).abs().max().item()
    bound = 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1
    if not gap <= bound:
        raise PolicyError(
            f"{type(model).__name__} in {directory} scores branches of a shared prefix {gap:.2g} nats off "
            f"(bound {bound}). {remedy}"
        )


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Progress is shown by the caller, in one place."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
