"""Settings that would do nothing in a run, by what the rest of its config says. Imports no torch.

What a group of settings can tell by itself its own validators refuse (`CorrectionSettings`, `GateSettings`,
`SelfPairs`). Here is what depends on the learner, the rollouts or the catalogue. A setting that is left at
its default is never refused.
"""

from collections.abc import Iterator
from typing import Any, Literal

from sluice.catalog.settings import Settings


def changed(settings: Settings, *names: str) -> list[str]:
    """Those of the fields that are there and differ from their defaults."""
    fields = type(settings).model_fields
    return [
        name
        for name in names
        if name in fields and getattr(settings, name) != fields[name].get_default(call_default_factory=True)
    ]


def check_effect(
    objective: Any,
    *,
    updates_per_batch: int,
    kind: Literal["sample", "beam", "stochastic_beam"],
    candidates: int,
    constrained: bool,
) -> None:
    """Refuse settings of an objective that change nothing under this learner and these rollouts.

    Raises:
        ValueError: there is one; the message names it, the reason and the remedy.
    """
    for part, place in _parts(objective):
        _check_ratio(part, place, updates_per_batch)
        if changed(part, "per_prompt") and part.per_prompt > (most := _most_pairs(part, candidates)):
            raise ValueError(
                f"{place}.per_prompt {part.per_prompt} is more than the {most} pairs that {candidates} "
                f"candidates can make: set it to {most} or less, or raise rollout.decode.candidates"
            )
        if kind != "stochastic_beam" and changed(part, "inclusion_weights"):
            raise ValueError(
                f"{place}.inclusion_weights weighs the members of stochastic beams, and rollout.decode.kind "
                f"is {kind}: remove it, or set kind to stochastic_beam"
            )
        if constrained and changed(part, "invalid_margin"):
            raise ValueError(
                f"{place}.invalid_margin is what a hallucination costs, and constrained rollouts have none: "
                "remove it, or set rollout.decode.constrained to false"
            )
        for reward in getattr(part, "rewards", ()):
            if reward.type == "diversity" and reward.tokens is None and kind != "sample":
                raise ValueError(
                    f"the diversity reward of {place} compares whole items, and those of a {kind} group "
                    "are all different: give tokens, the length of the prefix to compare, or remove it"
                )


def check_prefixes(objective: Any, levels: int) -> None:
    """Refuse rewards on more tokens than an item has.

    Raises:
        ValueError: there is one.
    """
    for part, place in _parts(objective):
        for reward in getattr(part, "rewards", ()):
            tokens = getattr(reward, "tokens", None)
            if tokens is not None and tokens > levels:
                raise ValueError(
                    f"the {reward.type} reward of {place} compares the first {tokens} tokens, and items have "
                    f"{levels}: set its tokens to {levels} or less"
                )


def _most_pairs(part: Any, candidates: int) -> int:
    """Preference pairs that a prompt can have at most."""
    if part.type == "logged_over_generated":
        return candidates
    if part.type == "self_generated":  # the best ones before the others
        return candidates**2 // 4
    members = candidates + int(part.ground_truth)
    return members * (members - 1) // 2


def _parts(objective: Any) -> Iterator[tuple[Any, str]]:
    """The groups of settings of an objective that others bear on, with their names in a config."""
    yield objective, "objective"
    for name in ("grpo", "pairs"):
        if hasattr(objective, name):
            yield getattr(objective, name), f"objective.{name}"


def _check_ratio(part: Any, place: str, updates_per_batch: int) -> None:
    """One update on a batch that is its own old policy has ratio 1: there is nothing to clip."""
    own_start = getattr(part, "old_policy", "batch_start") == "batch_start"
    if updates_per_batch > 1 or not own_start:
        return
    idle = changed(part, "clip", "value_clip", "clip_low", "clip_high", "early_clip_margin")
    if getattr(part, "ratio", None) == "gspo":
        idle.append("ratio gspo")
    if idle:
        remedies = "raise learner.updates_per_batch" + (
            ", or set old_policy to behaviour" if hasattr(part, "old_policy") else ""
        )
        raise ValueError(
            f"{place}.{idle[0]} has no effect: with one update per batch the policy is compared with itself, "
            f"so that every ratio is 1 and every value is where it was; {remedies}, or remove it"
        )
