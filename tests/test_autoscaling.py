from types import SimpleNamespace

import pytest

from app.autoscaling import PHOTOS, PhotosInHand


def context(metrics, target=3):
    return SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=target)


def test_replicas_hold_the_target_each():
    wanted, state = PhotosInHand(8)(context({PHOTOS: {"a": 20.0, "b": 12.0}}))
    assert (wanted, state) == (4, {})
    assert PhotosInHand(8)(context({PHOTOS: {"a": 0.0}}))[0] == 0


@pytest.mark.parametrize("metrics", [None, {}, {PHOTOS: {}}, {"other": {"a": 5.0}}])
def test_nothing_changes_before_anyone_reports(metrics):
    assert PhotosInHand(8)(context(metrics))[0] == 3


@pytest.mark.parametrize("target", [0, -1, float("nan")])
def test_a_target_is_above_nothing(target):
    with pytest.raises(ValueError, match="target"):
        PhotosInHand(target)
