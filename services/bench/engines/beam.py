"""Constrained beams: the tree decoder against transformers `generate` with `num_beams` and
`prefix_allowed_tokens_fn`.

Same policy (4 layers, d = 128; on a GPU 8 and 512), same prompts, same catalogue; both give the W likeliest
items by the free policy's log-probs, and a run whose results differ fails. The prefix function looks the
allowed tokens up in a dictionary of prefixes, as MiniOneRec-style code does.
"""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import RunError
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.decoding.tree import Candidates, TreeDecoder
from sluice.learner.policy.policy import Policy, build_policy, move_model
from sluice.learner.settings import PolicySettings
from sluice.services.bench.harness import BenchOptions, median_seconds, print_note, time_alternately
from sluice.services.bench.support import device

LEVEL_SIZES = (256, 256, 256)
_NATS = 1e-3  # float32 sums of two programs over scores of tens of nats


def run(options: BenchOptions) -> dict[str, Any]:
    """`rows[]` with W, speedup (null where transformers is not run) and prompts per second of both."""
    prompts, history, items = (8, 20, 2000) if options.quick else (32, 53, 12000)
    policy, vocabulary = sharp_policy(options.seed), random_catalogue(items, options.seed)
    move_model(policy.model, device.bench_device())
    histories_BT = random_histories(vocabulary, prompts, history, options.seed)
    lengths_B = torch.full((prompts,), histories_BT.shape[1])
    decoder = TreeDecoder(policy.model, vocabulary)
    follow = _prefixes(vocabulary)
    rows = []
    for width, compared in ((20, True), (50, True), (256, False)):

        def tree(width: int = width) -> Candidates:
            decoding = Decoding(kind="beam", candidates=width, constrained=True)
            return decoder.beams(decoder.prefill(histories_BT, lengths_B), decoding)

        def hub(width: int = width) -> tuple[np.ndarray, np.ndarray]:
            return _generate(policy.model, histories_BT, width, follow)

        sides = {"tree": tree, "transformers": hub} if compared else {"tree": tree}
        if compared:
            _check_equal(tree(), *hub())
        seconds = median_seconds(time_alternately(sides, options.repeats))
        rate = {name: prompts / value for name, value in seconds.items()}
        print_note(
            f"W={width}: " + ", ".join(f"{name} {value:.1f} prompts/s" for name, value in rate.items())
        )
        rows.append(
            {
                "W": width,
                "speedup": rate["tree"] / rate["transformers"] if compared else None,
                "tree_prompts_per_s": rate["tree"],
                "transformers_prompts_per_s": rate.get("transformers"),
            }
        )
    return {"prompts": prompts, "history_tokens": histories_BT.shape[1], "items": items, "rows": rows}


def sharp_policy(seed: int) -> Policy:
    """A fresh policy with weights so large that its predictions are far from uniform, as those of a trained
    one.
    """
    size = device.policy_settings().hidden_size
    return build_policy(
        device.policy_settings(initializer_range=0.2 * (128 / size) ** 0.5), LEVEL_SIZES, 256, seed
    )


def random_catalogue(items: int, seed: int) -> Vocabulary:
    """Random distinct codes."""
    flat = np.random.default_rng(seed).choice(np.prod(LEVEL_SIZES), size=items, replace=False)
    codes = np.stack(np.unravel_index(flat, LEVEL_SIZES), axis=1)
    return Vocabulary.of(codes, build_policy(PolicySettings(layers=1), LEVEL_SIZES, 8, 0).layout)


def random_histories(vocabulary: Vocabulary, prompts: int, history: int, seed: int) -> torch.Tensor:
    """Token ids `[prompts, 1 + 3 * history]`."""
    drawn = np.random.default_rng(seed + 1).integers(0, vocabulary.trie.items, (prompts, history))
    rows = [vocabulary.layout.prompt(vocabulary.item_tokens, row) for row in drawn]
    return torch.from_numpy(np.stack(rows))


def _prefixes(vocabulary: Vocabulary) -> dict[tuple[int, ...], list[int]]:
    follow: dict[tuple[int, ...], set[int]] = {}
    for item in vocabulary.item_tokens.tolist():
        for level, token in enumerate(item):
            follow.setdefault(tuple(item[:level]), set()).add(token)
    return {prefix: sorted(tokens) for prefix, tokens in follow.items()}


def _generate(
    model: PreTrainedModel, histories_BT: torch.Tensor, width: int, follow: dict[tuple[int, ...], list[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[B, W, L]` and scores `[B, W]` by transformers."""
    histories_BT = histories_BT.to(model.device)
    prompts, length = histories_BT.shape
    generate: Any = model.generate  # typed for a model that is more than a PreTrainedModel
    output = generate(
        histories_BT,
        attention_mask=torch.ones_like(histories_BT),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=len(LEVEL_SIZES),
        do_sample=False,
        length_penalty=0.0,  # the score is the sum of the log-probs
        prefix_allowed_tokens_fn=lambda _, sequence: follow[tuple(sequence[length:].tolist())],
        return_dict_in_generate=True,
        output_scores=True,
    )
    tokens = output.sequences[:, length:].view(prompts, width, -1)
    return tokens.cpu().numpy(), output.sequences_scores.view(prompts, width).cpu().numpy()


def _check_equal(ours: Candidates, tokens_BWL: np.ndarray, scores_BW: np.ndarray) -> None:
    """The same scores place by place, and the same sequences except where two scores are equal to
    rounding.
    """
    off = float(np.abs(ours.log_probs_BW - scores_BW).max())
    if not off <= _NATS:
        raise RunError(f"tree beams and transformers' differ by up to {off:.2g} nats in the score of a place")
    place_B, place_W = np.nonzero((ours.tokens_BWL != tokens_BWL).any(axis=2))
    for prompt, at in zip(place_B.tolist(), place_W.tolist(), strict=True):
        same = (tokens_BWL[prompt] == ours.tokens_BWL[prompt, at]).all(axis=1)
        theirs = scores_BW[prompt, same] if same.any() else scores_BW[prompt, -1:]
        if abs(float(theirs[0]) - float(ours.log_probs_BW[prompt, at])) > _NATS:
            raise RunError(
                f"prompt {prompt}: tree beam {at} is another sequence than transformers' without a tie"
            )
