import pytest

from sluice.catalog.decoding import PLAIN_POLICY, Decoding


@pytest.mark.parametrize(
    ("kind", "sequences", "distinct", "is_drawn"),
    [("sample", 8, 1, True), ("beam", 8, 8, False), ("stochastic_beam", 9, 8, True)],
)
def test_what_a_kind_of_decoding_needs(kind, sequences, distinct, is_drawn):
    decoding = Decoding(kind=kind, candidates=8)
    assert (decoding.sequences, decoding.distinct, decoding.is_drawn) == (sequences, distinct, is_drawn)


@pytest.mark.parametrize("change", [{"temperature": 0.7}, {"top_p": 0.9}])
def test_beams_are_exact(change):
    with pytest.raises(ValueError, match="beams take no temperature or top_p"):
        Decoding(kind="beam", candidates=4, **change)


def test_stochastic_beams_are_drawn_from_all_sequences():
    with pytest.raises(ValueError, match=r"top_p is 0.9.*leave it at 1.0"):
        Decoding(kind="stochastic_beam", candidates=4, top_p=0.9)
    assert Decoding(kind="stochastic_beam", candidates=4, temperature=0.7).temperature == 0.7
    assert Decoding(candidates=4, top_p=0.9, temperature=0.7).top_p == 0.9


def test_the_plain_policy_is_free_and_at_temperature_1():
    assert (PLAIN_POLICY.temperature, PLAIN_POLICY.top_p, PLAIN_POLICY.constrained) == (1.0, 1.0, False)
