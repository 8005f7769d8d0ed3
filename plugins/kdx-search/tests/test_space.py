"""The choices that a model leaves, what a choice costs, and what is refused."""

from __future__ import annotations

import random

import pytest
import torch
from kdx_search.space import Space
from search_nets import Stacked, Wide, images, seeded
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import kdx
from kdx.students import StudentConfig, StudentError, build


def sizes(space: Space) -> dict[str, tuple[int, ...]]:
    return {name: dimension.sizes for name, dimension in space.dimensions.items()}


def test_channels_blocks_and_windows_can_be_chosen() -> None:
    space = Space.of(seeded(Wide), images(), widths=(0.5, 1.0))
    assert sizes(space) == {
        "width:stem": (4, 8),
        "width:blocks.0.conv1": (8, 16),
        "width:blocks.1.conv1": (8, 16),
        "depth:blocks": (1, 2),
        "kernel:stem": (3, 5),
    }
    assert len(space) == 32
    assert space.largest == {**space.smallest, **{name: found[-1] for name, found in sizes(space).items()}}


def test_the_smallest_is_what_its_edits_build() -> None:
    space = Space.of(seeded(Wide), images(), widths=(0.25, 1.0))
    edits = space.edits(space.smallest)
    assert [edit.how for edit in edits] == ["width", "depth", "kernel"]
    config = StudentConfig(base={"target": "search_nets:Wide"}, edits=edits)
    built = build(config.model_dump(), trust=["search_nets"])
    stem, conv = 2 * 9, 2 * 4 * 9 + 4 * 2 * 9 + 2  # bias of conv2
    assert sum(p.numel() for p in built.parameters()) == stem + 2 * 2 + conv + 2 * 4 + 2 * 4 * 3 + 3
    assert space.cost(space.smallest).parameters == sum(p.numel() for p in built.parameters())
    assert space.edits(space.largest) == []


def test_operations_are_those_of_the_network_built_alone() -> None:
    space = Space.of(kdx.make("model", "resnet", depth=8), torch.zeros(2, 1, 14, 14))
    generator = random.Random(3)
    for _ in range(3):
        choice = space.sample(generator)
        config = StudentConfig(base={"name": "resnet", "depth": 8}, edits=space.edits(choice))
        alone = build(config.model_dump())
        assert space.cost(choice).flops == kdx.analysis.count_flops(alone, torch.zeros(2, 1, 14, 14))
        assert space.cost(choice).parameters == sum(p.numel() for p in alone.parameters())


def test_layers_that_meet_when_a_block_is_left_out_have_one_width() -> None:
    space = Space.of(kdx.make("model", "convnet", width=8, stages=1, depth=3), torch.zeros(2, 1, 28, 28))
    assert sizes(space) == {"width:stage1.conv1": (2, 4, 6, 8), "depth:stage1": (0, 1, 2)}
    for depth in (0, 1, 2):
        for width in (2, 8):
            model = space.structure({"width:stage1.conv1": width, "depth:stage1": depth}).to_empty(device="cpu")
            assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_block_whose_absence_meets_the_input_keeps_its_width() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    assert sizes(Space.of(net, torch.zeros(3, 6))) == {"depth:model": (0, 1, 2)}
    only = Space.of(net, torch.zeros(3, 6), depth=False)
    assert sizes(only) == {"width:0": (2, 3, 4, 6), "width:2": (2, 3, 4, 6)}


def test_choices_that_give_one_network_have_one_name() -> None:
    space = Space.of(seeded(Wide), images())
    one = {"depth:blocks": 1, "width:blocks.1.conv1": 4}
    assert space.canonical(one) == space.canonical({"depth:blocks": 1})
    assert space.canonical({**one, "depth:blocks": 2}) != space.canonical({"depth:blocks": 2})
    assert space.cost(one) == space.cost({"depth:blocks": 1})


def test_choices_are_drawn_from_the_given_generator_alone() -> None:
    space = Space.of(seeded(Wide), images())
    state = torch.get_rng_state()
    first, again = space.sample(random.Random(1)), space.sample(random.Random(1))
    assert first == again
    drawn = [space.sample(random.Random(seed)) for seed in range(60)]
    for name, dimension in space.dimensions.items():
        assert {choice[name] for choice in drawn} == set(dimension.sizes)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_transformer_of_hugging_face_has_widths_and_depths() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    model = BertForSequenceClassification(config)
    inputs = {"input_ids": torch.arange(12).reshape(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    space = Space.of(model, inputs, widths=(0.5, 1.0))
    assert space.dimensions["depth:bert.encoder.layer"].sizes == (1, 2, 3)
    assert {f"width:bert.encoder.layer.{k}.intermediate.dense" for k in range(3)} <= space.dimensions.keys()
    assert any("bert" in kept.module for kept in space.kept)  # its heads hold their number in their code
    assert space.cost(space.smallest).parameters < space.cost(space.largest).parameters / 2


def test_what_cannot_be_chosen_is_refused_with_what_stands_in_the_way() -> None:
    with pytest.raises(StudentError, match=r"nothing about Linear can be chosen.*allow more widths"):
        Space.of(nn.Linear(4, 2), torch.zeros(2, 4))
    with pytest.raises(StudentError, match=r"nothing about Sequential can be chosen"):
        Space.of(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(2, 4), widths=(1.0,))
    with pytest.raises(ValueError, match=r"widths must be shares of the channels in \(0, 1\].*got 2"):
        Space.of(seeded(Wide), images(), widths=(2,))


def test_a_sub_network_of_other_outputs_is_refused_and_can_be_left_as_it_is() -> None:
    with pytest.raises(StudentError, match=r"depth:blocks=.*\(2, 4\).*\(2, 12\).*keep=\['depth:blocks'\]"):
        Space.of(Stacked(), torch.zeros(2, 4))
    with pytest.raises(StudentError, match="nothing about Stacked can be chosen"):
        Space.of(Stacked(), torch.zeros(2, 4), keep=["depth:*"])


def test_dimensions_and_sizes_that_are_not_there_are_refused() -> None:
    space = Space.of(seeded(Wide), images(), keep=["width:blocks.*"])
    assert list(sizes(space)) == ["width:stem", "depth:blocks", "kernel:stem"]
    with pytest.raises(ValueError, match="keep: there is no dimension 'width:nothing'; there are width:stem"):
        Space.of(seeded(Wide), images(), keep=["width:nothing"])
    with pytest.raises(StudentError, match="there is no dimension 'width:fc' to choose; there are width:stem"):
        space.check({"width:fc": 3})
    with pytest.raises(StudentError, match=r"width:stem can be one of \(2, 4, 6, 8\); got 5"):
        space.check({"width:stem": 5})
