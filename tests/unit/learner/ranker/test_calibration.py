"""Calibration curves and their error by hand."""

import numpy as np
import pytest

from sluice.learner.ranker.calibration import calibration_curve


def test_bins_of_equal_mass_by_hand():
    predicted = np.array([0.9, 0.1, 0.2, 0.6, 0.3, 0.7])
    observed = np.array([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    curve = calibration_curve(predicted, observed, bins=3)  # {.1, .2}, {.3, .6}, {.7, .9}
    assert curve.predicted == pytest.approx([0.15, 0.45, 0.8])
    assert curve.observed == pytest.approx([0.5, 0.0, 1.0])
    assert curve.events.tolist() == [2, 2, 2]
    assert curve.error == pytest.approx((0.35 + 0.45 + 0.2) / 3)  # too low, too high, too low


def test_equal_predictions_share_a_bin_and_bins_weigh_by_their_events():
    predicted = np.array([0.5, 0.1, 0.5, 0.5, 0.9, 0.5])
    observed = np.array([0.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    curve = calibration_curve(predicted, observed, bins=6)
    assert curve.predicted == pytest.approx([0.1, 0.5, 0.9])
    assert curve.observed == pytest.approx([0.0, 0.25, 1.0])
    assert curve.events.tolist() == [1, 4, 1]
    assert curve.error == pytest.approx(1 / 6 * 0.1 + 4 / 6 * 0.25 + 1 / 6 * 0.1)


def test_a_value_on_an_edge_belongs_to_the_lower_bin():
    curve = calibration_curve(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 3.0, 8.0]), bins=2)
    assert curve.events.tolist() == [2, 2]
    assert curve.predicted.tolist() == [1.5, 3.5] and curve.observed.tolist() == [1.5, 5.5]


def test_fewer_events_than_bins():
    curve = calibration_curve(np.array([0.25]), np.array([1.0]))
    assert curve.as_json() == {
        "ece": 0.75,
        "events": 1,
        "curve": {"predicted": [0.25], "observed": [1.0], "events": [1]},
    }


def test_the_error_of_a_calibrated_prediction_goes_to_zero():
    generator = np.random.default_rng(0)
    predicted = generator.random(200_000)
    came = (generator.random(200_000) < predicted).astype(float)
    assert calibration_curve(predicted, came).error < 0.01
    assert calibration_curve(predicted**2, came).error == pytest.approx(1 / 6, abs=0.01)  # E[p - p^2]
