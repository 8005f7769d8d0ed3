"""The ledger: how many samples ran through students and teachers, and what that comes to."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdx
from kdx.errors import Interrupted
from kdx.training import Compute
from kdx.training.ledger import Ledger
from tests.stopping import Stop

ROWS, EPOCHS = 32, 2
DATA = TensorDataset(torch.randn(ROWS, 3), torch.arange(ROWS) % 2)


def train(scheme, *, evaluate=None, **options):
    return kdx.fit(
        scheme, DataLoader(DATA, 8), epochs=EPOCHS, evaluate=evaluate, device="cpu", progress=False, **options
    )


def nets():
    torch.manual_seed(0)
    return nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


def test_a_student_and_its_teacher_are_counted_by_the_sample() -> None:
    student, teacher = nets()
    run = train(kdx.Offline(student, teacher), evaluate=DataLoader(TensorDataset(*DATA[:10]), 5))
    found = run.compute
    trained, judged = ROWS * EPOCHS, 10 * EPOCHS
    assert (found.student_samples, found.backward_samples) == (trained + judged, trained)
    assert found.teacher_samples == trained
    assert (found.steps, found.seconds, found.trials) == (run.step, run.seconds, 0)
    forward = 2 * 3 * 2, 2 * (3 * 5 + 5 * 2)
    assert found.flops == forward[0] * (3 * trained + judged) + forward[1] * trained


class Twice(kdx.Supervised):
    """Runs its student twice on a batch, as a supernet does for two of its sub-networks."""

    def forward(self, batch):
        self.students["student"](batch.inputs)
        return super().forward(batch)


def test_what_a_scheme_runs_itself_is_counted_too() -> None:
    found = train(Twice(nets()[0])).compute
    assert found.student_samples == 2 * ROWS * EPOCHS


def test_peers_are_students_and_a_teacher_in_the_student_is_none() -> None:
    torch.manual_seed(0)
    found = train(kdx.Mutual([nn.Linear(3, 2), nn.Linear(3, 2)])).compute
    assert (found.student_samples, found.teacher_samples) == (2 * ROWS * EPOCHS, 0)


def test_a_hook_before_the_evaluation_is_counted() -> None:
    class Looks:
        @kdx.hookimpl
        def kdx_before_evaluate(self, student, batches):
            with torch.no_grad():
                for batch in batches():
                    student(batch.inputs)

    found = train(kdx.Supervised(nets()[0]), observers=[Looks()]).compute
    assert (found.student_samples, found.backward_samples) == (ROWS * EPOCHS + ROWS, ROWS * EPOCHS)  # at the end


@pytest.mark.parametrize("stop", [3, 4])
def test_a_resumed_run_has_cost_what_an_unbroken_one_has(tmp_path, stop) -> None:
    def run(folder, **options):
        return train(kdx.Offline(*nets()), evaluate=DataLoader(DATA, 8), folder=folder, **options)

    def cost(run):
        return {key: value for key, value in run.compute.as_dict().items() if key != "seconds"}

    whole = cost(run(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        run(tmp_path / "broken", observers=[Stop(stop)])
    rest = run(tmp_path / "broken", resume=True).compute.as_dict()
    assert {key: rest[key] for key in rest if key != "seconds"} == {
        key: whole[key] for key in whole if key != "seconds"
    }
    over = run(tmp_path / "broken", resume=True).compute
    assert over.student_samples == whole["student_samples"]
    assert over.flops is None  # nothing ran of which the operations could be counted


def test_a_compiled_scheme_is_taken_to_run_each_model_once() -> None:
    ledger = Ledger(kdx.Offline(*nets()), processes=2)
    ledger.count([kdx.Batch(DATA.tensors[0]), kdx.Batch(DATA.tensors[0][:5])])
    found = ledger.compute(1, 0.0)
    assert (found.student_samples, found.backward_samples, found.teacher_samples) == (2 * 37, 2 * 37, 2 * 37)
    assert found.flops == 2 * 37 * (12 * 3 + 50)


def test_no_hook_stays_on_a_model_and_none_is_there_for_an_observer() -> None:
    student, teacher = nets()

    class Looks:
        @kdx.hookimpl
        def kdx_step_end(self):
            assert not student._forward_pre_hooks
            assert not teacher._forward_pre_hooks

    train(kdx.Offline(student, teacher), observers=[Looks()])


def test_records_add_up_and_are_plain_values() -> None:
    one, other = Compute(student_samples=3, flops=7, seconds=0.5), Compute(student_samples=4, flops=None, trials=1)
    assert one + other == Compute(student_samples=7, flops=None, seconds=0.5, trials=1)
    assert sum([one, one], Compute()) == Compute(student_samples=6, flops=14, seconds=1.0)
    assert Compute.of(one.as_dict()) == one
    with pytest.raises(ValueError, match=r"has the keys backward_samples, flops, .*; got \['flops'\]"):
        Compute.of({"flops": 1})
    with pytest.raises(TypeError):
        one + 1
