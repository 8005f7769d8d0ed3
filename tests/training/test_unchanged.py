"""The fingerprints of frozen teachers: in the run and its checkpoints, and an error where they move."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kdx
from kdx.errors import CheckpointError, Interrupted, TeacherChangedError
from kdx.hookspecs import hookimpl
from kdx.store.fingerprint import digest_of, tensor_digests
from kdx.teachers import EMA, Ensemble, Frozen
from tests.stopping import Stop

DATA = [(torch.randn(8, 4), torch.arange(8) % 3) for _ in range(2)]
KD = {"kd": kdx.SoftTargets(2.0)}


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


class Meddles:
    """Changes a tensor of a teacher after a step."""

    def __init__(self, tensor: torch.Tensor, step: int = 1) -> None:
        self.tensor, self.step = tensor, step

    @hookimpl
    def kdx_step_end(self, step) -> None:
        if step == self.step:
            self.tensor.data.view(-1)[0] += 1


def test_a_run_knows_its_frozen_teachers() -> None:
    teacher = net()
    run = kdx.fit(kdx.Offline(net(1), teacher, knowledge=KD), DATA, device="cpu")
    assert run.teachers == {"teacher": digest_of(tensor_digests(teacher))}
    several = kdx.make("scheme", "multi-teacher", net(1), {"large": net(2), "wide": net(3)}, knowledge=KD)
    found = kdx.fit(several, DATA, device="cpu").teachers
    assert list(found) == ["large", "wide"]
    assert found["large"] != found["wide"]
    nested = kdx.Offline(net(1), Ensemble({"a": net(2), "b": Ensemble({"a": net(3), "c": net(4)})}), knowledge=KD)
    assert len(kdx.fit(nested, DATA, device="cpu").teachers) == 3
    assert kdx.fit(kdx.Supervised(net()), DATA, device="cpu").teachers == {}
    student = net()
    assert kdx.fit(kdx.Offline(student, EMA(student), knowledge=KD), DATA, device="cpu").teachers == {}


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "1.num_batches_tracked"])
def test_a_teacher_that_moves_is_an_error_that_names_its_tensors(name, tmp_path) -> None:
    teacher = net()
    tensor = dict(teacher.state_dict(keep_vars=True))[name]
    scheme = kdx.Offline(net(1), teacher, knowledge=KD)
    with pytest.raises(
        TeacherChangedError, match=f"frozen teacher 'teacher' changed during training: '{name}' are not"
    ):
        kdx.fit(scheme, DATA, device="cpu", folder=tmp_path, observers=[Meddles(tensor)])
    assert not (tmp_path / "student.safetensors").exists()
    with pytest.raises(TeacherChangedError):  # a run of steps alone, too
        kdx.fit(scheme, DATA, device="cpu", steps=3, observers=[Meddles(tensor, 3)])


def test_a_teacher_that_writes_into_itself_is_found_at_the_first_step() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def forward(self, x):
            self.calls += 1
            return self.inner(x)

    steps = []

    class Watch:
        @hookimpl
        def kdx_step_end(self, step) -> None:
            steps.append(step)

    with pytest.raises(TeacherChangedError, match=r"'calls' are not .*a counter of the model's own"):
        kdx.fit(kdx.Offline(net(1), Counts(), knowledge=KD), DATA, device="cpu", observers=[Watch()])
    assert steps == []


def test_a_teacher_in_training_mode_does_not_move() -> None:
    teacher = net()
    kdx.fit(kdx.Offline(net(1), Frozen(teacher, train_mode=True), knowledge=KD), DATA, device="cpu")
    assert teacher[1].num_batches_tracked == 0


def test_a_run_goes_on_with_the_teacher_it_began_with(tmp_path) -> None:
    def fit(teacher: nn.Module, **options):
        return kdx.fit(kdx.Offline(net(1), teacher, knowledge=KD), DATA, device="cpu", folder=tmp_path, **options)

    with pytest.raises(Interrupted):
        fit(net(0), observers=[Stop(1)])
    with pytest.raises(CheckpointError, match=r"run with another teacher: 'teacher' had other weights"):
        fit(net(2), resume=True)
    assert fit(net(0), resume=True).step == 2


def test_the_digest_of_a_tensor_tells_its_bytes_shape_and_dtype() -> None:
    def one(value: torch.Tensor) -> str:
        module = nn.Module()
        module.register_buffer("value", value, persistent=False)
        return tensor_digests(module)["value"]

    ones = torch.ones(2, 3)
    assert one(ones) == one(torch.ones(3, 2).T)
    others = [ones.view(3, 2), ones.double(), torch.ones(2, 3, device="meta"), ones.bfloat16(), torch.tensor(1.0)]
    others += [torch.zeros(0), torch.tensor([[1.0, 1, 1], [1, 1, 1 + 2**-23]]), torch.ones(2, 3, dtype=torch.complex64)]
    assert len({one(value) for value in [ones, *others]}) == len(others) + 1
    compiled = torch.compile(net(), backend="eager")
    assert tensor_digests(compiled) == tensor_digests(net())
