"""Values and gradients of the relational losses on every backend, against the authors' definition in float64 numpy."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch

from kdx.errors import BackendError
from kdx.ops import _dispatch, rkd, rkd_angle, rkd_distance
from kdx.ops._rkd import reference

# Relative error of loss and gradient (by norm) in float32 on well separated points, for every backend.
BUDGET = {torch.float32: (2e-6, 4e-6), torch.float64: (1e-13, 1e-12)}
# Points on a line cost digits whoever computes; plain PyTorch shows how many, but its error is one draw from a wide
# range, of which the nearest pair makes most. Triton's roots are a little less than correctly rounded.
TIMES_PLAIN = {"reference": 2, "cpu": 4, "cuda": 4, "triton": 8}


def distance_oracle(student, teacher, delta):
    """RKD-D as its authors define it, exact duplicates as kdx counts them; loss and the student's gradient."""

    def normalised(points):
        difference = points[:, None] - points[None]
        distance = np.sqrt((difference**2).sum(-1))
        positive = distance > 0
        mean = distance[positive].mean() if positive.any() else np.inf
        return difference, distance, positive, mean

    difference, d, positive, mu = normalised(student)
    _, e, _, nu = normalised(teacher)
    z = d / mu - e / nu
    psi = np.clip(z, -delta, delta)
    size = max(1, z.size)
    slope = np.where(positive, psi / mu - (psi * d).sum() / (max(1, positive.sum()) * mu**2), 0) / size
    unit = difference / np.where(positive, d, 1)[:, :, None]
    return (psi * (z - psi / 2)).sum() / size, 2 * (slope[:, :, None] * unit).sum(1)


def angle_oracle(student, teacher, delta):
    """RKD-A from unit difference vectors, point by point; loss and the student's gradient."""
    n = len(student)
    loss, gradient = 0.0, np.zeros_like(student)
    for i in range(n):
        legs = []
        for points in (student, teacher):
            difference = points - points[i]
            length = np.sqrt((difference**2).sum(-1, keepdims=True))
            inverse = np.where(length > 0, 1 / np.where(length > 0, length, 1), 0)
            legs.append((difference * inverse, inverse))
        (u, inverse), (w, _) = legs
        cosine = u @ u.T
        z = cosine - w @ w.T
        psi = np.clip(z, -delta, delta)
        loss += (psi * (z - psi / 2)).sum()
        to_ends = 2 * (psi @ u - (psi * cosine).sum(1, keepdims=True) * u) * inverse
        gradient += to_ends
        gradient[i] -= to_ends.sum(0)
    return loss / max(1, n) ** 3, gradient / max(1, n) ** 3


def oracle(student, teacher, distance_weight, angle_weight, delta=1.0):
    student, teacher = (x.detach().double().numpy() for x in (student, teacher))
    a, da = distance_oracle(student, teacher, delta)
    b, db = angle_oracle(student, teacher, delta)
    return distance_weight * a + angle_weight * b, distance_weight * da + angle_weight * db


def points(n, d, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(value, expected, bound, floor=1e-12):
    error = np.linalg.norm(np.asarray(value, dtype=np.float64) - expected)
    assert error <= bound * np.linalg.norm(expected) + floor, (error, np.linalg.norm(expected))


OP = "rkd"
WEIGHTS = {"distance": (1.0, 0.0), "angle": (0.0, 1.0), "both": (25.0, 50.0)}


def check(backend, student, teacher, weights, delta=1.0):
    s, t = student.detach().requires_grad_(), teacher.detach().requires_grad_()
    loss = rkd(s, t, distance_weight=weights[0], angle_weight=weights[1], delta=delta, backend=backend)
    grads = torch.autograd.grad(1.5 * loss, (s, t))
    loss_bound, grad_bound = BUDGET[loss.dtype]
    floor = torch.finfo(loss.dtype).eps * sum(weights)
    close(loss.item(), oracle(student, teacher, *weights, delta)[0], loss_bound, floor**2)
    for grad, own, other in ((grads[0], student, teacher), (grads[1], teacher, student)):
        expected = oracle(own, other, *weights, delta)[1]
        plain = reference.forward(own, other, *weights, delta, True, False)[1].double().numpy()
        close(grad.numpy(), 1.5 * expected, grad_bound, floor + TIMES_PLAIN[backend] * np.linalg.norm(plain - expected))
    return loss


@pytest.mark.quick(backend="triton", n=[0, 1, 2, 3], d_s=[1, 3])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 33])
@pytest.mark.parametrize(("d_s", "d_t"), [(1, 3), (3, 1), (512, 3)])
def test_loss_and_both_gradients_match_the_authors_definition(backend, weights, n, d_s, d_t, wide_tiles):
    check(backend, points(n, d_s), points(n, d_t, seed=1), weights)


@pytest.mark.quick(backend="triton", weights=[WEIGHTS["both"]])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_more_points_than_one_tile_of_any_backend(backend, weights, wide_tiles):
    slow = backend == "reference" or (backend == "triton" and weights[0] != 0)
    n = 130 if slow and weights[1] != 0 else 257
    student = points(n, 8).requires_grad_()
    teacher = points(n, 20, seed=1)
    loss = rkd(student, teacher, distance_weight=weights[0], angle_weight=weights[1], backend=backend)
    expected, gradient = oracle(student, teacher, *weights)
    close(loss.item(), expected, BUDGET[torch.float32][0])
    close(torch.autograd.grad(loss, student)[0].numpy(), gradient, BUDGET[torch.float32][1])


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_float64_is_computed_in_float64(weights, backend_name, require):
    if backend_name not in ("reference", "cpu"):
        pytest.skip("float64 runs on reference and cpu")
    require("rkd", backend_name)
    loss = check(backend_name, points(33, 5, dtype=torch.float64), points(33, 7, 1, torch.float64), weights)
    assert loss.dtype == torch.float64
    mixed = rkd(points(9, 5), points(9, 7, 1, torch.float64), backend=backend_name)
    assert mixed.dtype == torch.float64
    close(mixed.item(), oracle(points(9, 5), points(9, 7, 1, torch.float64), 25.0, 50.0)[0], 1e-13)


@pytest.mark.parametrize("delta", [0.05, 3.0])
def test_delta_moves_the_linear_part(backend, delta, wide_tiles):
    check(backend, points(17, 3), points(17, 4, seed=1), (1.0, 1.0), delta)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float32_and_the_gradient_has_the_students_dtype(backend, dtype, wide_tiles):
    student, teacher = points(17, 6).to(dtype).requires_grad_(), points(17, 9, seed=1)
    loss = rkd(student, teacher, backend=backend)
    expected, gradient = oracle(student, teacher, 25.0, 50.0)
    assert loss.dtype == torch.float32
    close(loss.item(), expected, BUDGET[torch.float32][0])
    grad = torch.autograd.grad(loss, student)[0]
    assert grad.dtype == dtype
    close(grad.float().numpy(), gradient, 2.0 * torch.finfo(dtype).eps)


def test_strided_inputs_are_read_in_place_and_left_unchanged(backend, wide_tiles):
    base_s, base_t = points(8, 40), points(40, 30, seed=1)
    student, teacher = base_s.T[::2], base_t[1:40:2, 3:27:3]  # [20, 8], [20, 8]
    before = base_s.clone(), base_t.clone()
    check(backend, student, teacher, (25.0, 50.0))
    assert torch.equal(base_s, before[0])
    assert torch.equal(base_t, before[1])


def test_duplicates_collinear_points_and_collapsed_inputs_follow_the_conventions(backend, wide_tiles):
    twins = points(12, 4)
    twins[5] = twins[2]
    twins[7] = twins[2]
    line = torch.arange(12.0)[:, None] * torch.tensor([[1.0, -2.0, 0.5]])
    collapsed = torch.full((12, 3), 0.7)
    other = points(12, 5, seed=1)
    for student, teacher in ((twins, other), (other, twins), (line, other), (other, line), (twins, line)):
        check(backend, student, teacher, (25.0, 50.0))
    check(backend, collapsed, other, (25.0, 50.0))
    student = collapsed.clone().requires_grad_()
    for loss in (rkd_distance, rkd_angle):
        assert loss(collapsed, 3 * collapsed, backend=backend).item() == 0
        value = loss(student, other, backend=backend)
        assert value.item() > 0  # a collapsed student is not a good one
        assert torch.autograd.grad(value, student)[0].abs().max() == 0


def test_a_single_point_has_no_pair_whatever_it_holds(backend):
    for value in (1.0, torch.nan, torch.inf):
        student, teacher = (torch.full((1, 3), value).requires_grad_() for _ in range(2))
        for create_graph in (False, True):
            loss = rkd(student, teacher, backend=backend)
            grads = torch.autograd.grad(loss, (student, teacher), create_graph=create_graph)
            assert loss.item() == 0
            assert not any(grad.count_nonzero() for grad in grads)


def test_two_points_have_no_distance_loss(backend):
    assert rkd_distance(points(2, 4), points(2, 3, seed=1), backend=backend).item() <= 1e-12


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
@pytest.mark.parametrize("where", ["student", "teacher"])
def test_nan_and_inf_points_give_nan_and_so_do_their_gradients(backend, loss, where, wide_tiles):
    """A finite gradient of a loss that is NaN would pass a gradient scaler and train on nonsense."""
    for bad in (float("nan"), float("inf"), 1e25):  # whose square overflows
        student, teacher = points(9, 4), points(9, 3, seed=1)
        {"student": student, "teacher": teacher}[where][3, 1] = bad
        student.requires_grad_()
        with np.errstate(all="ignore"):  # Triton's interpreter computes in numpy, which warns
            value = loss(student, teacher, backend=backend)
            grad = torch.autograd.grad(value, student)[0]
        assert torch.isnan(value)
        assert torch.isnan(grad).all()


def test_order_of_threads_and_blocks_of_the_cuda_kernels_does_not_matter(emulated_cuda):
    student, teacher = points(70, 5), points(70, 7, seed=1)
    module = import_module("kdx.ops._rkd.cuda")
    runs = []
    for order in ("forward", "reverse", "shuffled"):
        with emulated_cuda.settings(order=order, seed=3):
            runs.append(module.forward(student, teacher, 25.0, 50.0, 1.0, True, True))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


def test_results_are_the_same_bits_every_time_and_for_every_number_of_threads(backend, wide_tiles):
    n = 33 if backend == "triton" else 130
    student, teacher = points(n, 20), points(n, 7, seed=1)
    runs = []
    for threads in (1, 2, 3, 5, 1) if backend == "cpu" else (1, 1):
        torch.set_num_threads(threads)
        for _ in range(2 if backend == "cpu" else 1):
            loss, grad_s, grad_t = _dispatch.select("rkd", backend, student, teacher)[1].forward(
                student, teacher, 25.0, 50.0, 1.0, True, True
            )
            runs.append((loss, grad_s, grad_t))
    if backend != "reference":  # plain PyTorch promises nothing of the kind
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


def test_both_losses_together_are_the_weighted_sum_of_each(backend, wide_tiles):
    student, teacher = points(20, 6), points(20, 5, seed=1)
    both = rkd(student, teacher, distance_weight=2.0, angle_weight=3.0, backend=backend)
    parts = 2 * rkd_distance(student, teacher, backend=backend) + 3 * rkd_angle(student, teacher, backend=backend)
    assert both.item() == pytest.approx(parts.item(), rel=1e-6)
    assert rkd(student, teacher, distance_weight=0.0, angle_weight=0.0, backend=backend).item() == 0


@pytest.mark.quick(backend="triton", weights=[WEIGHTS["distance"]])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_a_pair_grid_cut_into_blocks_gives_the_same(monkeypatch, backend, weights, wide_tiles):
    if backend == "reference":
        monkeypatch.setattr(reference, "_CHUNK", 700)
    elif backend == "cpu":
        monkeypatch.setattr(import_module("kdx.ops._rkd.cpu"), "BLOCK", 32)
    else:
        monkeypatch.setattr(import_module("kdx.ops._rkd.pair_grid"), "CAP", 8)
        monkeypatch.setattr(import_module("kdx.ops._rkd.pair_grid"), "BLOCK", 16)
    n = 40 if backend in ("reference", "triton") else 150
    student, teacher = points(n, 6), points(n, 9, seed=1)
    check(backend, student, teacher, weights)
    forward_only = rkd(student, teacher, distance_weight=weights[0], angle_weight=weights[1], backend=backend)
    close(forward_only.item(), oracle(student, teacher, *weights)[0], BUDGET[torch.float32][0])


def test_every_output_is_written(monkeypatch, backend, wide_tiles):
    """Fresh memory is filled with NaN: what is not written shows."""
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: real(*size, **options).fill_(float("nan")))
    module = import_module(f"kdx.ops._rkd.{backend}")
    for wanted in ((True, True), (True, False), (False, True), (False, False)):
        results = module.forward(points(21, 5), points(21, 11, seed=1), 1.0, 1.0, 1.0, *wanted)
        assert [r is not None for r in results] == [True, *wanted]
        assert all(torch.isfinite(r).all() for r in results if r is not None)


def test_no_gradient_is_computed_where_none_is_asked_for(monkeypatch, backend):
    asked = []
    module = import_module(f"kdx.ops._rkd.{backend}")
    real = module.forward
    monkeypatch.setattr(module, "forward", lambda *a: asked.append(a[-2:]) or real(*a))
    student, teacher = points(4, 2), points(4, 2, seed=1)
    rkd(student, teacher, backend=backend)
    loss = rkd(student.requires_grad_(), teacher, backend=backend)
    with torch.no_grad():
        assert not rkd(student, teacher, backend=backend).requires_grad
    rkd(student, teacher.requires_grad_(), backend=backend)
    assert asked == [(False, False), (True, False), (False, False), (True, True)]
    loss.backward()
    assert teacher.grad is None


def test_backward_twice_with_a_kept_graph_gives_the_same(backend, wide_tiles):
    student = points(9, 4).requires_grad_()
    loss = rkd(student, points(9, 3, seed=1), backend=backend)
    first = torch.autograd.grad(2 * loss, student, retain_graph=True)[0]
    second = torch.autograd.grad(2 * loss, student)[0]
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


def test_reference_gradients_agree_with_finite_differences_twice(monkeypatch):
    s, t = points(6, 3, dtype=torch.float64).requires_grad_(), points(6, 2, 1, torch.float64).requires_grad_()

    def loss(student, teacher):
        return reference.loss(student, teacher, 2.0, 3.0, 0.3)

    for chunk in (1 << 24, 20):
        monkeypatch.setattr(reference, "_CHUNK", chunk)
        assert torch.autograd.gradcheck(loss, (s, t))
        assert torch.autograd.gradgradcheck(loss, (s, t))
        by_autograd = torch.autograd.grad(loss(s, t), (s, t))
        by_formula = reference.forward(s, t, 2.0, 3.0, 0.3, True, True)[1:]
        for a, b in zip(by_formula, by_autograd, strict=True):
            close(a.numpy(), b.numpy(), 1e-13)


def test_second_derivatives_of_every_backend_are_those_of_the_reference(backend):
    wanted = []
    for name in ("reference", backend):
        s = points(7, 3).requires_grad_()
        loss = rkd(s, points(7, 4, seed=1), backend=name)
        grad = torch.autograd.grad(loss, s, create_graph=True)[0]
        wanted.append(torch.autograd.grad((grad**2).sum(), s)[0])
    close(wanted[1].numpy(), wanted[0].double().numpy(), 1e-5)


def test_a_teacher_made_of_the_student_is_counted_once_in_a_graph_of_gradients(backend):
    x = points(7, 3).requires_grad_()
    for student, teacher in ((x, x**2), (x**2, x)):
        loss = rkd(student, teacher, backend=backend)
        plain = torch.autograd.grad(loss, x, retain_graph=True)[0]
        close(torch.autograd.grad(loss, x, create_graph=True)[0].detach().numpy(), plain.double().numpy(), 2e-5)


def test_autocast_does_not_reach_the_loss(backend):
    student, teacher = points(9, 4).requires_grad_(), points(9, 3, seed=1)
    plain = rkd(student, teacher, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = rkd(student, teacher, backend=backend)
    assert torch.equal(plain, under)
    assert torch.equal(torch.autograd.grad(plain, student)[0], torch.autograd.grad(under, student)[0])


def test_opcheck(backend):
    arguments = (points(5, 3), points(5, 4, seed=1), 25.0, 50.0, 1.0, True, True, backend)
    torch.library.opcheck(torch.ops.kdx.rkd, arguments)
    torch.library.opcheck(torch.ops.kdx.rkd, (*arguments[:5], False, False, backend))


def test_fullgraph_compile_with_dynamic_shapes(backend):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda s, t: 2 * rkd(s, t, backend=backend), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for n in (5, 9):
        student, teacher = points(n, 4).requires_grad_(), points(n, 3, seed=1)
        loss = compiled(student, teacher)
        grad = torch.autograd.grad(loss, student)[0]
        plain = 2 * rkd(student, teacher, backend=backend)
        assert torch.equal(loss, plain)
        assert torch.equal(grad, torch.autograd.grad(plain, student)[0])
    torch._dynamo.reset()


def test_bad_input_names_the_argument():
    x = points(4, 3)
    with pytest.raises(ValueError, match=r"student: expected embeddings \[N, D\], got shape \[4, 3, 1\]"):
        rkd(x[..., None], x)
    with pytest.raises(ValueError, match="teacher: expected embeddings of the student's 4 points, got 3"):
        rkd_distance(x, x[:3])
    with pytest.raises(TypeError, match=r"teacher: expected floating point embeddings, got torch\.int64"):
        rkd_angle(x, x.long())
    with pytest.raises(TypeError, match="student: expected a tensor, got list"):
        rkd_angle([1.0], x)
    with pytest.raises(ValueError, match="teacher: expected it on cpu"):
        rkd(x, x.to("meta"))
    for delta in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="delta: expected a finite number > 0"):
            rkd(x, x, delta=delta)
    with pytest.raises(ValueError, match="angle_weight: expected a finite number >= 0, got -1"):
        rkd(x, x, angle_weight=-1)


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_backend_without_float64_says_so(request, name, require):
    if name == "cuda":
        request.getfixturevalue("emulated_cuda")
    require("rkd", name)
    with pytest.raises(BackendError, match="no float64 kernel; the backends cpu and reference"):
        rkd(points(4, 3).double(), points(4, 3), backend=name)


def test_torch_func_takes_gradients_and_refuses_what_has_no_formula(require):
    require("rkd", "cpu")
    student, teacher = points(20, 6), points(20, 5, seed=1)
    x = student.clone().requires_grad_()
    (expected,) = torch.autograd.grad(rkd(x, teacher), x)
    found = torch.func.grad(lambda s: rkd(s, teacher))(student)
    close(found.numpy(), expected.double().numpy(), 1e-6)
    with pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jvp(lambda s: rkd(s, teacher), (student,), (student,))
