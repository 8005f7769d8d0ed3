"""Data-free distillation: the formula, who moves when, and that no real image is ever looked at."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kdx
from kdx.schemes.data_free import DataFree
from kdx.schemes.parts.generator import ImageGenerator
from kdx.testing import parametrize_checks, toy_batches, toy_model
from kdx.testing.tags import SchemeTags


def make(**options) -> DataFree:
    torch.manual_seed(0)
    student, teacher = toy_model(), toy_model(8, seed=1)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return DataFree(student, teacher, **{"noise": 4, "width": 4, "student_steps": 2} | options)


def ready(**options) -> DataFree:
    scheme = make(**options).train()
    torch.manual_seed(1)
    scheme.setup(toy_batches()[0])
    scheme.advance(0, 10)
    return scheme


def images_of(scheme: DataFree, batch: kdx.Batch) -> torch.Tensor:
    """What the generator makes of the noise that was drawn, on a copy."""
    return copy.deepcopy(scheme.generator)(scheme._draws[id(batch.inputs)].noise)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_generator_climbs_what_the_student_descends(temperature) -> None:
    scheme, batch = ready(temperature=temperature), toy_batches()[0]
    searched = scheme(batch, "generator").terms["generator/disagreement"]
    taught = scheme(batch, "student").terms["kd"]
    x = images_of(scheme, batch).detach()
    student, teacher = copy.deepcopy(scheme.student), scheme.teacher.model
    p = (teacher(x) / temperature).softmax(1)
    log_q = (student(x) / temperature).log_softmax(1)
    expected = temperature**2 * F.kl_div(log_q, p, reduction="batchmean")
    torch.testing.assert_close(searched, -expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(taught, expected, rtol=1e-4, atol=1e-6)


def test_the_gradient_reaches_the_generator_through_both_models_and_neither_moves() -> None:
    scheme, batch = ready(), toy_batches()[0]
    before = {name: value.clone() for name, value in scheme.student.state_dict().items()}
    teacher = {name: value.clone() for name, value in scheme.teacher.model.state_dict().items()}
    phase = scheme.phases[0]
    with scheme.only(phase):
        losses = scheme(batch, "generator")
        losses.total.backward()
    found = [parameter.grad.clone() for parameter in phase.parameters]
    assert all(parameter.grad is None for parameter in scheme.student.parameters())
    assert all(parameter.grad is None for parameter in scheme.teacher.model.parameters())
    assert all(parameter.requires_grad for parameter in scheme.teacher.model.parameters())
    assert all(value.equal(before[name]) for name, value in scheme.student.state_dict().items())
    assert all(value.equal(teacher[name]) for name, value in scheme.teacher.model.state_dict().items())
    # by hand, on copies
    generator, student = copy.deepcopy(scheme.generator), copy.deepcopy(scheme.student)
    own = copy.deepcopy(scheme.teacher.model)
    images = generator(scheme._draws[id(batch.inputs)].noise)
    loss = -F.kl_div(student(images).log_softmax(1), own(images).softmax(1), reduction="batchmean")
    expected = torch.autograd.grad(loss, list(generator.parameters()))
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-6)


def test_the_students_phase_runs_on_the_same_images_every_time_and_leaves_the_generator_alone() -> None:
    scheme, batch = ready(), toy_batches()[0]
    scheme(batch, "generator")
    before = {name: value.clone() for name, value in scheme.generator.state_dict().items()}
    seen = []
    scheme.student.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    with scheme.only(scheme.phases[1]):
        for _ in range(2):
            scheme(batch, "student").total.backward()
    assert seen[0].equal(seen[1])
    assert seen[0].equal(images_of(scheme, batch))
    assert all(parameter.grad is None for parameter in scheme.generator.parameters())
    assert all(value.equal(before[name]) for name, value in scheme.generator.state_dict().items())
    scheme.advance(1, 10)
    scheme(batch, "student")
    assert not seen[2].equal(seen[0])


def test_training_never_looks_at_an_image_or_a_label() -> None:
    """Runs on images, on zeros and on numbers of another size end in the same bits."""
    ends = []
    for change in (lambda x: x, torch.zeros_like, lambda x: torch.full_like(x, 1e30)):
        scheme = make()
        data = [batch._replace(inputs=change(batch.inputs), targets=None) for batch in toy_batches()]
        kdx.fit(scheme, data, epochs=2, accumulate=2, seed=3, device="cpu")
        ends.append(scheme.state_dict())
    for other in ends[1:]:
        assert all(value.equal(other[name]) for name, value in ends[0].items())


def test_the_student_comes_to_agree_with_its_teacher_on_images_it_never_saw() -> None:
    """Of eight seeds tried the worst agreed on 95 % of the images; an untrained student agrees on a third of them."""
    batches = toy_batches(8)
    teacher = toy_model(8, seed=1)
    adamw = {"name": "AdamW", "lr": 0.02}
    kdx.fit(kdx.Supervised(teacher), batches, epochs=10, optimizer=adamw, seed=0, device="cpu")
    images = torch.cat([batch.inputs for batch in batches])

    def agreement(student: nn.Module) -> float:
        with torch.no_grad():
            same = student.eval()(images).argmax(1) == teacher.eval()(images).argmax(1)
        return same.float().mean().item()

    for seed in (1, 2):
        torch.manual_seed(seed)
        scheme = DataFree(toy_model(8, seed=2 + seed), teacher, noise=8, width=8, temperature=2.0)
        assert agreement(scheme.student) < 0.4
        kdx.fit(scheme, batches, epochs=10, optimizer=adamw, seed=seed, device="cpu")
        assert agreement(scheme.student) > 0.9


def test_inputs_that_are_no_images_need_a_generator() -> None:
    student = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"makes images \[N, C, H, W\], and the batch holds \[5, 3\]; give generator="):
        DataFree(student, nn.Linear(3, 2)).setup((torch.zeros(5, 3), None))
    scheme = DataFree(student, nn.Linear(3, 2), generator=nn.Linear(4, 3), noise=4)
    kdx.fit(scheme, [(torch.zeros(5, 3), None)] * 2, epochs=1, device="cpu")


def test_a_generator_makes_images_of_any_size() -> None:
    for shape in ((1, 28, 28), (3, 32, 20), (1, 7, 9)):
        images = ImageGenerator(shape, noise=5, width=3)(torch.randn(6, 5))
        assert images.shape == (6, *shape)
        torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(shape[0]), rtol=0, atol=1e-5)
        torch.testing.assert_close(images.var((0, 2, 3), unbiased=False), torch.ones(shape[0]), rtol=0, atol=1e-3)


@parametrize_checks(
    make(),
    tags=SchemeTags(mean_over_samples=False),  # every batch has noise of its own
    expected_failures={"training_lowers_the_loss": "what the student descends the generator climbs"},
)
def test_conformance(check) -> None:
    check()
