"""OFD against an oracle: margin ReLU, partial distance, connectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import kdx
from kdx.capture import Captured
from kdx.knowledge.ofd import OFD, batchnorm_margin, ofd
from kdx.teachers import Frozen


def oracle(student, teacher, margin):
    total = 0.0
    for index in np.ndindex(*student.shape):
        s, t = float(student[index]), max(float(teacher[index]), float(margin[index[1]]))
        total += 0.0 if s <= t <= 0 else (s - t) ** 2
    return total / len(student)


@pytest.mark.parametrize("shape", [(3, 4, 3, 2), (1, 1, 1, 1), (2, 5, 1, 1)])
def test_ofd_has_the_value_of_the_oracle(random, shape):
    s, t, margin = random(*shape, seed=1), random(*shape, seed=2), -random(shape[1], seed=3).abs()
    assert ofd(s, t, margin=margin).item() == pytest.approx(oracle(s, t, margin), rel=1e-12)


def test_ofd_gradient_is_right_in_float64_and_absent_where_the_relu_hides_the_difference(random):
    s, t, margin = (
        random(2, 3, 2, 2, seed=1).requires_grad_(),
        random(2, 3, 2, 2, seed=2),
        torch.tensor([-0.1, -1, -3.0]),
    )
    assert torch.autograd.gradcheck(lambda a, b: ofd(a, b, margin=margin), (s, t.requires_grad_()))
    hidden = torch.full((1, 1, 1, 2), -2.0, requires_grad=True)
    loss = ofd(hidden, torch.tensor([-0.5, 0.5]).view(1, 1, 1, 2), margin=torch.tensor([-1.0]))
    loss.backward()
    assert loss.item() == 6.25
    assert hidden.grad.flatten().tolist() == [0, -5]


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, -2.0), (-3.0, 0.5), (2.9, 1.0)])
def test_batchnorm_margin_is_the_mean_of_the_negative_part_of_a_normal(mean, std):
    norm = nn.BatchNorm2d(1)
    with torch.no_grad():
        norm.weight.fill_(std)
        norm.bias.fill_(mean)
    x = np.linspace(mean - 12 * abs(std), 0, 2_000_001)
    density = np.exp(-0.5 * ((x - mean) / std) ** 2)
    assert batchnorm_margin(norm).item() == pytest.approx((x * density).sum() / density.sum(), rel=1e-4)


def test_batchnorm_margin_is_three_deviations_where_hardly_anything_is_negative():
    norm = nn.BatchNorm2d(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 0.0]))
        norm.bias.copy_(torch.tensor([4.0, 1.0]))
    assert batchnorm_margin(norm).tolist() == [-1.5, 0]


@pytest.fixture
def component(random):
    component = OFD(student=("a", "b"), teacher=("a", "b"))
    s = {"a": random(3, 4, 4, 4, seed=1), "b": random(3, 5, 2, 2, seed=2)}
    t = {"a": random(3, 6, 4, 4, seed=3), "b": random(3, 7, 2, 2, seed=4)}
    component.setup(Captured(s), Captured(t))
    return component, s, t


def test_ofd_passes_every_component_check(component, check_component):
    check_component(*component)


def test_ofd_halves_the_weight_for_every_level_away_from_the_deepest(component):
    ofd_, s, t = component
    ofd_.eval()
    with torch.no_grad():
        parts = [oracle(c(s[k]), t[k], c.margin) for c, k in zip(ofd_.connectors, "ab", strict=True)]
        assert ofd_(Captured(s), Captured(t), None).item() == pytest.approx(parts[0] / 2 + parts[1], rel=1e-9)


def test_ofd_takes_margins_from_the_first_batch_and_saves_them(component):
    ofd_, _, t = component
    flat = t["a"].transpose(0, 1).flatten(1).numpy()
    expected = [row[row < 0].mean() for row in flat]
    np.testing.assert_allclose(ofd_.connectors[0].margin, expected, rtol=1e-6)
    assert "connectors.0.margin" in ofd_.state_dict()


def test_ofd_margins_of_dead_channels_are_zero_and_given_ones_are_taken_as_they_are(random):
    s, t = Captured({"a": random(2, 2, 2, 2)}), Captured({"a": random(2, 3, 2, 2).abs()})
    component = OFD(student="a", teacher="a")
    component.setup(s, t)
    assert component.connectors[0].margin.tolist() == [0, 0, 0]
    component = OFD(student="a", teacher="a", margins=[torch.tensor([-1.0, -2.0, -3.0])])
    component.setup(s, t)
    assert component.connectors[0].margin.tolist() == [-1, -2, -3]
    with pytest.raises(ValueError, match=r"one value per teacher channel, shapes \[\(3,\)\]"):
        OFD(student="a", teacher="a", margins=[torch.zeros(2)]).setup(s, t)


def test_ofd_survives_a_last_batch_of_one_sample_and_one_pixel(component):
    ofd_, s, t = component
    one = [{k: v[:1, :, :1, :1] for k, v in side.items()} for side in (s, t)]
    assert math.isfinite(ofd_.double()(Captured(one[0]), Captured(one[1]), None).item())


def test_ofd_teacher_may_normalise_by_the_batch_and_keeps_its_statistics():
    torch.manual_seed(0)

    def net(width):
        return nn.Sequential(
            nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(4 * width, 2)
        )

    student, teacher = net(2), net(3)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    scheme = kdx.Offline(student, Frozen(teacher, train_mode=True), knowledge={"ofd": OFD(student="1", teacher="1")})
    batch = torch.randn(8, 1, 4, 4), torch.randint(2, (8,))
    scheme.setup(batch)
    scheme(batch).total.backward()
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    # with batch statistics the features are normal with the BatchNorm's bias and weight, 0 and 1 here
    found = scheme.knowledge["ofd"].connectors[0].margin
    torch.testing.assert_close(found, batchnorm_margin(teacher[1]), atol=0.25, rtol=0)


class Residual(nn.Module):
    """conv, norm, relu, then a block whose relu follows an addition."""

    def __init__(self, width):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU()
        self.conv2, self.norm2, self.relu2 = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU()
        self.fc = nn.Linear(4 * width, 2)

    def forward(self, x):
        x = self.relu(self.norm(self.conv(x)))
        return self.fc(self.relu2(self.norm2(self.conv2(x)) + x).flatten(1))


def normal_margin(weight, bias):
    """E[x | x < 0] for x = bias + |weight| z, by the error function."""
    found = []
    for s, m in zip(weight.abs().tolist(), bias.tolist(), strict=True):
        below = 0.5 * (1 + math.erf(-m / s / 2**0.5))
        found.append(m - s * math.exp(-((m / s) ** 2) / 2) / (2 * math.pi) ** 0.5 / below if below > 0.001 else -3 * s)
    return found


@pytest.mark.parametrize(
    ("taps", "norms"),
    [(("norm", "norm2"), ("norm", "norm2")), (("relu:input", "relu2:input"), ("norm", "norm2")), (("norm*",), None)],
)
def test_ofd_finds_the_batchnorm_before_each_tap(taps, norms):
    torch.manual_seed(0)
    student, teacher = Residual(2), Residual(3)
    for norm in (teacher.norm, teacher.norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    component = kdx.make("knowledge", "ofd", student=taps, teacher=taps, margins="batchnorm")
    scheme = kdx.Offline(student, Frozen(teacher, train_mode=True), knowledge={"ofd": component})
    batch = torch.randn(8, 1, 4, 4), torch.randint(2, (8,))
    scheme.setup(batch)
    assert torch.isfinite(scheme(batch).total)
    for connector, name in zip(component.connectors, norms or ("norm", "norm2"), strict=True):
        norm = teacher.get_submodule(name)
        assert connector.margin.tolist() == pytest.approx(normal_margin(norm.weight, norm.bias), rel=1e-4)


def test_ofd_margins_follow_the_pairs_and_the_member_of_an_ensemble():
    torch.manual_seed(0)
    teachers = {"one": Residual(3), "two": Residual(4)}
    nn.init.constant_(teachers["two"].norm.bias, 0.5)
    component = OFD(
        student=("norm", "norm2"), teacher=("two/norm2", "two/norm"), pairing="reverse", margins="batchnorm"
    )
    scheme = kdx.make("scheme", "multi-teacher", student=Residual(2), teachers=teachers, knowledge={"ofd": component})
    scheme.setup((torch.randn(8, 1, 4, 4), torch.randint(2, (8,))))
    expected = [normal_margin(torch.ones(4), torch.full((4,), bias)) for bias in (0.5, 0.0)]
    for connector, margin in zip(component.connectors, expected, strict=True):
        assert connector.margin.tolist() == pytest.approx(margin, rel=1e-6)


def test_ofd_says_when_there_is_no_batchnorm_to_take_margins_from():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    scheme = kdx.Offline(
        Residual(2), net, knowledge={"ofd": OFD(student="norm", teacher="1:input", margins="batchnorm")}
    )
    with pytest.raises(kdx.errors.CaptureError, match=r"'1:input:affine'.*no BatchNorm ran before"):
        scheme.setup((torch.randn(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(ValueError, match="batchnorm"):
        OFD(student="norm", teacher="norm", margins="batch")
