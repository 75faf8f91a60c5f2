"""Momentum whose steps are made orthogonal: a third of the steps that AdamW needs here.

After https://kellerjordan.github.io/posts/muon.
"""

from collections import defaultdict

import torch

WORK = torch.bfloat16


class Muon:
    """Moves matrices; those of one shape are worked on together, which is quicker."""

    def __init__(self, matrices: list[torch.Tensor]) -> None:
        by_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
        for matrix in matrices:
            by_shape[matrix.shape].append(matrix)
        self._groups = list(by_shape.values())
        self.moments = [torch.zeros(len(group), *group[0].shape) for group in self._groups]

    def step(self, rate: float) -> None:
        """Move each matrix by `rate` along its smoothed gradient, made orthogonal."""
        with torch.no_grad():
            for group, moment in zip(self._groups, self.moments, strict=True):
                gradient = torch.stack([m.grad for m in group if m.grad is not None])
                moment.lerp_(gradient, 0.05)
                rows, columns = group[0].shape
                scale = max(1.0, rows / columns) ** 0.5
                for matrix, move in zip(
                    group, orthogonal(gradient.lerp(moment, 0.95)), strict=True
                ):
                    matrix.sub_(move, alpha=rate * scale)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """The matrices with all their singular values near 1 (five Newton-Schulz iterations)."""
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonal(matrices.mT).mT
    x = (matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(WORK)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
    return x.to(matrices.dtype)
