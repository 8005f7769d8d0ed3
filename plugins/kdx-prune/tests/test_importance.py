"""The importance of channels, against slow references in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kdx_prune.importance import score
from torch import nn

import kdx
from kdx.errors import StudentError
from kdx.students import StudentData, channel_groups

TASK = kdx.make("task", "classification")


class Net(nn.Module):
    """Two convolutions, the second within a residual sum; a channel's value can be scaled where it is read."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.two, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

    def forward(self, x, scale=None):
        x = F.relu(self.norm(self.one(x)))
        x = x if scale is None else x * scale[:, :, None, None]
        # the sum makes one group of the channels of both convolutions, and the linear layer reads it as well
        inner = self.two(x) if scale is None else self.two(x) * scale[:, :, None, None]
        return self.fc((x + inner).mean((2, 3)))


def made(rows=5):
    torch.manual_seed(1)
    net = Net().double().eval()
    net.norm.running_mean.uniform_(-1, 1)
    nn.init.normal_(net.norm.weight)
    return net, torch.randn(rows, 1, 6, 6, dtype=torch.float64), torch.arange(rows) % 4


def read_gates(net, images):
    """Gates at both readers of the channels, apart from each other as two gates of one value."""
    scale = torch.ones(len(images), 3, dtype=torch.float64, requires_grad=True)
    x = F.relu(net.norm(net.one(images)))
    total = x + net.two(x * scale[:, :, None, None])
    return scale, net.fc(total.mean((2, 3)) * scale)


def test_taylor_is_the_squared_change_of_the_mean_loss_when_a_channel_goes():
    net, images, targets = made(6)
    batches = [kdx.Batch(images[:3], targets[:3]), kdx.Batch(images[3:], targets[3:])]
    expected = torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        scale, logits = read_gates(net, batch.inputs)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, batch.targets), scale)
        expected += gradient.sum(0).square() / 2
    (group,) = channel_groups(net, images)
    (found,) = score("taylor", net.train(), [group], StudentData(batches, task=TASK))
    torch.testing.assert_close(found, expected)
    assert all(module.training for module in net.modules())


def test_rows_without_a_label_count_nothing_for_taylor_and_as_much_as_others_for_distillation():
    net, images, targets = made(6)
    (group,) = channel_groups(net, images)
    hidden = torch.where(torch.arange(6) < 3, targets, -100)

    def scored(importance, *batch):
        return score(importance, net, [group], StudentData([kdx.Batch(*batch)], task=TASK))[0]

    torch.testing.assert_close(scored("taylor", images, hidden), scored("taylor", images[:3], targets[:3]))
    torch.testing.assert_close(scored("distillation", images, hidden), scored("distillation", images, targets))
    with pytest.raises(StudentError, match="need labels"):
        scored("taylor", images, torch.full_like(targets, -100))


def test_distillation_at_the_teacher_is_twice_the_second_order_rise_of_the_distillation_loss():
    net, images, _ = made(4)
    many = images.repeat(2000, 1, 1, 1)  # the draws of a row average out
    (group,) = channel_groups(net, images)
    (found,) = score("distillation", net, [group], StudentData([kdx.Batch(many, None)], task=TASK), rows=1)
    teacher, small = net(images).log_softmax(1), 1e-3
    for channel in range(3):
        x = F.relu(net.norm(net.one(images)))
        scale = torch.ones(1, 3, dtype=torch.float64)
        scale[0, channel] -= small
        logits = net.fc((x + net.two(x * scale[:, :, None, None])).mean((2, 3)) * scale)
        rise = F.kl_div(logits.log_softmax(1), teacher, log_target=True, reduction="batchmean")
        assert found[channel].item() == pytest.approx(2 * rise.item() / small**2, rel=0.05)


def test_the_outputs_of_a_teacher_guide_distillation():
    net, images, _ = made(2)
    (group,) = channel_groups(net, images)
    sure = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).double()
    with torch.no_grad():
        sure[1].weight.zero_()
        sure[1].bias.copy_(torch.tensor([0.0, 0.0, 100.0, 0.0]))  # it always says class 2
    data = StudentData([kdx.Batch(images, None)], task=TASK)
    (found,) = score("distillation", net, [group], data, teacher=sure)
    scale, logits = read_gates(net, images)
    (gradient,) = torch.autograd.grad(logits.log_softmax(1)[:, 2].sum(), scale)
    torch.testing.assert_close(found, gradient.square().mean(0))
    assert sure.training


def test_activation_is_what_the_readers_get_from_a_channel():
    net, images, _ = made(4)
    (group,) = channel_groups(net, images)
    x = F.relu(net.norm(net.one(images)))
    both = x.abs().mean((2, 3)) + (x + net.two(x)).mean((2, 3)).abs()
    (found,) = score("activation", net, [group], StudentData([kdx.Batch(images, None)], task=TASK))
    torch.testing.assert_close(found, both.square().sum(0).sqrt())


def test_norms_are_those_of_the_filters_and_need_no_data():
    net, images, _ = made()
    (group,) = channel_groups(net, images)
    for name, power in (("l1", 1), ("l2", 2)):
        expected = sum(layer.weight.detach().flatten(1).norm(power, dim=1) for layer in (net.one, net.two))
        torch.testing.assert_close(score(name, net, [group])[0], expected)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("importance", ["taylor", "distillation", "activation"])
def test_the_tokens_of_a_transformer_are_gated_row_by_row_whatever_their_order(importance, batch_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first, dropout=0.0).double()

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer, self.fc = nn.Linear(5, 8), layer, nn.Linear(8, 3)

        def forward(self, x):  # [N, L, 5]
            x = self.embed(x)
            x = self.layer(x if batch_first else x.transpose(0, 1))
            return self.fc(x.mean(1 if batch_first else 0))

    net, tokens = Pooled().double(), torch.randn(6, 4, 5, dtype=torch.float64)
    groups = channel_groups(net, tokens)
    assert sorted(len(group) for group in groups if not group.inner) == [8, 12]
    data = StudentData([kdx.Batch(tokens, torch.arange(6) % 3)], task=TASK)
    hidden = next(place for place, group in enumerate(groups) if len(group) == 12)
    found = score(importance, net, groups, data)[hidden]
    net.eval()
    x = net.embed(tokens)
    x = layer.norm1(x + layer.self_attn(x, x, x)[0]) if batch_first else None
    if x is None:
        x = net.embed(tokens).transpose(0, 1)
        x = layer.norm1(x + layer.self_attn(x, x, x)[0]).transpose(0, 1)
    inner = F.relu(layer.linear1(x))
    if importance == "activation":
        torch.testing.assert_close(found, inner.mean(1).square().sum(0).sqrt().detach())
        return
    scale = torch.ones(6, 12, dtype=torch.float64, requires_grad=True)
    logits = net.fc(layer.norm2(x + layer.linear2(inner * scale[:, None])).mean(1))
    if importance == "taylor":
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.arange(6) % 3), scale)
        torch.testing.assert_close(found, gradient.sum(0).square())
    else:
        chances = logits.softmax(1).detach()
        drawn = torch.multinomial(chances, 1, generator=torch.Generator().manual_seed(0))[:, 0]
        (gradient,) = torch.autograd.grad(-F.cross_entropy(logits, drawn, reduction="sum"), scale)
        torch.testing.assert_close(found, gradient.square().mean(0))


def test_labels_and_quantities_are_drawn_in_their_own_way_and_what_cannot_be_drawn_is_refused():
    net, images, _ = made(4)
    (group,) = channel_groups(net, images)
    scale, outputs = read_gates(net, images)
    data = StudentData([kdx.Batch(images.repeat(2000, 1, 1, 1), None)], task=kdx.make("task", "regression"))
    (found,) = score("distillation", net, [group], data, rows=1)
    jacobian = torch.stack([torch.autograd.grad(outputs[:, k].sum(), scale, retain_graph=True)[0] for k in range(4)])
    torch.testing.assert_close(found, jacobian.square().sum(0).mean(0), rtol=0.05, atol=0)
    chances = outputs.detach().sigmoid()
    data = StudentData([kdx.Batch(images.repeat(2000, 1, 1, 1), None)], task=kdx.make("task", "multi-label"))
    (found,) = score("distillation", net, [group], data, rows=1)
    variance = (chances * (1 - chances)).T[:, :, None]
    torch.testing.assert_close(found, (variance * jacobian.square()).sum(0).mean(0), rtol=0.05, atol=0)
    with pytest.raises(StudentError, match="does not say what its outputs mean"):
        score("distillation", net, [group], StudentData([kdx.Batch(images, None)], task=lambda a, b: a.sum()))


def test_what_cannot_be_scored_is_refused():
    net, images, _ = made()
    groups = channel_groups(net, images)
    with pytest.raises(ValueError, match="one of l1, l2, activation, taylor, distillation; got 'l3'"):
        score("l3", net, groups)
    with pytest.raises(StudentError, match="give data"):
        score("taylor", net, groups)
    with pytest.raises(StudentError, match="no batch"):
        score("taylor", net, groups, StudentData([], task=TASK))
