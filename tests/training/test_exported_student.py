"""Students that are exported graphs, which have no training mode unless torchao gives them one."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import fx, nn

import kdx
from kdx.baked_modes import baked_training
from kdx.modes import evaluating
from kdx.training import evaluate


def exported(net, *, training: bool = True) -> fx.GraphModule:
    torch.manual_seed(0)
    shapes = ({0: torch.export.Dim.AUTO},)
    return torch.export.export(net().train(training), (torch.randn(4, 1, 8, 8),), dynamic_shapes=shapes).module()


def with_modes(graph: fx.GraphModule) -> fx.GraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that this machine has not
        from torchao.quantization.pt2e import allow_exported_model_train_eval
    return allow_exported_model_train_eval(graph)


def test_without_a_training_mode_it_is_refused_before_training_with_the_way_out(net, images) -> None:
    batch = [(images[0][:16], images[1][:16])]
    with pytest.raises(ValueError, match=r"has no training mode; .*allow_exported_model_train_eval\(graph\)"):
        kdx.fit(kdx.Supervised(exported(net)), batch, device="cpu")
    with pytest.raises(ValueError, match=r"does batch_norm and dropout as in training .*allow_exported_model_train"):
        evaluate(exported(net), batch)


@pytest.mark.parametrize("training", [True, False], ids=["exported-training", "exported-evaluating"])
def test_with_torchaos_modes_it_is_trained_and_judged_as_the_model_that_it_was_made_from(net, images, training) -> None:
    """Dropout and BatchNorm are those of training in training, and those of evaluation in evaluation."""

    def plain() -> nn.Module:
        model = net()
        model.norm.momentum = 0.3
        return model

    batches = [(images[0][:16], images[1][:16]), (images[0][16:32], images[1][16:32])]
    options = {"evaluate": batches, "optimizer": kdx.Ref("SGD", lr=0.1), "device": "cpu", "seed": 3, "progress": False}
    torch.manual_seed(0)
    eager = plain()
    graph = with_modes(exported(plain, training=training))
    assert graph.state_dict().keys() == eager.state_dict().keys()
    own = graph.train
    wanted = kdx.fit(kdx.Supervised(eager), batches, **options)
    found = kdx.fit(kdx.Supervised(graph), batches, **options)
    assert found.history[0]["student/accuracy"] == wanted.history[0]["student/accuracy"]
    assert found.history[0]["train/loss"] == pytest.approx(wanted.history[0]["train/loss"], rel=1e-6)
    for name, value in eager.state_dict().items():
        if name == "norm.num_batches_tracked":
            continue  # which the graph counts in its own way
        torch.testing.assert_close(graph.state_dict()[name], value)
    assert baked_training(graph) == (["batch_norm", "dropout"] if training else [])  # as it was handed over
    assert graph.train == own
    with evaluating(graph), evaluating(eager.eval()), torch.no_grad():
        torch.testing.assert_close(graph(images[0]), eager(images[0]))
