"""Block-wise supervision: every block apart, from the teacher's input to the teacher's output."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from kdx_search import BlockWise
from search_nets import Wide, images, seeded
from torch import nn

import kdx
from kdx.students import StudentError
from kdx.testing import SchemeTags, check_scheme, toy_batches, toy_model


def made(**options) -> BlockWise:
    blocks = options.pop("blocks", ["stem", "blocks"])
    return BlockWise(seeded(Wide), seeded(lambda: Wide(12), 1), blocks=blocks, **options)


def test_conformance() -> None:
    scheme = BlockWise(toy_model(), toy_model(6, seed=1), blocks=["conv"], samples=0, widths=(0.5, 1.0))
    check_scheme(scheme, tags=SchemeTags(mean_over_samples=False))


def test_a_block_learns_the_teachers_output_from_the_teachers_input() -> None:
    scheme = made(samples=0).double()
    batch = kdx.Batch(images(6).double(), None)
    scheme.setup(batch)
    scheme.double().train()
    teacher = copy.deepcopy(scheme.teacher.model).eval()
    stem = teacher.stem(batch.inputs)
    fed = torch.relu(teacher.norm(stem))
    target = teacher.blocks(fed)
    losses = scheme(batch).terms
    own = copy.deepcopy(scheme.student).train()
    into, out = scheme.maps["into1"].weight, scheme.maps["out1"].weight
    x = torch.einsum("oc,nchw->nohw", into, fed)
    found = torch.einsum("oc,nchw->nohw", out, own.blocks(x))
    torch.testing.assert_close(losses["largest/blocks"], F.mse_loss(found, target) / target.var())
    found = torch.einsum("oc,nchw->nohw", scheme.maps["out0"].weight, own.stem(batch.inputs))
    torch.testing.assert_close(losses["largest/stem"], F.mse_loss(found, stem) / stem.var())
    x = torch.einsum("oc,nchw->nohw", into[:2], fed)  # the smallest has two of eight channels and one block
    block = own.blocks[0]
    hidden = F.conv2d(x, block.conv1.weight[:4, :2], padding=1)
    hidden = F.batch_norm(hidden, None, None, block.norm1.weight[:4], block.norm1.bias[:4], training=True)
    made_of = x + F.conv2d(hidden.relu(), block.conv2.weight[:2, :4], block.conv2.bias[:2], padding=1)
    found = torch.einsum("oc,nchw->nohw", out[:, :2], made_of)
    torch.testing.assert_close(losses["smallest/blocks"], F.mse_loss(found, target) / target.var())


def test_no_gradient_passes_from_one_block_to_another() -> None:
    scheme = made(samples=0)
    batch = kdx.Batch(images(6), None)
    scheme.setup(batch)
    scheme(batch).terms["largest/blocks"].backward()
    assert scheme.student.stem.weight.grad is None
    assert scheme.student.blocks[0].conv1.weight.grad is not None


def test_training_lowers_the_loss_of_every_block_and_rating_changes_nothing() -> None:
    data = toy_batches(count=3)
    scheme = made(samples=1)
    scheme.setup(data[0])
    before = scheme.rate(scheme.space.smallest, data)
    assert before == scheme.rate(scheme.space.smallest, data)
    kdx.fit(scheme, data, epochs=15, optimizer=kdx.Ref("AdamW", lr=0.01), seed=0, device="cpu", progress=False)
    state = {name: tensor.clone() for name, tensor in scheme.state_dict().items()}
    for choice in (scheme.space.largest, scheme.space.smallest):
        after = scheme.rate(choice, data)
        assert list(after) == ["stem", "blocks"]
        assert all(after[name] < 0.8 * before[name] for name in after)
    assert all(torch.equal(tensor, state[name]) for name, tensor in scheme.state_dict().items())
    assert scheme.rate(scheme.space.largest, data)["blocks"] < scheme.rate(scheme.space.smallest, data)["blocks"]


def test_maps_of_another_size_are_averaged_to_the_students() -> None:
    student = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(64, 3))
    teacher = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Flatten(), nn.Linear(384, 3))
    scheme = BlockWise(student, teacher, blocks={"0": "0"}, samples=0)
    batch = kdx.Batch(images(4), None)
    scheme.setup(batch)
    target = F.adaptive_avg_pool2d(teacher[0](batch.inputs), 4).detach()
    found = torch.einsum("oc,nchw->nohw", scheme.maps["out0"].weight, student[0](batch.inputs))
    torch.testing.assert_close(scheme(batch).terms["largest/0"], F.mse_loss(found, target) / target.var())


def test_blocks_that_are_not_there_or_can_be_left_out_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks must name modules of the student"):
        made(blocks=[])
    with pytest.raises(kdx.KdxError, match="nothing"):
        made(blocks={"stem": "nothing"})
    scheme = made(blocks={"nothing": "stem"})
    with pytest.raises(StudentError, match=r"block 'nothing' of the student must be a module that runs once"):
        scheme.setup((images(4), None))
    scheme = made(blocks=["blocks.1"], samples=0)
    scheme.setup((images(4), None))
    with pytest.raises(StudentError, match=r"leaves out block 'blocks.1'.*keep=\['depth:\*'\]"):
        scheme((images(4), None))
    with pytest.raises(RuntimeError, match=r"call scheme.setup\(batch\) once"):
        made().rate({}, [])
