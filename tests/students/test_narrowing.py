"""Narrower students whose channels the caller chooses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kdx
from kdx.errors import StudentError
from kdx.students import Narrowing, StudentConfig, build, inherit
from tests.students import nets


def test_chosen_channels_stay_with_all_that_goes_with_them():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 4, 2))
    narrowing = Narrowing.of(net, torch.zeros(2, 1, 4, 4))
    assert len(narrowing.groups) == 1
    kept = narrowing.kept_indices({0: [1, 3]})
    assert kept["0.weight"][0].tolist() == kept["1.running_var"][0].tolist() == [1, 3]
    assert kept["3.weight"][1].tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    assert narrowing.edit({0: [1, 3]}).sizes["3.weight"] == [-1, 8]


@pytest.mark.parametrize("make", [nets.ResNet, nets.DenseNet, nets.MobileNet])
def test_the_edit_makes_the_student_again_from_its_config_and_from_the_teacher(make):
    teacher = nets.settled(make(), nets.IMAGES)
    narrowing = Narrowing.of(teacher, nets.IMAGES)
    stay = {number: range(0, len(group), 2) for number, group in enumerate(narrowing.groups)}
    edit = narrowing.edit(stay)
    config = StudentConfig(base={"target": f"tests.students.nets:{make.__name__}"}, edits=[edit])
    student = inherit(config, teacher, nets.IMAGES)
    shapes = {name: tensor.shape for name, tensor in student.state_dict().items()}
    assert {name: tensor.shape for name, tensor in build(config.model_dump()).state_dict().items()} == shapes
    kept = narrowing.kept_indices(stay)
    for name, tensor in student.state_dict().items():
        expected = teacher.state_dict()[name]
        for dim, index in kept.get(name, {}).items():
            expected = expected.index_select(dim, torch.as_tensor(index))
        assert torch.equal(tensor, expected)


def test_zero_padded_shortcuts_are_narrowed_too():
    teacher = kdx.make("model", "resnet", depth=8)
    images = torch.zeros(2, 1, 28, 28)
    narrowing = Narrowing.of(teacher, images)
    edit = narrowing.edit({number: range(len(group) // 2) for number, group in enumerate(narrowing.groups)})
    assert edit.pads
    edit.build(teacher)
    assert teacher(images).shape == (2, 10)


def test_a_choice_that_leaves_no_channel_or_splits_heads_is_refused():
    narrowing = Narrowing.of(nets.TextEncoder(), torch.zeros(2, 12, dtype=torch.int64))
    tokens = next(number for number, group in enumerate(narrowing.groups) if group.multiple == 4)
    inner = next(number for number, group in enumerate(narrowing.groups) if group.inner)
    for stay in ({tokens: []}, {tokens: range(6)}, {tokens: [99, 1, 2, 3]}):
        with pytest.raises(StudentError, match="a multiple of 4, at least one, can stay"):
            narrowing.edit(stay)
    with pytest.raises(StudentError, match="with the tokens of their attention"):
        narrowing.edit({inner: [0]})
    assert narrowing.edit({tokens: range(8)}).sizes["fc.weight"] == [-1, 8]
