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
    found = probabilities(logits, [Head(name="dish", kind="classes", size=6, temperature=temperature)])
    assert found.dtype == np.float32
    assert np.all(found >= 0)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    best = logits.argmax(axis=1)
    assert np.all(np.take_along_axis(found, best[:, None], 1)[:, 0] == found.max(axis=1))


@given(LOGITS, TEMPERATURES)
def test_gates_are_independent_and_never_overflow(logits, temperature):
    gate = Head(name="gate", kind="gate", size=6, temperature=temperature)
    found = probabilities(logits, [gate])
    assert np.all((found >= 0) & (found <= 1))
    alone = probabilities(logits[:, :1], [gate.model_copy(update={"size": 1})])
    np.testing.assert_array_equal(found[:, :1], alone)


def test_heads_stand_side_by_side_in_the_order_of_the_manifest():
    heads = [
        Head(name="dish", kind="classes", size=3),
        Head(name="gate", kind="gate", size=1),
        Head(name="course", kind="classes", size=4),
    ]
    logits = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    found = probabilities(logits, heads)
    assert found.shape == (2, 8)
    np.testing.assert_array_equal(found[:, :3], probabilities(logits[:, :3], heads[:1]))
    np.testing.assert_allclose(found[:, 3], 1 / (1 + np.exp(-logits[:, 3])), rtol=1e-5)
    np.testing.assert_array_equal(found[:, 4:], probabilities(logits[:, 4:], heads[2:]))


def test_a_higher_temperature_is_less_sure():
    head = Head(name="dish", kind="classes", size=3)
    logits = np.array([[3, 1, 0]], np.float32)
    unsure = head.model_copy(update={"temperature": 2.0})
    assert probabilities(logits, [unsure]).max() < probabilities(logits, [head]).max()


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-50, 50, width=32)), TEMPERATURES)
def test_scores_are_a_distribution_whatever_the_cuts_say(logits, temperature):
    head = Head(name="score", kind="score", size=4, temperature=temperature)
    found = probabilities(logits, [head])
    assert found.shape == (3, head.outputs) == (3, 5)
    assert np.all(found >= 0)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_a_score_s_probability_is_what_lies_between_two_cuts():
    found = probabilities(np.float32([[2, 1, -1, -3]]), [Head(name="score", kind="score", size=4)])[0]
    above = 1 / (1 + np.exp(-np.array([2, 1, -1, -3.0])))
    np.testing.assert_allclose(found, [1 - above[0], *(above[:-1] - above[1:]), above[-1]], rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "regression"},
        {"size": 0},
        {"kind": "score"},
        {"temperature": 0},
        {"name": ""},
        {"colour": "red"},
    ],
)
def test_a_head_is_checked(change):
    with pytest.raises(ValidationError):
        Head(**{"name": "dish", "kind": "classes", "size": 3, **change})
