"""The autograd engine against torch, and where engines go wrong: reuse, broadcasting, deep graphs."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_basics.autograd import Node, topological_order, unbroadcast
from lightning_basics.graph import draw_graph
from lightning_basics.random_graphs import BINARY, UNARY, random_program, run_program


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 25))
def test_random_graphs_equal_torch(seed: int, steps: int) -> None:
    leaves, program = random_program(seed, steps)
    ours, theirs = [Node(leaf) for leaf in leaves], [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
    result, expected = run_program(ours, program), run_program(theirs, program)
    result.backward()
    expected.backward()
    # float64: a graph of 25 operations on values near 1 loses a few of its 16 digits; a wrong rule misses by ~1.
    np.testing.assert_allclose(result.data, expected.item(), rtol=1e-10, atol=1e-12)
    for node, tensor in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(node.grad, tensor.grad.numpy(), rtol=1e-9, atol=1e-11)


def test_random_programs_use_every_operation() -> None:
    used = {name for seed in range(50) for name, _, _ in random_program(seed)[1]}
    assert used == {*BINARY, *UNARY}


@pytest.mark.parametrize(
    "operation",
    [
        lambda a, b: 2.0 - a,
        lambda a, b: 2.0 / (a * a + 1.0),
        lambda a, b: -a + 3.0,
        lambda a, b: 3.0 + a * 2.0,
        lambda a, b: (a * a + 1.0) ** 0.5,
        lambda a, b: a / (b * b + 1.0),
        lambda a, b: a.relu() - b.relu(),
    ],
)
def test_operators_with_numbers_on_either_side(operation) -> None:
    values = np.array([[0.5, -1.5], [2.0, 0.0]]), np.array([1.0, -2.0])
    ours, theirs = [Node(v) for v in values], [torch.tensor(v, requires_grad=True) for v in values]
    result, expected = operation(*ours), operation(*theirs)
    np.testing.assert_allclose(result.data, expected.detach().numpy(), atol=1e-14)
    (result * result).sum().backward()
    (expected * expected).sum().backward()
    for node, tensor in zip(ours, theirs, strict=True):
        expected_grad = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        np.testing.assert_allclose(node.grad, expected_grad, atol=1e-12)


def test_an_array_on_the_left_gives_one_node() -> None:
    result = np.ones(3) * Node(np.ones(3))
    assert isinstance(result, Node)
    assert result.data.shape == (3,)


def test_backward_adds_to_grad_until_zero_grad() -> None:
    node = Node(3.0)
    (node * node).backward()
    (node * node).backward()
    assert node.grad == 12.0
    node.zero_grad()
    assert node.grad == 0.0


def test_backward_twice_from_one_root_does_not_compound() -> None:
    node = Node(3.0)
    square = node * node
    root = square * 2.0
    root.backward()
    root.backward()
    assert node.grad == 24.0  # 12 a pass; an engine that starts from the old .grad of `square` gives more


def test_a_graph_ten_thousand_deep() -> None:
    node = Node(1.0)
    total = node
    for _ in range(10_000):
        total = total + node
    total.backward()
    assert node.grad == 10_001.0
    assert len(topological_order(total)) == 10_001


def test_shared_values_with_paths_of_different_length() -> None:
    a = Node(2.0)
    b = a * a
    ((b * b + b) * a).backward()  # a^5 + a^3
    assert a.grad == 5 * 16 + 3 * 4


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (5, 1), (1, 1), (5, 3)])
def test_unbroadcast_sums_over_what_was_repeated(shape) -> None:
    grad = unbroadcast(np.ones((5, 3)), shape)
    assert grad.shape == shape
    assert grad.sum() == 15


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"starts at a scalar, not at shape \(3,\)"):
        Node(np.ones(3)).backward()
    with pytest.raises(ValueError, match="two matrices"):
        Node(np.ones(3)) @ Node(np.ones((3, 1)))


def test_a_drawn_graph_has_a_box_for_each_node_and_an_arrow_for_each_use() -> None:
    a, b = Node(3.0), Node(4.0)
    root = a * a + b
    root.backward()
    drawing = draw_graph(root, {id(a): "a", id(b): "b"})
    texts = [text.get_text() for text in drawing.ax.texts]
    plt.close("all")
    assert len(drawing.boxes) == 4
    assert {text for text in texts if text} == {"a = 3\ngrad 6", "× = 9\ngrad 1", "b = 4\ngrad 1", "+ = 13\ngrad 1"}
    assert texts.count("") == 4  # the arrows: a is used twice by the product
