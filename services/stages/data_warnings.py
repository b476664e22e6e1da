"""What a user should know of a data set that was prepared, told from its manifest."""

from typing import Any

from sluice.services.stages.log_warnings import list_log_warnings

REJECTED = "rejected.jsonl"
_MANY = 0.5  # share of the items with codes in common from which k-means tells too little


def describe_codes(manifest: dict[str, Any]) -> str:
    """In a sentence: the codes of each level, and how many items only the last one tells apart."""
    items, shared, levels = _codes(manifest)
    if shared == 0:
        return f"semantic IDs: {items} items, no two with the same codes, levels of {_listed(levels)} codes"
    return (
        f"semantic IDs: {shared} of {items} items share their codes on the levels of {_listed(levels[:-1])} "
        f"with others; a last level of {levels[-1]} tells them apart"
    )


def list_warnings(manifest: dict[str, Any]) -> tuple[str, ...]:
    """A sentence each, with the remedy; the manifest may be of an earlier version, which counted less."""
    counts, warnings = manifest["counts"], []
    repeats = counts["repeated_targets"]
    hidden = {split: repeats[split] for split in ("valid", "test") if repeats[split]}
    if hidden and manifest["settings"]["exclude_seen"]:
        listed = ", ".join(f"{n} of {counts['examples'][split]} {split}" for split, n in hidden.items())
        warnings.append(
            f"data.exclude_seen keeps consumed items out of the ranking, but the targets of {listed} "
            f"examples were consumed before and can never be hit: set data.exclude_seen=false if people come "
            "back to items"
        )
    warnings += [
        f"{rejected['bad']} of {rejected['rows']} rows of the {table} were left out; {REJECTED} lists them"
        for table, rejected in manifest["rejected"].items()
        if rejected["bad"]
    ]
    if late := counts.get("interactions_before_an_earlier_part", 0):
        warnings.append(
            f"{late} of {counts['interactions']} interactions are earlier than one in an earlier part of the "
            "same user: parts go before time, so histories are not in order of time there, and what is "
            "trained on may be later than what is tested"
        )
    if few := counts["users_below_min_interactions"]:
        warnings.append(
            f"{few} users with {counts['interactions_below_min_interactions']} interactions were left out: "
            f"they have fewer than data.min_interactions {manifest['settings']['min_interactions']}"
        )
    if unseen := counts.get("items_without_pretrain_interactions", 0):
        warnings.append(
            f"{unseen} of {counts['items']} items have no interaction in the pretrain part: the policy has "
            "never seen them, and nothing but their attributes can have made their codes"
        )
    items, shared, levels = _codes(manifest)
    if shared > _MANY * items:
        warnings.append(
            f"most items ({shared} of {items}) share their codes before the last level, which only numbers "
            f"them: raise data.semantic_ids.level_sizes above {_listed(levels[:-1])}, or leave it out, so "
            "that the sizes follow the catalogue"
        )
    return (*warnings, *list_log_warnings(manifest))


def _codes(manifest: dict[str, Any]) -> tuple[int, int, list[int]]:
    """The number of items, how many of them share codes before the last level, and the level sizes."""
    counts = manifest["counts"]
    return counts["items"], counts["items_with_shared_codes"], manifest["level_sizes"]


def _listed(levels: list[int]) -> str:
    return " x ".join(map(str, levels))
