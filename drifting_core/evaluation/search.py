"""Exact nearest neighbours, streamed: matrix products in float32 find candidates, float64 decides among them.

Rounding moves a squared distance by at most a known multiple of the squared norms, whatever the order of summation. A
pair that is left out lies, by more than that, behind pairs that are kept. Distances come from differences of the numbers
themselves, computed on the CPU, so that neither the device nor the blocks enter, and equal images are equally far.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drifting_core.evaluation.reference import Cache
from drifting_core.faults import Fault

_QUERIES = 1024  # rows of one block of the distance matrix
_DIFFERENCES = 2**22  # numbers in one block of exact differences


class Nearest(NamedTuple):
    """Per query, nearest first: distances (Q, top), rows (Q, top) in the training index, their labels (Q, top)."""

    distances: NDArray[np.float64]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]


class Neighbourhood(NamedTuple):
    """The nearest of all images, and of those with the query's own label."""

    any_class: Nearest
    same_class: Nearest


def nearest(
    queries: NDArray[np.float32],
    labels: NDArray[np.int64],
    blocks: Iterable[Cache],
    top: int,
    device: torch.device,
    name: str,
) -> Neighbourhood:
    """The `top` nearest images for every query (Q, D) with its label (Q,), exactly; `blocks` are read once.

    An image that is stored in several views, features (N, views, D), is as near as its nearest view. Equal distances are
    ordered by row. Raises Fault, naming `name`, when there are too few images or numbers are not finite.
    """
    finder = _Finder(queries, top, device, name)
    any_class, same_class = _Best(len(queries), top), _Best(len(queries), top)
    own = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
    everyone = np.arange(len(queries))
    for block in blocks:
        finder.look_at(block)
        finder.improve(any_class, everyone, slice(None))
        for label in np.intersect1d(block.labels, labels):
            finder.improve(same_class, own[int(label)], np.flatnonzero(block.labels == label))
    return Neighbourhood(any_class.whole(name, "training images"), same_class.whole(name, "training images of one class"))


class _Best:
    """The nearest images of each query so far: squared distances, rows and labels (Q, top), nearest first."""

    def __init__(self, queries: int, top: int) -> None:
        self.squared = np.full((queries, top), np.inf)
        self.rows = np.full((queries, top), -1)
        self.labels = np.full((queries, top), -1)

    def add(
        self, of: NDArray[np.int64], squared: NDArray[np.float64], rows: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> None:
        """More images (P,), each for the query that `of` (P,) names."""
        top = self.squared.shape[1]
        touched, place = np.unique(of, return_inverse=True)
        query = np.concatenate([np.repeat(np.arange(len(touched)), top), place])
        parts = [
            np.concatenate([held[touched].ravel(), new])
            for held, new in ((self.squared, squared), (self.rows, rows), (self.labels, labels))
        ]
        order = np.lexsort((parts[1], parts[0], query))  # by query, then distance, then row
        first = np.searchsorted(query[order], np.arange(len(touched)))
        kept = order[np.arange(len(order)) - first[query[order]] < top].reshape(-1, top)
        self.squared[touched], self.rows[touched], self.labels[touched] = (part[kept] for part in parts)

    def whole(self, name: str, of: str) -> Nearest:
        found = np.isfinite(self.squared).sum(axis=1)
        if len(found) and found.min() < self.squared.shape[1]:
            raise Fault(f"{name}: {found.min()} {of}, evaluation.neighbours.top is {self.squared.shape[1]}; lower it")
        return Nearest(np.sqrt(self.squared), self.rows, self.labels)


class _Finder:
    """The queries, and one block of images at a time, on the device."""

    def __init__(self, queries: NDArray[np.float32], top: int, device: torch.device, name: str) -> None:
        self.queries, self.top, self.device, self.name = queries, top, device, name
        self.centre: Tensor | None = None

    def look_at(self, block: Cache) -> None:
        features = block.features.reshape(len(block.features), -1, self.queries.shape[1])
        self.block = block._replace(features=features)
        known = torch.from_numpy(features).to(self.device)
        if self.centre is None:  # a common shift takes the large mean out, which keeps the digits of small distances
            self.centre = known.mean(dim=(0, 1))
            self.wanted = torch.from_numpy(self.queries).to(self.device) - self.centre
            self.wanted_squares = self._squares(self.wanted)
        self.known = known - self.centre
        self.known_squares = self._squares(self.known)

    def _squares(self, numbers: Tensor) -> Tensor:
        squares = numbers.square().sum(dim=-1)
        if not torch.isfinite(squares).all():
            raise Fault(f"{self.name}: holds NaN, Inf or numbers whose squares are; they have no distances: make them again")
        return squares

    def improve(self, best: _Best, queries: NDArray[np.int64], rows: NDArray[np.int64] | slice) -> None:
        """Give `best` what these rows of the block have for these queries."""
        places = np.arange(len(self.block.rows))[rows]
        for some in np.split(queries, range(_QUERIES, len(queries), _QUERIES)):
            query, row = self._candidates(some, rows, best.squared[some, -1])
            if len(query):
                of, at = some[query], places[row]
                best.add(of, self._exact(of, at), self.block.rows[at], self.block.labels[at])

    def _candidates(
        self, queries: NDArray[np.int64], rows: NDArray[np.int64] | slice, reached: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (of `queries`, of `rows`) that may be among the nearest; `reached`: squares (Q,) that count no more."""
        wanted, known, squares = self.wanted[queries], self.known[rows], self.known_squares[rows]
        views = zip(known.unbind(1), squares.unbind(1), strict=True)
        # Squared distances less the query's own square, which is the same along a row.
        found = functools.reduce(torch.minimum, (torch.addmm(square, wanted, view.T, alpha=-2) for view, square in views))
        own = self.wanted_squares[queries].double()
        # (D + 8) / 2 epsilons bound the rounding of the shift, the squares and the products; this is twice as much.
        bound = (wanted.shape[1] + 16) * torch.finfo(torch.float32).eps
        margin = bound * (own.sqrt() + squares.max().double().sqrt()).square()
        limit = torch.from_numpy(reached).to(self.device) - own + margin
        if np.isinf(reached).any() and found.shape[1] >= self.top:
            limit = limit.minimum(found.topk(self.top, largest=False).values.amax(dim=1).double() + 2 * margin)
        pairs = (found <= limit.float()[:, None]).nonzero().cpu().numpy()
        return pairs[:, 0], pairs[:, 1]

    def _exact(self, queries: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Squared distances (P,) of pairs, to the nearest view."""
        features = self.block.features
        step = max(1, _DIFFERENCES // features[0].size)
        parts = []
        for start in range(0, len(queries), step):
            some = slice(start, start + step)
            differences = features[rows[some]].astype(np.float64) - self.queries[queries[some], None]
            parts.append(np.square(differences, out=differences).sum(axis=2).min(axis=1))
        return np.concatenate(parts)
