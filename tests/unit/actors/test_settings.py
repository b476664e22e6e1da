import pytest
from pydantic import ValidationError

from sluice.actors.settings import DecodeSettings


@pytest.mark.parametrize(
    "settings",
    [
        {"candidates": 5, "temperature": 0.7, "top_p": 0.9, "constrained": True},
        {"kind": "stochastic_beam", "candidates": 3},
    ],
)
def test_every_setting_of_the_decoding_is_handed_on(settings):
    decode = DecodeSettings(**settings)
    decoding = decode.decoding(exclude_seen=False)
    assert vars(decoding) == decode.model_dump() | {"constrained": bool(decode.constrained)}


@pytest.mark.parametrize(
    ("constrained", "exclude_seen", "expected"),
    [
        (None, True, True),
        (None, False, False),
        (False, True, False),
        (True, False, True),
    ],
)
def test_rollouts_are_constrained_where_consumed_items_are_excluded(constrained, exclude_seen, expected):
    decode = DecodeSettings(constrained=constrained)
    assert decode.decoding(exclude_seen=exclude_seen).constrained is expected


def test_a_kind_that_cannot_be_carried_out_is_refused_with_the_settings():
    with pytest.raises(ValidationError, match="beams take no temperature or top_p"):
        DecodeSettings(kind="beam", temperature=0.5)
