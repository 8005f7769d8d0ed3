"""The student that SimKD puts together: trained, evaluated and exported with the teacher's classifier."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kdx
from kdx.capture import Captured
from kdx.errors import CaptureError
from kdx.training.weights import load_weights


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, stride=2 if width < 6 else 1, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(width, 3)

    def forward(self, x):
        return self.fc(self.relu(self.norm(self.conv(x))).mean((2, 3)))


def make(**options):
    torch.manual_seed(0)
    layers = {"student_layer": "relu", "teacher_layer": "relu", "classifier": "fc", "student_classifier": "fc"}
    return kdx.make("scheme", "simkd", Net(4), Net(8).eval(), **layers | options)


@pytest.fixture
def data():
    torch.manual_seed(1)
    return [(torch.randn(8, 1, 6, 6), torch.randint(3, (8,))) for _ in range(4)]


def test_simkd_student_is_body_projector_and_the_teachers_classifier(data):
    scheme = make()
    scheme.setup(data[0])
    student = scheme.students["student"]
    teacher = scheme.teacher.model
    assert torch.equal(student.classifier.weight, teacher.fc.weight)
    assert student.classifier.weight is not teacher.fc.weight
    assert isinstance(student.body.fc, nn.Identity)
    assert [tuple(m.weight.shape) for m in student.projector if isinstance(m, nn.Conv2d)] == [
        (4, 4, 1, 1),
        (4, 4, 3, 3),
        (8, 4, 1, 1),
    ]
    student.eval()
    body = student.body
    feature = torch.relu(body.norm(body.conv(data[0][0])))
    expected = teacher.fc(student.projector(feature).mean((2, 3)))
    torch.testing.assert_close(student(data[0][0]), expected)


def test_simkd_loss_is_the_squared_error_of_the_projected_feature_alone(data):
    scheme = make()
    scheme.setup(data[0])
    scheme.eval()
    losses = scheme(data[0])
    assert list(losses.terms) == ["simkd"]
    student, teacher = scheme.students["student"], scheme.teacher.model
    feature = student.projector(torch.relu(student.body.norm(student.body.conv(data[0][0]))))
    wanted = torch.relu(teacher.norm(teacher.conv(data[0][0]))).reshape(8, 8, 3, 2, 3, 2).mean((3, 5))
    torch.testing.assert_close(losses.total, (feature - wanted).square().mean())


def test_simkd_trains_body_and_projector_and_never_the_classifier(data, tmp_path):
    scheme = make()
    before = copy.deepcopy(scheme.teacher.model.state_dict())
    run = kdx.fit(
        scheme, data, epochs=6, evaluate=data, device="cpu", folder=tmp_path, optimizer={"name": "AdamW", "lr": 0.01}
    )
    student = scheme.students["student"]
    assert torch.equal(student.classifier.weight, before["fc.weight"])
    assert not student.classifier.training
    assert all(torch.equal(value, before[name]) for name, value in scheme.teacher.model.state_dict().items())
    optimized = {id(p) for p in scheme.parameters() if p.requires_grad}
    assert optimized == {id(p) for part in (student.body, student.projector) for p in part.parameters()}
    scheme.train()
    losses = scheme(data[0])
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in scheme.parameters() if parameter.requires_grad)
    assert run.step == 24


def test_simkd_exports_a_student_that_answers_alone(data, tmp_path):
    scheme = make()
    kdx.fit(scheme, data, epochs=1, device="cpu", folder=tmp_path)
    student = scheme.students["student"].eval()
    path = next(tmp_path.glob("*.safetensors"))
    assert {name.split(".")[0] for name in load_file(path)} == {"body", "projector", "classifier"}
    fresh = make()
    fresh.setup(data[0])
    loaded = fresh.students["student"]
    nn.init.zeros_(loaded.classifier.weight)
    load_weights(loaded, path)
    assert torch.equal(loaded.eval()(data[0][0]), student(data[0][0]))
    assert torch.equal(copy.deepcopy(student)(data[0][0]), student(data[0][0]))


def test_simkd_takes_the_input_of_the_classifier_as_a_vector(data):
    scheme = make(student_layer="fc:input", teacher_layer="fc:input", student_classifier=None)
    scheme.setup(data[0])
    student = scheme.students["student"]
    assert all(m.kernel_size == (1, 1) for m in student.projector if isinstance(m, nn.Conv2d))
    assert student(data[0][0]).shape == (8, 3)
    scheme(data[0]).total.backward()
    assert student.body.conv.weight.grad.abs().max() > 0


def test_simkd_refuses_a_feature_from_which_the_classifier_does_not_get_the_logits(data):
    with pytest.raises(ValueError, match="does not give the teacher's logits from the pooled feature of 'norm'"):
        make(teacher_layer="norm").setup(data[0])
    with pytest.raises(CaptureError, match="'fcc'"):
        make(classifier="fcc")
    with pytest.raises(CaptureError, match="'fcc'"):
        make(student_classifier="fcc")


def test_simkd_needs_setup_and_one_model_as_teacher(data):
    with pytest.raises(RuntimeError, match=r"scheme\.setup\(batch\)"):
        make().students["student"](data[0][0])

    class Store(kdx.Teacher):
        def tap(self, names):
            pass

        def forward(self, batch):
            return Captured({})

    with pytest.raises(TypeError, match="one model, whose classifier is reused; got Store"):
        kdx.make("scheme", "simkd", Net(4), Store(), student_layer="relu", teacher_layer="relu", classifier="fc")
