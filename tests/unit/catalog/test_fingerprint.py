import numpy as np
import pytest

from sluice.catalog.fingerprint import fingerprint_catalogue

IDS, CODES = ["a", "b", "c"], np.asarray([[0, 1], [2, 3], [4, 5]], dtype=np.int32)


def test_the_order_of_the_rows_and_the_type_of_the_codes_do_not_matter():
    own = fingerprint_catalogue(IDS, CODES)
    assert len(own) == 16
    assert fingerprint_catalogue(IDS[::-1], CODES[::-1]) == own
    assert fingerprint_catalogue(IDS, CODES.astype(np.int64)) == own


@pytest.mark.parametrize(
    ("ids", "codes"),
    [
        (["a", "b", "d"], CODES),
        (["a", "b"], CODES[:2]),
        (IDS, CODES[[1, 0, 2]]),
        (IDS, np.where(CODES == 5, 6, CODES)),
    ],
)
def test_other_items_or_codes_have_another(ids, codes):
    assert fingerprint_catalogue(ids, codes) != fingerprint_catalogue(IDS, CODES)
