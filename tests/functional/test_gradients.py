"""Tensor functions on task gradients."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import nn

from lightning_mtl.functional.gradients import (
    alias_features,
    combine_rows,
    conflict_share,
    flat_tensors,
    gramian,
    gramian_cosines,
    gramian_norms,
    inject,
    redirect,
    row_products,
    tensor_hooks_off,
)


@pytest.mark.parametrize("columns", [5, 40_000, 300_001])
def test_long_rows_lose_no_digits(columns: int) -> None:
    rows = torch.rand(4, columns) + 0.5
    exact = rows.double() @ rows.double().T
    torch.testing.assert_close(gramian(rows).double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(row_products(rows[:2], rows[1:]).double(), exact[:2, 1:], rtol=1e-6, atol=0)
    torch.testing.assert_close(gramian(rows.double()), exact)


def test_half_precision_is_summed_in_float32() -> None:
    rows = torch.randn(3, 300_000).bfloat16()
    exact = rows.double() @ rows.double().T
    found = gramian(rows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.max()))
    weights = torch.tensor([1.0, 2.0, -1.0])
    torch.testing.assert_close(combine_rows(weights, rows), weights @ rows.float())


def test_cosines_norms_and_conflicts() -> None:
    rows = torch.tensor([[3.0, 4.0], [-4.0, 3.0], [-3.0, -4.0], [0.0, 0.0]])
    gram = gramian(rows)
    torch.testing.assert_close(gramian_norms(gram), torch.tensor([5.0, 5.0, 5.0, 0.0]))
    cosines = gramian_cosines(gram)
    torch.testing.assert_close(cosines[0], torch.tensor([1.0, 0.0, -1.0, 0.0]))
    assert cosines[3].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(conflict_share(gram), torch.tensor(1 / 6))
    assert conflict_share(gram[:1, :1]) == 0


def test_injected_gradients_are_multiplied_and_masked() -> None:
    leaf = nn.Parameter(torch.zeros(2))
    for keep, expected in ((True, [6.0, 12.0]), (False, [0.0, 0.0])):
        leaf.grad = None
        values = torch.tensor([1.0, 2.0] if keep else [1.0, torch.nan])
        total = inject(torch.tensor(7.0), [leaf], [values], torch.tensor(2.0), torch.tensor(keep))
        assert total == 7
        (3 * total).backward()
        assert leaf.grad is not None
        assert leaf.grad.tolist() == expected


def test_an_injection_that_nothing_asks_for_gives_nothing() -> None:
    leaf = nn.Parameter(torch.zeros(2))
    total = inject(torch.tensor(7.0), [leaf], [torch.ones(2)])
    (total.detach() + leaf.sum()).backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [1, 1]


def test_redirected_gradients_replace_what_passes_the_edge() -> None:
    leaf, head = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    z = 2 * leaf
    total = redirect(torch.tensor(5.0), (z * head).sum(), [(z.grad_fn, 0)], [torch.tensor([1.0, 10.0])])
    (3 * total).backward()
    assert leaf.grad is not None
    assert head.grad is not None
    assert leaf.grad.tolist() == [6, 60]
    assert head.grad.tolist() == [6, 6]


def test_hooks_are_silent_inside_and_back_outside() -> None:
    leaf = nn.Parameter(torch.ones(2))
    calls: list[int] = []
    for number in range(2):
        leaf.register_hook(lambda gradient, number=number: calls.append(number))
    with tensor_hooks_off([leaf, nn.Parameter(torch.ones(1))]):
        torch.autograd.grad(leaf.sum(), leaf)
    assert calls == []
    torch.autograd.grad(leaf.sum(), leaf)
    assert calls == [0, 1]


def test_nests_are_flattened_and_aliased_alike() -> None:
    pair = namedtuple("pair", "low high")
    leaf = nn.Parameter(torch.ones(2))
    first, second = leaf * 2, leaf * 3
    nest = {"a": [first, (second, None)], "b": pair(first, "text")}
    assert [tensor is other for tensor, other in zip(flat_tensors(nest), [first, second], strict=True)] == [True, True]
    twin = alias_features(nest)
    assert isinstance(twin["b"], pair)
    assert twin["b"].high == "text"
    found = flat_tensors(twin)
    assert len(found) == 3, "an alias for every place"
    assert all(tensor.data_ptr() in (first.data_ptr(), second.data_ptr()) for tensor in found)
    assert alias_features(leaf) is leaf
