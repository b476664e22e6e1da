"""What every engine refuses, before anything is generated or loaded: requests and weights that cannot be
right.
"""

from collections.abc import Collection, Mapping, Sequence

from sluice.actors.engines.engine import GenerateRequest
from sluice.catalog.decoding import Decoding
from sluice.catalog.errors import DataError, PolicyError
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.policy.packed_weights import PackedWeights


def check_requests(
    requests: Sequence[GenerateRequest],
    in_flight: Collection[str],
    decoding: Decoding,
    vocabulary: Vocabulary,
    max_prompt_tokens: int,
) -> None:
    """Raises DataError when a prompt is empty, too long or holds a foreign token, or too few items are left.

    A request whose id is `in_flight` or another's is a mistake of the caller: ValueError.
    """
    names: set[str] = set()
    for request in requests:
        if request.request_id in in_flight or request.request_id in names:
            raise ValueError(f"request {request.request_id} is already in flight")
        names.add(request.request_id)
        _check_request(request, decoding, vocabulary, max_prompt_tokens)


def _check_request(
    request: GenerateRequest, decoding: Decoding, vocabulary: Vocabulary, max_prompt_tokens: int
) -> None:
    name, length, layout, items = (
        request.request_id,
        len(request.prompt),
        vocabulary.layout,
        vocabulary.trie.items,
    )
    if not 1 <= length <= max_prompt_tokens:
        raise DataError(
            f"request {name}: prompt of {length} tokens; this engine was started for 1 to "
            f"{max_prompt_tokens}, so cut the history or start the engine for longer prompts"
        )
    low, high = int(request.prompt.min()), int(request.prompt.max())
    if low < 0 or high >= layout.vocab_size:
        raise DataError(
            f"request {name}: prompt holds token {low if low < 0 else high}; the policy has tokens 0 to "
            f"{layout.vocab_size - 1}"
        )
    needed = decoding.distinct
    available = (
        vocabulary.trie.items_without(request.excluded)
        if decoding.constrained
        else layout.vocab_size**layout.levels
    )
    if available < needed:
        raise DataError(
            f"request {name}: {needed} distinct candidates wanted and {available} to choose from (catalogue "
            f"of {items} items less the excluded ones); lower rollout.decode.candidates or exclude fewer "
            "items"
        )


def check_weights(weights: PackedWeights, known: Mapping[str, tuple[int, ...]], tied: bool) -> None:
    """Raises PolicyError unless the weights are those of the parameters `known` (name -> shape).

    `tied`: the output layer shares the embedding's weights, so it may be absent. Their bytes are not looked
    at: a thread verifies those from their arrival on
    (`sluice.learner.policy.packed_weights.UnverifiedWeights`).
    """
    sent = {entry.name: entry.shape for entry in weights.manifest}
    for name, shape in sent.items():
        if known.get(name) != shape:
            raise PolicyError(
                f"weights version {weights.version} hold {name} of shape {shape} where the engine's policy "
                f"has {known.get(name, 'none')}; learner and engine must start from the same policy"
            )
    absent = [name for name in known if name not in sent and not (tied and name == "lm_head.weight")]
    if absent:
        raise PolicyError(
            f"weights version {weights.version} lack {len(absent)} parameters, {absent[0]} first; publish "
            f"all of the policy's"
        )


def check_catalogue(later: Vocabulary, before: Vocabulary) -> None:
    """Raises DataError unless the version is higher, PolicyError unless it has the same tokens."""
    if later.version <= before.version:
        raise DataError(
            f"catalogue version {later.version} can't replace version {before.version}: versions must "
            f"increase"
        )
    if later.layout != before.layout:
        raise PolicyError(
            f"catalogue version {later.version} is laid out for levels {list(later.layout.level_sizes)}, the "
            f"engine's policy has {list(before.layout.level_sizes)}: lay it out with the policy's own layout"
        )
