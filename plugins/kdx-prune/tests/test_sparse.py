"""n:m sparsity: which weights are 0, and that they stay 0 through training, saving and exporting."""

from __future__ import annotations

import copy

import pytest
import torch
from kdx_prune.masked import MaskedConv2d, MaskedLinear, n_of_m, plain
from kdx_prune.sparse import BySparsity, Sparse
from torch import nn

import kdx
from kdx.errors import StudentError
from kdx.students import derive
from kdx.testing import StudentTags, parametrize_checks, toy_teacher

IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@parametrize_checks(BySparsity(), tags=StudentTags(fewer_parameters=False))
def test_conformance(check) -> None:
    check()


def sparse(weight, n=2, m=4):
    """Whether every group has at most n entries that are not 0."""
    groups = weight.detach().movedim(1, -1).reshape(-1, m)
    return bool((groups.count_nonzero(1) <= n).all())


def test_the_largest_of_every_group_are_kept_by_hand():
    weight = torch.tensor([[[[1.0]], [[-3.0]], [[2.0]], [[0.5]]]])
    assert n_of_m(weight, 2, 4).flatten().tolist() == [False, True, True, False]
    assert n_of_m(weight, 1, 2).flatten().tolist() == [False, True, True, False]
    window = torch.randn(3, 8, 3, 3)
    kept = window * n_of_m(window, 2, 4)
    assert sparse(kept)
    for group in range(2):
        part, own = window[1, 4 * group : 4 * group + 4, 2, 0], kept[1, 4 * group : 4 * group + 4, 2, 0]
        assert set(own[own != 0].tolist()) == set(part[part.abs().topk(2).indices].tolist())


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    ],
    ids=["SGD", "AdamW", "RMSprop"],
)
def test_zeros_stay_exactly_zero_while_all_other_weights_train(optimizer, tmp_path):
    student = derive(toy_teacher(), IMAGES, how="semi-structured").model
    before = copy.deepcopy(student.state_dict())
    stepper = optimizer(student.parameters())
    for _ in range(3):
        stepper.zero_grad()
        student(IMAGES).square().sum().backward()
        stepper.step()
    for name in ("body.0.0", "body.2.0", "hidden", "fc"):
        layer = student.get_submodule(name)
        assert isinstance(layer, MaskedConv2d | MaskedLinear)
        assert sparse(layer.weight)
        assert torch.equal(layer.weight.detach() != 0, layer.mask)
        assert bool((layer.weight.detach() != before[f"{name}.weight"])[layer.mask].float().mean() > 0.3)
    kdx.training.export_weights(student, tmp_path / "sparse.safetensors")
    again = derive(toy_teacher(seed=1), IMAGES, how="semi-structured").model
    kdx.training.load_weights(again, tmp_path / "sparse.safetensors")
    assert torch.equal(again.eval()(IMAGES), student.eval()(IMAGES))
    assert sparse(again.hidden.weight)


def test_a_weight_that_was_moved_all_the_same_is_saved_and_computed_as_zero():
    student = derive(toy_teacher(), IMAGES, how="semi-structured").model.eval()
    outputs = student(IMAGES)
    with torch.no_grad():
        student.hidden.weight[~student.hidden.mask] = 7.0
    assert torch.equal(student(IMAGES), outputs)
    assert sparse(student.state_dict()["hidden.weight"])


def test_a_sparse_student_is_exported_and_made_plain():
    student = derive(toy_teacher(), IMAGES, how="semi-structured").model.eval()
    exported = torch.export.export(student, (IMAGES,)).module()
    torch.testing.assert_close(exported(IMAGES), student(IMAGES))
    made = plain(copy.deepcopy(student))
    assert type(made.hidden) is nn.Linear
    assert type(made.body[0][0]) is nn.Conv2d
    assert sparse(made.hidden.weight)
    torch.testing.assert_close(made(IMAGES), student(IMAGES))
    assert 0.3 < kdx.analysis.measure_cost(student, IMAGES[:1], repeats=3).sparsity < 0.5


class Interrupt:
    """Ends a run after its first epoch."""

    @kdx.hookimpl
    def kdx_epoch_end(self, run):
        raise kdx.StopRun("for the test")


def test_it_is_distilled_and_resumed_in_kdx(tmp_path):
    options = {"epochs": 2, "optimizer": kdx.Ref("SGD", lr=0.1, momentum=0.9, weight_decay=0.01), "progress": False}

    def made():
        student = derive(toy_teacher(), IMAGES, how="semi-structured").model
        return student, kdx.Offline(student, toy_teacher(seed=2), knowledge={"kd": kdx.SoftTargets()})

    torch.manual_seed(0)
    once, scheme = made()
    kdx.fit(scheme, kdx.testing.toy_batches(), **options)
    torch.manual_seed(0)
    resumed, scheme = made()
    with pytest.raises(kdx.StopRun):
        kdx.fit(scheme, kdx.testing.toy_batches(), folder=tmp_path, observers=[Interrupt()], **options)
    kdx.fit(scheme, kdx.testing.toy_batches(), folder=tmp_path, resume=True, **options)
    assert sparse(once.hidden.weight)
    assert torch.equal(once.hidden.weight.detach() != 0, once.hidden.mask)
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), resumed.parameters(), strict=True))


def test_layers_that_it_does_not_fit_are_named_and_skipped_or_refused():
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Flatten(), nn.Linear(216, 8), nn.ReLU(), nn.Linear(8, 3))
    student = derive(net, IMAGES, how="semi-structured")
    assert student.edit.layers == ["2", "4"]
    assert [(kept.module, kept.reason) for kept in student.kept] == [
        ("0 (Conv2d)", "its 1 input channels of a filter are no multiple of 4")
    ]
    with pytest.raises(StudentError, match=r"0 \(Conv2d\): its 1 input channels.*unfit: skip"):
        derive(net, IMAGES, how=BySparsity(unfit="refuse"))
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    with pytest.raises(StudentError, match=r"changes nothing .* its weight is shared"):
        derive(tied, torch.zeros(2, 8), how="semi-structured")


def test_attention_that_reads_a_weight_itself_is_left_alone():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    student = derive(layer, torch.zeros(2, 3, 8), how="semi-structured")
    assert student.edit.layers == ["linear1", "linear2"]
    assert [kept.module for kept in student.kept] == ["self_attn.out_proj (NonDynamicallyQuantizableLinear)"]


def test_convolutions_of_every_kind_compute_as_before_with_the_masked_weight():
    for kind, shape in ((nn.Conv1d, (2, 8, 9)), (nn.Conv2d, (2, 8, 9, 9)), (nn.Conv3d, (2, 8, 5, 5, 5))):
        layer, inputs = kind(8, 6, 3, stride=2, padding=1, dilation=1, groups=2, bias=False), torch.randn(shape)
        net = nn.Sequential(layer, kind(6, 4, 1, padding_mode="circular"))
        student = derive(net, inputs, how="semi-structured")
        assert student.edit.layers == ["0"]
        assert "pads with more than zeros (circular)" in student.kept[0].reason
        with torch.no_grad():
            layer.weight.copy_(student.model[0].weight)
        torch.testing.assert_close(student.model(inputs), net(inputs))


def test_wrong_options_and_other_models_are_refused():
    with pytest.raises(ValueError, match=r"n must be at least 1 and less than m; got n=4, m=4"):
        BySparsity(n=4, m=4)
    with pytest.raises(ValueError, match="unfit must be one of skip, refuse; got 'x'"):
        BySparsity(unfit="x")
    with pytest.raises(StudentError, match=r"'relu' of Sequential must be an nn.Linear or a convolution, got ReLU"):
        Sparse(n=2, m=4, layers=["relu"]).build(toy_teacher())
    with pytest.raises(StudentError, match=r"'stem': 2 of 4 needs input channels in multiples of 4, got 1"):
        Sparse(n=2, m=4, layers=["stem"]).build(toy_teacher())
