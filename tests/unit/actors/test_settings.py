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
    assert vars(decode.decoding()) == decode.model_dump()


def test_a_kind_that_cannot_be_carried_out_is_refused_with_the_settings():
    with pytest.raises(ValidationError, match="beams take no temperature or top_p"):
        DecodeSettings(kind="beam", temperature=0.5)
