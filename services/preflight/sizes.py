"""Numbers of the config against the number of items: candidates, codes, beams, cut-offs. All pure."""

import math
from collections.abc import Iterator

from sluice.services.config import RunConfig
from sluice.services.preflight.finding import Finding

_CUT_OFF = 10  # of HR@10 and NDCG@10, which choose checkpoints


def check_sizes(config: RunConfig, items: int, fits_codes: bool) -> Iterator[Finding]:
    """What cannot be, or makes no sense, with this many items.

    `fits_codes`: the semantic IDs are fitted, not the user's own.
    """
    yield from _candidates(config, items)
    if fits_codes:
        yield from _codes(config, items)
    width = config.evaluation.beam_width
    if width > items:
        yield _warning(
            "evaluation.beam_width", f"{width} beams", f"{items} items", f"set it to {max(_CUT_OFF, items)}"
        )
    if items <= _CUT_OFF:
        yield _warning(
            "data.source",
            f"{items} items, so that HR@{_CUT_OFF} is 1 for every policy",
            f"more than {_CUT_OFF} items",
            "give the whole catalogue, or a longer log",
        )


def _candidates(config: RunConfig, items: int) -> Iterator[Finding]:
    decode = config.rollout.decode
    candidates = decode.candidates
    if candidates <= items:
        return
    # Such an engine refuses every request; independent samples may repeat an item.
    decoding = decode.decoding(exclude_seen=config.data.exclude_seen)
    impossible = decoding.constrained and decoding.distinct > items
    yield Finding(
        field="rollout.decode.candidates",
        value=f"K = {candidates} candidates of kind {decode.kind}",
        bound=f"{items} items" + (", each at most once" if impossible else ", so that candidates repeat"),
        remedy=f"set it to {items} or less",
        **({} if impossible else {"exit_code": 0}),
    )


def _codes(config: RunConfig, items: int) -> Iterator[Finding]:
    sizes = config.data.semantic_ids.level_sizes
    if not sizes:  # they follow the catalogue
        return
    places = math.prod(sizes)
    shown = " x ".join(map(str, sizes))
    if places < items:
        yield _warning(
            "data.semantic_ids.level_sizes",
            f"{shown} = {places} codes, so that at least {items - places} items share theirs",
            f"{items} items",
            "give more levels or more codes a level",
        )
    elif max(sizes) > items:
        yield _warning(
            "data.semantic_ids.level_sizes",
            f"a level of {max(sizes)} codes, most of which stay unused",
            f"{items} items",
            f"set {shown} to smaller levels",
        )


def _warning(field: str, value: str, bound: str, remedy: str) -> Finding:
    return Finding(field=field, value=value, bound=bound, remedy=remedy, exit_code=0)
