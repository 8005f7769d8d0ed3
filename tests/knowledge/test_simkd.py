"""The loss of SimKD; its student is tested with the scheme."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdx.capture import Captured
from kdx.knowledge.simkd import SimKD, simkd


def test_simkd_has_the_value_of_the_oracle_and_the_right_gradient(random):
    s, t = random(3, 4, 2, 2, seed=1).requires_grad_(), random(3, 4, 2, 2, seed=2)
    assert simkd(s, t).item() == pytest.approx(np.mean((s.detach().numpy() - t.numpy()) ** 2), rel=1e-12)
    assert torch.autograd.gradcheck(simkd, (s, t))


def test_simkd_passes_every_component_check_and_pools_the_larger_map(random, check_component):
    s, t = {"projector": random(3, 4, 2, 2, seed=1)}, {"last": random(3, 4, 4, 4, seed=2)}
    component = SimKD(teacher="last")
    check_component(component, s, t)
    pooled = t["last"].reshape(3, 4, 2, 2, 2, 2).mean((3, 5))
    loss = component(Captured(s), Captured(t), None)
    assert loss.item() == pytest.approx((s["projector"] - pooled).square().mean().item(), rel=1e-12)


def test_simkd_without_its_projector_names_the_scheme(random):
    with pytest.raises(ValueError, match="got 3 of the student and 4 of the teacher; use the scheme 'simkd'"):
        SimKD(teacher="a", student="a")(Captured({"a": random(2, 3)}), Captured({"a": random(2, 4)}), None)
