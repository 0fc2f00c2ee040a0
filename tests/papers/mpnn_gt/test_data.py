import math
import subprocess
import sys

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils import to_dense_adj

from everyformer.catalog import Job
from everyformer.lab.measure import count_parameters
from everyformer.papers.mpnn_gt import data
from everyformer.papers.mpnn_gt.claim import climate_task
from everyformer.papers.mpnn_gt.study import KINDS


def test_the_card_does_not_import_the_graph_extra():
    code = "import sys, everyformer; everyformer.paper('mpnn_gt'); assert 'torch_geometric' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_encodings_are_those_of_random_walks_and_of_the_laplacian():
    graph = Data(edge_index=data.ring(7), num_nodes=7)
    out = data.encodings(graph, walks=4, eigenvectors=3)
    walk = to_dense_adj(graph.edge_index)[0] / 2
    expected = torch.stack([torch.linalg.matrix_power(walk, k).diagonal() for k in range(1, 5)], 1)
    torch.testing.assert_close(out.random_walk_pe, expected)
    laplacian = torch.eye(7) - walk
    smallest = torch.linalg.eigvalsh(laplacian)[1:4]
    rayleigh = (out.laplacian_pe * (laplacian @ out.laplacian_pe)).sum(0)
    torch.testing.assert_close(rayleigh, smallest, atol=1e-4, rtol=0)
    assert "laplacian_pe" not in graph


def test_a_small_graph_has_zeros_for_the_eigenvectors_it_lacks():
    pe = data.encodings(Data(edge_index=data.ring(3), num_nodes=3), walks=0, eigenvectors=5).laplacian_pe
    assert pe.shape == (3, 5) and (pe[:, 2:] == 0).all() and (pe[:, :2] != 0).any()


def test_names_of_data_sets_are_checked_before_anything_is_downloaded(tmp_path):
    with pytest.raises(ValueError, match="name must be one of Peptides-func"):
        data.lrgb("peptides", tmp_path)
    with pytest.raises(ValueError, match="split must be one of train, val, test"):
        data.lrgb("Peptides-func", tmp_path, split="valid")


def test_a_missing_ogb_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ogb", None)
    monkeypatch.setitem(sys.modules, "ogb.graphproppred", None)
    with pytest.raises(ImportError, match="needs the package ogb: pip install ogb"):
        data.ogb("ogbg-molhiv", tmp_path)


@pytest.mark.parametrize("periodic", [True, False])
def test_a_lattice_joins_neighbours_in_four_directions(periodic):
    edges, direction = data.lattice(4, 5, periodic)
    assert edges.shape[1] == (80 if periodic else 2 * (3 * 5 + 4 * 4)) == len(direction)
    step = (edges[0] // 5 - edges[1] // 5).abs() + (edges[0] % 5 - edges[1] % 5).abs()
    assert periodic or (step == 1).all()
    assert (to_dense_adj(edges)[0] == to_dense_adj(edges)[0].T).all()


def test_the_simulated_field_has_a_local_part_without_area_mean_and_a_mode():
    field = data.advection_diffusion(20, 60, 16, torch.Generator().manual_seed(0))
    mode = field.mean(-1, keepdim=True)
    assert field.shape == (20, 60, 256)
    assert (field - mode).std() == pytest.approx(1, abs=0.05)
    assert mode.std() == pytest.approx(1, abs=0.3)


def test_the_label_of_the_sum_is_the_sum_and_of_retrieval_the_number_of_the_node_asked_for():
    draw = torch.Generator().manual_seed(0)
    x, y = data.global_sum(3, 9, draw)
    torch.testing.assert_close(y, x.sum(1, keepdim=True).expand_as(y) / 3)
    x, y = data.retrieval(3, 9, draw)
    key, query, value = x[..., :8], x[..., 8:16], x[..., 16:]
    asked = (query @ key.transpose(1, 2)).argmax(-1, keepdim=True)
    torch.testing.assert_close(y, value.gather(1, asked))


@pytest.mark.parametrize("nodes", [9, 24])
def test_the_shapes_of_graphs_are_connected_both_ways(nodes):
    shapes = [data.ring(nodes), data.cliques_and_path(nodes), data.random_tree(nodes, torch.Generator().manual_seed(0))]
    for edges in shapes:
        adjacency = to_dense_adj(edges, max_num_nodes=nodes)[0]
        assert (adjacency == adjacency.T).all()
        assert (torch.linalg.matrix_power(adjacency + torch.eye(nodes), nodes) > 0).all()
    assert math.isclose(len(data.ring(nodes)[0]) / nodes, 2)


def test_every_kind_of_model_gets_about_the_same_number_of_parameters(tmp_path):
    task = climate_task(Job("smoke", 0, "cpu", tmp_path))
    for kind in KINDS:
        assert count_parameters(task.model(kind)) == pytest.approx(20_000, rel=0.1)
