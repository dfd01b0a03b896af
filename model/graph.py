"""Adjacency matrices of a layout: the fixed or initial topologies of the graph networks.

Convention: `A[k, v, w]` weighs how much joint `v` sends to joint `w`, and features are aggregated as
`out[.., w] = sum_v x[.., v] * A[v, w]`; columns are receivers. Normalisation divides a column by its sum.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from model.errors import UserError
from model.layouts import Layout

Matrix = np.ndarray[Any, np.dtype[np.float64]]


def _directed(layout: Layout) -> Matrix:
    """(V, V) with 1 at [parent, child]; its transpose sends from the child to the parent."""
    matrix = np.zeros((layout.num_joints, layout.num_joints))
    for child, parent in layout.edges:
        matrix[parent, child] = 1
    return matrix


def _normalise_columns(matrix: Matrix) -> Matrix:
    degree = matrix.sum(0)
    return matrix / np.where(degree > 0, degree, 1)


def hop_distance(layout: Layout, max_hop: int) -> Matrix:
    """(V, V) number of edges between two joints, infinity where it exceeds `max_hop`."""
    outward = _directed(layout)
    step = outward + outward.T + np.eye(layout.num_joints)
    distance = np.full(step.shape, np.inf)
    reached = np.eye(layout.num_joints)
    for hop in range(max_hop + 1):
        distance[(reached > 0) & np.isinf(distance)] = hop
        reached = reached @ step
    return distance


def spatial(layout: Layout) -> Matrix:
    """(3, V, V): identity, normalised child-to-parent edges, normalised parent-to-child edges."""
    outward = _directed(layout)
    # An edge (child, parent) sets A[parent, child] in the field's "inward" matrix.
    return np.stack([np.eye(layout.num_joints), _normalise_columns(outward), _normalise_columns(outward.T)])


def stgcn_spatial(layout: Layout, max_hop: int = 1) -> Matrix:
    """(2 * max_hop + 1, V, V): the spatial partition of ST-GCN (Yan et al. 2018, section 3.3).

    The adjacency with self loops is normalised once, then split by hop and by whether the source is nearer
    to the centre than the receiver. As in the released code, distances to the centre are known only up to
    `max_hop` and are infinite beyond, so far from the centre every edge falls into the first group.
    """
    distance = hop_distance(layout, max_hop)
    normalised = _normalise_columns((distance <= max_hop).astype(float))
    to_centre = distance[:, layout.centre]
    source_nearer = to_centre[:, None] < to_centre[None, :]
    subsets = [normalised * (distance == 0)]
    for hop in range(1, max_hop + 1):
        at_hop = normalised * (distance == hop)
        subsets += [at_hop * ~source_nearer, at_hop * source_nearer]
    return np.stack(subsets)


def binary_adjacency(layout: Layout) -> Matrix:
    """(1, V, V): symmetric, 0 or 1, without self loops."""
    outward = _directed(layout)
    return (outward + outward.T)[None]


GRAPHS: dict[str, Callable[..., Matrix]] = {
    "spatial": spatial,
    "stgcn_spatial": stgcn_spatial,
    "binary_adj": binary_adjacency,
}


def adjacency(layout: Layout, mode: str, **options: Any) -> Matrix:
    """The matrices named `mode` for `layout`; raises UserError for an unknown name."""
    if mode not in GRAPHS:
        raise UserError(f"graph mode {mode!r} is unknown: choose one of {', '.join(GRAPHS)}")
    return GRAPHS[mode](layout, **options)
