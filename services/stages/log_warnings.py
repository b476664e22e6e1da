"""What a user should know of how the log was read: what was set apart, left out or set right on the way."""

from typing import Any

from sluice.catalog.data.schema import EXPOSURE

_LISTED = 3
_TEXTS = {
    "repeated_events": "{n} rows were left out: they repeat an event (same user, item and time, or a history "
    "and target that are known already)",
    "impressions": "{n} rows have no click: they are kept in impressions.parquet, and are no targets and in "
    "no history (data.source.unclicked)",
    "impressions_below_min_interactions": "{n} further rows without a click were left out, with users who "
    "have fewer than data.min_interactions",
    "users_without_attributes": "{n} users of the log have no attribute in data.source.users: the ranker "
    "takes them for strangers",
    "repeated_impressions": "{n} rows without a click were left out: they repeat another, or there was a "
    "click on that item at that time",
    "events_from_histories": "{n} events stand in histories alone: each has the time of the next event of "
    "its user that is a row's own",
    "ids_with_outer_spaces": "{n} rows of the log have ids with spaces around them: the spaces were taken "
    "off",
    "catalogue_ids_with_outer_spaces": "{n} rows of the catalogue have an item_id with spaces around it: "
    "the spaces were taken off",
    "timestamps_before_1990": "{n} timestamps lie before 1990, which may stand for a time that is not known",
    "ties_in_time": "{n} interactions have the user and time of the one before: they stay in the order of "
    "the log, which then decides what is history and what is target",
}


def list_log_warnings(manifest: dict[str, Any]) -> list[str]:
    """One sentence each, from the manifest of a prepared data set; earlier ones may lack what is counted."""
    log, counts = manifest.get("log", {}), manifest["counts"]
    warnings = [text.format(n=log[name]) for name, text in _TEXTS.items() if log.get(name)]
    with_click = counts.get("interactions_with", {}).get("click", 0)
    if with_click and (unsaid := counts["interactions"] - with_click):
        warnings.append(
            f"{unsaid} rows do not say whether there was a click, and count as interactions: write 0 where "
            "there was none"
        )
    warnings += [
        f"{counts['interactions'] - known} of {counts['interactions']} interactions "
        f"({1 - known / counts['interactions']:.1%}) have no {name}: they weigh nothing in weighted metrics"
        for name in EXPOSURE.names
        if (known := counts.get("interactions_with", {}).get(name, 0)) and known < counts["interactions"]
    ]
    warnings += [
        f"the column {column!r} holds lists of items and is not read: if they are what the user had before, "
        f"set data.source.columns.history to {column}"
        for column in log.get("unread_histories", ())
    ]
    if left_out := log.get("files_left_out"):
        more = f" and {len(left_out) - _LISTED} more" if len(left_out) > _LISTED else ""
        warnings.append(
            "files were not read, since their names begin with . or _ or end otherwise than data does: "
            f"{', '.join(left_out[:_LISTED])}{more}"
        )
    return warnings
