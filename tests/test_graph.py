"""Adjacency matrices: the released tables, and what holds for every layout."""

import numpy as np
import pytest

from model.errors import UserError
from model.graph import GRAPHS, adjacency
from model.layouts import LAYOUTS, load_layout


@pytest.mark.parametrize(
    ("key", "mode", "options"),
    [
        ("spatial", "spatial", {}),
        ("stgcn_spatial", "stgcn_spatial", {}),
        ("stgcn_spatial_hop2", "stgcn_spatial", {"max_hop": 2}),
        ("binary_adj", "binary_adj", {}),
    ],
)
def test_ntu_matrices_are_the_released_ones(small_golden, key, mode, options):
    with np.load(small_golden / "net_graphs_ntu.npz") as golden:
        np.testing.assert_allclose(adjacency(load_layout("nturgb+d"), mode, **options), golden[key], atol=1e-15)


def test_third_subset_holds_the_edges_away_from_the_centre_that_are_known():
    for layout, count in (("nturgb+d", 8), ("coco", 10)):
        assert np.count_nonzero(adjacency(load_layout(layout), "stgcn_spatial")[2]) == count


@pytest.mark.parametrize("mode", GRAPHS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_are_receivers(layout, mode):
    layout = load_layout(layout)
    matrices = adjacency(layout, mode)
    assert matrices.shape[1:] == (layout.num_joints, layout.num_joints)
    child, parent = layout.edges[0]
    if mode == "spatial":
        columns = matrices.sum(1)
        np.testing.assert_allclose(columns[columns > 0], 1)
        assert matrices[1][parent, child] > 0 and matrices[2][child, parent] > 0
    elif mode == "stgcn_spatial":
        np.testing.assert_allclose(matrices.sum((0, 1)), 1)
    else:
        assert matrices[0][parent, child] == matrices[0][child, parent] == 1


def test_unknown_mode_is_named():
    with pytest.raises(UserError, match="'star'.*spatial"):
        adjacency(load_layout("coco"), "star")
