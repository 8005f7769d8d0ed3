"""Channels chosen by scores from elsewhere, the same share of every group or all in competition."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import kdx
from kdx.errors import StudentError
from kdx.students import Width, channel_groups, inherit, plan_width
from tests.students import nets

GREY = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
NETS = {
    "resnet with zero-padded shortcuts": lambda: (kdx.make("model", "resnet", depth=8), GREY),
    "vgg": lambda: (nets.VGG(), nets.IMAGES),
    "densenet": lambda: (nets.DenseNet(), nets.IMAGES),
    "vit": lambda: (kdx.make("model", "vit", dim=16, depth=2), GREY),
}


def backwards(groups):
    """The last channels of every group are the most important ones."""
    return [torch.arange(len(group), dtype=torch.float64) for group in groups]


def drawn(groups):
    """Unlike the order of any norm."""
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(len(group), generator=generator, dtype=torch.float64) for group in groups]


@pytest.mark.parametrize("spread", ["uniform", "global"])
@pytest.mark.parametrize("name", NETS)
def test_a_student_of_given_scores_is_made_again_from_its_edit_alone(name, spread):
    teacher, images = NETS[name]()
    plan = plan_width(teacher, images, scores=drawn, spread=spread)
    edit = plan.edit(plan.settings // 2)
    read = Width.model_validate(json.loads(json.dumps(edit.model_dump(mode="json"))))
    assert read == edit
    assert edit.importance == "given"
    config = {"base": {"target": "any.module:thing"}, "edits": [read.model_dump(mode="json")]}
    first, second = (inherit(config, teacher, images) for _ in range(2))
    assert sum(p.numel() for p in first.parameters()) < sum(p.numel() for p in teacher.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    built = NETS[name]()[0]
    read.build(built)
    shapes = [{key: tensor.shape for key, tensor in model.state_dict().items()} for model in (built, first)]
    assert shapes[0] == shapes[1]
    assert built(images).shape == first(images).shape == teacher(images).shape


def test_the_channels_of_the_highest_given_scores_are_kept():
    teacher = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 3))
    images = torch.zeros(2, 1, 4, 4)
    plan = plan_width(teacher, images, scores=backwards)
    edit = plan.edit(1)
    assert edit.dropped == {"0.weight": [[0, 1], [], [], []]}
    student = inherit({"base": {"target": "any.module:thing"}, "edits": [edit.model_dump()]}, teacher, images)
    assert torch.equal(student[0].weight, teacher[0].weight[2:])
    assert torch.equal(student[4].weight, teacher[4].weight[:, 8:])


def test_all_channels_compete_and_of_every_layer_one_or_a_share_stays():
    teacher = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    first = torch.tensor([5.0, 6.0, 7.0, 8.0], dtype=torch.float64)

    def scores(groups):
        return [first if len(group) == 4 else torch.arange(6, dtype=torch.float64) for group in groups]

    def widths(place, **options):
        plan = plan_width(teacher, torch.zeros(2, 3), scores=scores, spread="global", **options)
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        plan.edit(place).build(model)
        return plan.settings, model[0].out_features, model[2].out_features

    assert widths(8) == (9, 4, 6)
    assert widths(3) == (9, 4, 1)  # 0..4 of the wide layer are the least important
    assert widths(2) == (9, 3, 1)
    assert widths(0) == (9, 1, 1)
    assert widths(0, least=0.5) == (6, 2, 3)


def test_a_channel_gets_the_values_of_all_indices_at_which_it_lies():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    (group,) = channel_groups(net, torch.zeros(2, 1, 4, 4))
    columns, bias = torch.arange(12.0), torch.tensor([0.0, 100.0, 0.0])
    total = group.sum({("2.weight", 1): columns, ("0.bias", 0): bias, ("no.weight", 0): bias})
    assert total.tolist() == [6.0, 122.0, 38.0]
    rows = group.sum({("2.weight", 1): torch.stack([columns, 2 * columns])})
    assert rows.tolist() == [[6.0, 22.0, 38.0], [12.0, 44.0, 76.0]]


@pytest.mark.parametrize(
    ("dropped", "told"),
    [
        ({"0.weight": [[4], []]}, r"channels \[4\] along dimension 0 of '0.weight'"),
        ({"9.weight": [[0], []]}, "'9.weight'"),
        ({"2.weight": [[0], []]}, r"channels \[0\] along dimension 0 of '2.weight' are there and can be dropped"),
    ],
)
def test_dropped_channels_that_are_not_there_or_are_outputs_are_refused(dropped, told):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    edit = Width(ratio=0.5, importance="given", dropped=dropped, sizes={"0.weight": [3, -1]})
    with pytest.raises(StudentError, match=told):
        edit.derive(net, torch.zeros(2, 3))


def test_given_importance_without_the_channels_is_refused():
    with pytest.raises(StudentError, match="needs dropped"):
        Width(ratio=0.5, importance="given").derive(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.zeros(2, 3))
