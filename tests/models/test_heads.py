import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from models.heads import Head, probabilities

LOGITS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.just(6)),
    elements=st.floats(-1000, 1000, width=32),
)
TEMPERATURES = st.floats(0.05, 20)


@given(LOGITS, TEMPERATURES)
def test_classes_are_a_distribution_ranked_like_the_logits(logits, temperature):
    found = probabilities(logits, [Head(name="dish", kind="classes", size=6)], temperature)
    assert found.dtype == np.float32
    assert np.all(found >= 0)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    best = logits.argmax(axis=1)
    assert np.all(np.take_along_axis(found, best[:, None], 1)[:, 0] == found.max(axis=1))


@given(LOGITS, TEMPERATURES)
def test_gates_are_independent_and_never_overflow(logits, temperature):
    found = probabilities(logits, [Head(name="gate", kind="gate", size=6)], temperature)
    assert np.all((found >= 0) & (found <= 1))
    alone = probabilities(logits[:, :1], [Head(name="gate", kind="gate", size=1)], temperature)
    np.testing.assert_array_equal(found[:, :1], alone)


def test_heads_stand_side_by_side_in_the_order_of_the_manifest():
    heads = [
        Head(name="dish", kind="classes", size=3),
        Head(name="gate", kind="gate", size=1),
        Head(name="course", kind="classes", size=4),
    ]
    logits = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    found = probabilities(logits, heads, 1.0)
    assert found.shape == (2, 8)
    np.testing.assert_array_equal(found[:, :3], probabilities(logits[:, :3], heads[:1], 1.0))
    np.testing.assert_allclose(found[:, 3], 1 / (1 + np.exp(-logits[:, 3])), rtol=1e-5)
    np.testing.assert_array_equal(found[:, 4:], probabilities(logits[:, 4:], heads[2:], 1.0))


def test_a_higher_temperature_is_less_sure():
    head = [Head(name="dish", kind="classes", size=3)]
    logits = np.array([[3, 1, 0]], np.float32)
    assert probabilities(logits, head, 2.0).max() < probabilities(logits, head, 1.0).max()


@pytest.mark.parametrize("change", [{"kind": "regression"}, {"size": 0}, {"name": ""}, {"colour": "red"}])
def test_a_head_is_checked(change):
    with pytest.raises(ValidationError):
        Head(**{"name": "dish", "kind": "classes", "size": 3, **change})
