"""A network is opened for the processes there are; what changes its training is part of its key, the mesh is not."""

import pytest
import torch

from herd.console import HerdError
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer, init_weights
from herd.recipe_compute import Anomalies, Compute, Mesh
from herd.train.hardware import Hardware
from herd.train.launch import describe, fresh, open_network, whole_model

CONFIG = ModelConfig(2, 16, 2, 1, 24, 40, 8, 12, tied_embeddings=True)
CPU = Hardware(torch.device("cpu"), torch.float32)


def test_weights_are_drawn_by_name_and_are_those_of_a_whole_network():
    network = open_network(CONFIG, fresh(CONFIG, 3), Compute(), CPU)
    model = whole_model(network, CONFIG, CPU)
    expected = Transformer(CONFIG)
    init_weights(expected, 3)
    assert model is not None and network.leads
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert not torch.equal(
        fresh(CONFIG, 4)("layers.0.attention.wq.weight"), model.get_parameter("layers.0.attention.wq.weight")
    )


def test_a_mesh_without_its_processes_says_how_to_start_them(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(
        HerdError, match="4 processes asked for, 1 started; start them with torchrun --nproc-per-node 4"
    ):
        open_network(CONFIG, fresh(CONFIG, 0), Compute(mesh=Mesh(pp=2, dp=2)), CPU)


def test_a_run_goes_on_on_another_mesh_but_not_with_other_rules():
    assert describe(Compute()) == describe(Compute(mesh=Mesh(dp=8))) == {}
    assert describe(Compute(compile=True)) == {"compile": "True"}
    assert "skip" in describe(Compute(anomalies=Anomalies(spike="skip")))["anomalies"]
