"""Margins of scores against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from kdx.knowledge.margin_mse import MarginMSE, margin_mse


@pytest.mark.parametrize("shape", [(6, 2), (5, 4)])
def test_it_is_the_squared_error_of_the_margins(random, shape):
    s, t = random(*shape, seed=1), random(*shape, seed=2)
    a, b = s.numpy(), t.numpy()
    wanted = np.mean(
        [((a[i, 0] - a[i, k]) - (b[i, 0] - b[i, k])) ** 2 for i in range(len(a)) for k in range(1, shape[1])]
    )
    assert margin_mse(s, t).item() == pytest.approx(wanted, rel=1e-12)
    assert gradcheck(margin_mse, (s.requires_grad_(), t.requires_grad_()))


def test_the_scale_of_the_scores_is_its_own_and_a_shift_of_a_query_counts_for_nothing(random, loss_and_gradients):
    s, t = random(4, 3, seed=1), random(4, 3, seed=2)
    loss, gradients = loss_and_gradients(MarginMSE(), {"logits": s}, {"logits": t}, None)
    shifted, _ = loss_and_gradients(MarginMSE(), {"logits": s}, {"logits": t + random(4, 1, seed=3)}, None)
    torch.testing.assert_close(loss, shifted)
    torch.testing.assert_close(gradients["logits"].sum(1), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(4, 1), (4, 3, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected scores \[N, 1 \+ K\]"):
        margin_mse(torch.zeros(shape), torch.zeros(shape))
