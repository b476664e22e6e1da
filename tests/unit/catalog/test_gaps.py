"""Gaps in histories: how many, where, and the same ones for the same prompt."""

import numpy as np
import pytest

from sluice.catalog.gaps import NO_GAPS, Gaps, drop_items


def test_thinning_loses_at_most_its_share_and_keeps_the_order():
    generator = np.random.default_rng(0)
    rows = np.arange(1000)
    lost = [1 - len(drop_items(rows, 0.4, generator, least=2)) / 1000 for _ in range(300)]
    assert 0 <= min(lost) < 0.02
    assert 0.35 < max(lost) < 0.46
    assert np.mean(lost) == pytest.approx(0.2, abs=0.02)
    assert (np.diff(drop_items(rows, 0.9, generator, least=2)) > 0).all()
    assert drop_items(rows, 0.0, generator, least=2) is rows
    assert all(len(drop_items(np.arange(2), 0.99, generator, least=2)) == 2 for _ in range(50))


def test_a_prompt_has_the_same_gaps_whenever_it_is_read():
    history = np.arange(100, dtype=np.int32)
    gaps = Gaps(most=0.5, seed=1)
    cut = gaps.cut(history, 7)
    assert len(cut) < 100 and (np.diff(cut) > 0).all()
    assert gaps.cut(history, 7).tolist() == cut.tolist()
    assert gaps.cut(history, 8).tolist() != cut.tolist()
    assert Gaps(most=0.5, seed=2).cut(history, 7).tolist() != cut.tolist()
    lengths = [len(gaps.cut(history, number)) for number in range(300)]
    assert np.mean(lengths) == pytest.approx(75, abs=2) and min(lengths) < 58


def test_something_is_left_and_nothing_is_cut_unasked():
    gaps = Gaps(most=0.99, seed=0)
    assert all(len(gaps.cut(np.arange(2), number)) >= 1 for number in range(100))
    assert min(len(gaps.cut(np.arange(2), number)) for number in range(100)) == 1
    assert gaps.cut(np.arange(0), 0).tolist() == []
    history = np.arange(5)
    assert NO_GAPS.cut(history, 0) is history
