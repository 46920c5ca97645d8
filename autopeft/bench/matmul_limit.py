"""The time that the matrix multiplications of a trial take alone: no engine that computes the same can be faster.

What our engine multiplies in the training steps of a trial is written down once, shape by shape. The same shapes are
then multiplied again, with nothing between them. Fused attention counts as its two products forward and four backward.
What the engine does not compute at all (frozen layers from the cache, tokens that the head does not read) is not in it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Product:
    """`n` products `(M, K) @ (K, N)`, each operand as it lies in memory or transposed."""

    n: int
    M: int
    K: int
    N: int
    transposed: tuple[bool, bool] = (False, False)
    dtype: torch.dtype = torch.float32

    @property
    def flops(self) -> int:
        return 2 * self.n * self.M * self.K * self.N


@contextmanager
def recorded() -> Iterator[list[Product]]:
    """Within it, the products that are computed for training are put into the list; inference mode is not looked at."""
    products: list[Product] = []
    with _Recorder(products):
        yield products


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, products: list[Product]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._products = products

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not torch.is_inference_mode_enabled():
            self._products += _products(func.overloadpacket.__name__, args)
        return func(*args, **(kwargs or {}))


def _products(name: str, args: Any) -> list[Product]:
    if name in {"mm", "bmm"}:
        return [_product(*args[:2])]
    if name in {"addmm", "baddbmm"}:
        return [_product(*args[1:3])]
    if "scaled_dot_product" not in name:
        return []
    is_backward = "backward" in name
    query, key = args[1:3] if is_backward else args[:2]
    *batch, Tq, d = query.shape
    Tk, n = key.shape[-2], torch.Size(batch).numel()
    scores = Product(n, Tq, d, Tk, (False, True), query.dtype)
    values = Product(n, Tq, Tk, d, dtype=query.dtype)
    if not is_backward:
        return [scores, values]
    other = Product(n, Tk, Tq, d, (True, False), query.dtype)
    return [scores, values, other, other]


def _product(a: Tensor, b: Tensor) -> Product:
    n = a.shape[0] if a.dim() == 3 else 1
    turned = (_is_transposed(a), _is_transposed(b))
    return Product(n, a.shape[-2], a.shape[-1], b.shape[-1], turned, a.dtype)


def _is_transposed(x: Tensor) -> bool:
    return x.stride(-1) != 1 and x.stride(-2) == 1


class Replay:
    """Multiplies recorded shapes; the numbers in them are of no interest."""

    def __init__(self, products: list[Product], device: torch.device) -> None:
        largest = max((max(p.M * p.K, p.K * p.N, p.M * p.N) * p.n for p in products), default=1)
        dtypes = {p.dtype for p in products}
        pools = {dtype: [torch.rand(largest, device=device, dtype=dtype) for _ in range(3)] for dtype in dtypes}
        self._calls = [(*_operands(p, *pools[p.dtype]),) for p in products]

    def run(self) -> None:
        with torch.inference_mode():
            for a, b, out in self._calls:
                torch.matmul(a, b, out=out)


def _operands(p: Product, left: Tensor, right: Tensor, result: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a = _matrix(left, p.n, p.M, p.K, p.transposed[0])
    b = _matrix(right, p.n, p.K, p.N, p.transposed[1])
    return a, b, _matrix(result, p.n, p.M, p.N, False)


def _matrix(pool: Tensor, n: int, rows: int, columns: int, is_transposed: bool) -> Tensor:
    whole = pool[: n * rows * columns]
    shaped = whole.view(n, columns, rows).transpose(1, 2) if is_transposed else whole.view(n, rows, columns)
    return shaped[0] if n == 1 else shaped
