"""Matrix products inside compiled kernels, against numpy's."""

import logging

import numpy as np
import pytest

from src.FasterRcnn.cpu import blas
from src.FasterRcnn.cpu.blas import PLAIN, TRANSPOSED


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("orders", [(PLAIN, PLAIN), (TRANSPOSED, PLAIN), (PLAIN, TRANSPOSED)])
def test_product(orders, threads):
    rows, depth, columns = 7, 11, 5
    a = drawn(depth, rows) if orders[0] == TRANSPOSED else drawn(rows, depth)
    b = drawn(columns, depth) if orders[1] == TRANSPOSED else drawn(depth, columns)
    out = np.full((rows, columns), np.nan, np.float32)
    blas.product(a, b, out, orders, threads)
    left = a.T if orders[0] == TRANSPOSED else a
    right = b.T if orders[1] == TRANSPOSED else b
    np.testing.assert_allclose(out, left @ right, rtol=1e-4, atol=1e-5)


def test_products_add_to_what_is_there_when_asked():
    a, b, out = drawn(4, 3, 6), drawn(4, 6, 2), drawn(4, 3, 2)
    before = out.copy()
    blas.products(a, b, out, (PLAIN, PLAIN), 3, onto=True)
    np.testing.assert_allclose(out, before + a @ b, rtol=1e-4, atol=1e-5)


def test_a_refused_product_is_an_error():
    a, out = drawn(2, 2), np.empty((2, 2), np.float32)
    with pytest.raises(RuntimeError, match="refused"):
        blas.product(a, a, out, (ord("?"), PLAIN), 1)


def test_a_missing_library_is_said(monkeypatch, caplog):
    monkeypatch.setattr(blas, "LIBRARY", "libabsent.so")
    with caplog.at_level(logging.WARNING):
        assert blas.sgemm_address.__wrapped__() == 0
    assert "slower" in caplog.text
