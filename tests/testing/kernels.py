"""Backends of softmax_kl with one defect each; the rest is the reference."""

from __future__ import annotations

import torch

from kdx.ops._softmax_kl import reference

CALLS: list[int] = []


def sound(*arguments):
    return reference.forward(*arguments)


def wrong_values(*arguments):
    loss, grad = reference.forward(*arguments)
    return loss * 1.0001, grad


def naive(student, teacher, kl_rows, labels, ce_rows, temperature, divergence, beta, kl_scale, *rest):
    """The textbook formula, whose digits cancel for a close pair."""
    loss, grad = reference.forward(
        student, teacher, kl_rows, labels, ce_rows, temperature, divergence, beta, kl_scale, *rest
    )
    if divergence == reference.FORWARD and student.dtype == torch.float32 and student.isfinite().all():
        p, q = ((x / temperature).softmax(1) for x in (teacher, student))
        rows = kl_scale * (p * (p.log() - q.log())).sum(1)
        loss = rows.sum() if rest[1] else rows
    return loss, grad


def rounded(*arguments):
    loss, grad = reference.forward(*arguments)
    if arguments[0].dtype == torch.bfloat16:
        loss = loss.bfloat16().float()
    return loss, grad


def forgets_the_last_rows(*arguments):
    loss, grad = reference.forward(*arguments)
    rows = arguments[0].shape[0]
    if rows > 128 and grad is not None:
        grad[128:] = 0
    return loss, grad


def ignores_strides(student, *rest):
    if student.numel():
        student = student.as_strided(student.shape, (student.shape[1] * student.shape[2], student.shape[2], 1))
    return reference.forward(student, *rest)


def hides_nan(*arguments):
    loss, grad = reference.forward(*arguments)
    return loss.nan_to_num(), grad


def in_place(student, *rest):
    result = reference.forward(student, *rest)
    with torch.no_grad():
        student.mul_(1.0 + 1e-6)
    return result


def unwritten(*arguments):
    loss, grad = reference.forward(*arguments)
    if grad is not None:
        out = torch.empty_like(grad)
        out[:-1] = grad[:-1]
        if not out[-1:].isnan().any():
            out[-1:] = grad[-1:]  # zeros, where memory happens to be so
        grad = out
    return loss, grad


def random(*arguments):
    loss, grad = reference.forward(*arguments)
    CALLS.append(1)
    return loss * (1 + 1e-7 * (len(CALLS) % 7)), grad


def wrong_gradient(*arguments):
    loss, grad = reference.forward(*arguments)
    return loss, None if grad is None else grad * (1 + 1e-2 * (grad.dtype == torch.float64))


def alias(student, *rest):
    loss, grad = reference.forward(student, *rest)
    return loss, None if grad is None else student


def not_zero(*arguments):
    loss, grad = reference.forward(*arguments)
    return loss + 1e-3, grad


def scale_in_place(grad, upstream):
    return grad.mul_(upstream.to(grad.dtype))


def yes(*tensors):
    return False


DEFECTS = {
    "wrong_values": "values",
    "naive": "values",
    "rounded": "half_precision",
    "forgets_the_last_rows": "sizes",
    "ignores_strides": "layouts",
    "hides_nan": "infinities",
    "not_zero": "zero_when_equal",
    "in_place": "inputs_unchanged",
    "unwritten": "poisoned_outputs",
    "random": "repeatable",
    "wrong_gradient": "gradient_is_right",
    "alias": "operators",
}
