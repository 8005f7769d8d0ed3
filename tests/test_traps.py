"""Mistakes seen in other people's distillation code: the test for each, and those that have no better home."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdx

TRAPS = {
    "the teacher is left in training mode, its BatchNorm or dropout active": [
        "the_teacher_stays_in_evaluation_mode_whatever_happens_to_the_scheme",
        "a_step_changes_nothing_in_the_teacher_and_draws_nothing_for_it",
    ],
    "the student is left in evaluation mode after the first evaluation": [
        "evaluation_restores_modes_and_random_state",
        "the_student_trains_on_in_training_mode_after_an_evaluation",
    ],
    "KLDivLoss by default divides by the number of classes too": ["the_mean_is_over_samples_and_not_over_classes"],
    "T^2 is dropped where the task weighs nothing": [
        "t_squared_does_not_depend_on_the_weight_of_the_task",
        "kd_loss_at_the_ends_of_alpha_is_one_of_its_terms",
        "t_squared_keeps_the_size_of_the_gradient_which_falls_as_t_squared_without_it",
    ],
    "KL as mean squared error of probabilities": [
        "the_gradient_is_that_of_the_divergence_and_not_of_squared_probabilities"
    ],
    "KL that is its cross term alone": ["equal_logits_give_zero_loss_and_zero_gradient"],
    "the logarithm of a softmax that underflows": ["the_gradient_is_finite_and_right_where_the_softmax_saturates"],
    "peers that are not detached": ["peers_exchange_no_gradient"],
    "gradients zeroed once while peers step in turn": ["every_peer_moves_by_the_gradient_of_its_own_loss_alone"],
    "the task loss counted once per pair of peers": ["mutual_terms_are_dml_and_the_task_is_counted_once_per_peer"],
    "VID whose variance is never trained": ["vid_variance_is_trained_towards_the_squared_error"],
    "DIST with the wrong sign": ["the_loss_falls_towards_the_teacher_and_is_largest_against_it"],
    "DKD whose mean is a sum": ["repeating_the_batch_changes_nothing_so_mean_is_no_sum"],
    "PKT that gives NaN for a row of zeros": ["a_zero_row_gives_no_nan_but_equal_neighbours"],
    "attention over layers that is as wide as the batch": ["semckd_takes_any_batch_size_and_any_order_of_samples"],
    "a relation taken on each replica alone": ["two_ranks_take_the_step_of_one_process_on_the_whole_batch"],
    "the model called past its DDP wrapper": [
        "a_training_on_two_ranks_goes_through_the_wrapper_that_synchronises_gradients"
    ],
    "hooks registered after compiling": ["a_tap_after_compile_raises_and_one_before_fires"],
    "a layer that never runs, and a loss of zero for it": ["a_tap_that_never_fires_is_an_error"],
    "adapters that the optimizer never sees": ["the_adapter_must_exist_before_the_optimizer"],
    "resuming restarts at the first stage": ["an_interrupted_experiment_resumes_in_its_stage_and_ends_the_same"],
    "resuming forgets random states": ["a_resumed_run_ends_bitwise_where_the_unbroken_one_ends"],
    "resuming forgets memory banks": ["crd_run_that_is_resumed_ends_where_the_unbroken_one_ends"],
    "resuming forgets schedules": ["fit_advances_a_schedule_step_by_step_and_resuming_goes_on_with_it"],
    "the teacher saved inside every checkpoint": [
        "the_teacher_is_in_no_parameter_list_and_no_checkpoint_but_follows_the_device_and_dtype"
    ],
    "a loss that depends on the split into micro-batches": ["one_batch_of_64_equals_four_of_16"],
    "a vocabulary padded with zeros": ["classes_that_do_not_exist_get_no_mass_when_they_are_masked_out"],
    "a learning rate that never changes": ["schedules_of_torch_by_name"],
    "the best test accuracy as the result": ["no_test_image_is_seen_before_the_end_and_the_splits_are_disjoint"],
    "a teacher weaker than its student": ["a_weak_teacher_is_a_warning"],
}
"""Mistake -> tests that would find it here, by name without ``test_``."""


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_has_its_test(trap: str) -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    for name in TRAPS[trap]:
        assert re.search(rf"^def test_{name}\(", tests, re.MULTILINE), f"{name} is gone; what finds this mistake now?"


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_t_squared_does_not_depend_on_the_weight_of_the_task(net, batch, weight: float) -> None:
    student, teacher = net().eval(), net(6).eval()
    task = (weight, F.cross_entropy) if weight else None
    scheme = kdx.Offline(student, teacher, task=task, knowledge={"kd": (0.9, kdx.SoftTargets(4.0))}).eval()
    s, t = (model(batch.inputs).detach() for model in (student, teacher))
    divergence = F.kl_div((s / 4).log_softmax(1), (t / 4).softmax(1), reduction="batchmean")
    torch.testing.assert_close(scheme(batch).terms["kd"].detach(), 0.9 * 16 * divergence)


def test_the_student_trains_on_in_training_mode_after_an_evaluation(net, loader) -> None:
    modes = []

    class Look:
        @kdx.hookimpl
        def kdx_step_end(self, run, step) -> None:
            modes.append((run.epoch, run.scheme.student.training, run.scheme.student.drop.training))

    kdx.fit(kdx.Supervised(net()), loader, epochs=3, evaluate=loader, observers=[Look()])
    assert {epoch for epoch, *_ in modes} == {0, 1, 2}
    assert all(student and dropout for _, student, dropout in modes)


def test_every_peer_moves_by_the_gradient_of_its_own_loss_alone() -> None:
    torch.manual_seed(0)
    peers = [nn.Linear(4, 3) for _ in range(3)]
    before = copy.deepcopy(peers)
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    scheme = kdx.Mutual(peers, knowledge={"kd": kdx.SoftTargets(1.0)})
    data = DataLoader(TensorDataset(x, y), 8)
    kdx.fit(scheme, data, optimizer={"name": "SGD", "lr": 0.5}, schedule=None, device="cpu")
    logits = [peer(x) for peer in before]
    for i, (now, old) in enumerate(zip(peers, before, strict=True)):
        others = [logits[j].detach().softmax(1) for j in range(3) if j != i]
        divergences = [F.kl_div(logits[i].log_softmax(1), p, reduction="batchmean") for p in others]
        loss = F.cross_entropy(logits[i], y) + sum(divergences) / 2
        (gradient,) = torch.autograd.grad(loss, old.weight, retain_graph=True)
        torch.testing.assert_close(now.weight, old.weight - 0.5 * gradient)
