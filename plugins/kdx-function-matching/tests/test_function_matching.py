"""Function matching: both see the same mixture, evaluation does not mix, labels count by their shares."""

import pytest
import torch
import torch.nn.functional as F
from kdx_function_matching.scheme import FunctionMatching, mix

import kdx
from kdx.testing import parametrize_checks, toy_batches, toy_model


@parametrize_checks(FunctionMatching(toy_model(), toy_model(8, seed=1)))
def test_conformance(check) -> None:
    check()


class Watched(torch.nn.Linear):
    """Keeps what it was given."""

    def forward(self, x):
        self.seen = x.detach().clone()
        return super().forward(x)


def test_teacher_and_student_see_the_same_mixture_of_neighbours() -> None:
    torch.manual_seed(3)
    student, teacher = Watched(4, 3), Watched(4, 3)
    scheme = FunctionMatching(student, teacher)
    inputs = torch.randn(5, 4)
    torch.manual_seed(7)
    losses = scheme((inputs, None))
    torch.manual_seed(7)
    share = torch.rand(())
    assert torch.equal(student.seen, teacher.seen)
    torch.testing.assert_close(student.seen[2], share * inputs[2] + (1 - share) * inputs[1])
    torch.testing.assert_close(student.seen[0], share * inputs[0] + (1 - share) * inputs[4])
    p, log_q = F.softmax(teacher(student.seen), 1), F.log_softmax(student(student.seen), 1)
    torch.testing.assert_close(losses.total, F.kl_div(log_q, p, reduction="batchmean"))


def test_evaluation_mode_leaves_the_images_as_they_are() -> None:
    student, teacher = Watched(4, 3), Watched(4, 3)
    inputs = torch.randn(5, 4)
    FunctionMatching(student, teacher).eval()((inputs, None))
    assert torch.equal(student.seen, inputs)


def test_labels_count_by_the_shares_of_their_images() -> None:
    student, teacher = Watched(4, 3), Watched(4, 3)
    scheme = FunctionMatching(student, teacher, task=(2.0, F.cross_entropy))
    inputs, targets = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    torch.manual_seed(7)
    task = scheme((inputs, targets)).terms["task"]
    torch.manual_seed(7)
    share = torch.rand(())
    logits = student(mix(inputs, share))
    expected = share * F.cross_entropy(logits, targets) + (1 - share) * F.cross_entropy(logits, targets.roll(1))
    torch.testing.assert_close(task, 2 * expected)


def test_what_cannot_be_mixed_is_said() -> None:
    scheme = FunctionMatching(Watched(4, 3), Watched(4, 3))
    with pytest.raises(TypeError, match=r"one floating-point tensor; got torch.int64 tensor"):
        scheme((torch.zeros(2, 4, dtype=torch.int64), None))
    with pytest.raises(TypeError, match="got dict"):
        scheme(({"x": torch.zeros(2, 4)}, None))


def test_it_trains_by_name() -> None:
    torch.manual_seed(0)
    scheme = kdx.make("scheme", "function-matching", toy_model(), toy_model(8, seed=1))
    batches = toy_batches()
    before = sum(scheme.eval()(batch).total.item() for batch in batches)
    kdx.fit(scheme.train(), batches, epochs=20, optimizer=kdx.Ref("AdamW", lr=0.02), device="cpu")
    assert sum(scheme.eval()(batch).total.item() for batch in batches) < 0.5 * before
