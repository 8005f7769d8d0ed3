"""Rounding: values and gradients against plain float64 loops, ranges, and when they are set."""

import pytest
import torch
from kdx_quant.rounding import InputRounding, RowRounding, WeightRounding, round_to_levels


def test_values_are_rounded_to_the_levels_of_onnx() -> None:
    x = torch.linspace(-3, 3, 61)
    got = round_to_levels(x, torch.tensor(0.25), zero=8.0, least=0, most=15)
    expected = torch.fake_quantize_per_tensor_affine(x, 0.25, 8, 0, 15)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_the_gradient_of_a_learned_step_is_that_of_the_paper() -> None:
    torch.manual_seed(3)
    weight = torch.randn(3, 5, dtype=torch.float64).requires_grad_()
    rounding = WeightRounding(weight, 3, learned=True).double()
    rounding.step.data *= 0.7  # some weights are beyond the range
    upstream = torch.randn_like(weight)
    rounding(weight).backward(upstream)
    most, steps = 3, rounding.step.detach()
    for channel in range(3):
        expected = 0.0
        for place in range(5):
            scaled = float(weight.detach()[channel, place] / steps[channel])
            if abs(scaled) >= most:
                expected += float(upstream[channel, place]) * (most if scaled > 0 else -most)
                assert weight.grad[channel, place] == 0
            else:
                expected += float(upstream[channel, place]) * (round(scaled) - scaled)
                assert weight.grad[channel, place].item() == pytest.approx(upstream[channel, place].item(), rel=1e-12)
        expected /= (5 * most) ** 0.5
        assert rounding.step.grad[channel].item() == pytest.approx(expected, rel=1e-12)


def test_a_learned_step_begins_as_in_the_paper_or_at_the_range_of_many_levels() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0], [1.0, -1.0, 7.0]])
    assert WeightRounding(weight, 2, learned=True).step.tolist() == [3.0, 6.0]
    found = WeightRounding(weight, 4, learned=True).step.tolist()
    assert found == pytest.approx([3 / 7, min(2 * 3 / 7**0.5, 1.0)])
    assert WeightRounding(weight, 8, learned=True).step.tolist() == pytest.approx([3 / 127, 7 / 127])
    many = torch.cat([torch.full((1, 63), 0.01), torch.ones(1, 1)], 1)
    mean = (0.63 + 1) / 64
    assert WeightRounding(many, 3, learned=True).step.item() == pytest.approx(2 * mean / 3**0.5)


def test_a_range_follows_the_weight_and_its_end_is_a_level() -> None:
    weight = torch.tensor([[0.5, -1.0], [0.0, 0.0]])
    rounding = WeightRounding(weight, 4, learned=False)
    assert rounding(weight)[0, 1] == -1.0
    assert rounding(2 * weight)[0, 1] == -2.0
    assert (rounding(weight)[1] == 0).all()  # a channel of zeros
    assert not rounding.state_dict()


@pytest.mark.parametrize("learned", [False, True])
def test_the_first_batch_in_training_sets_the_range_of_what_a_layer_takes(learned: bool) -> None:
    rounding, x = InputRounding(8, learned=learned), torch.rand(4, 3)
    rounding.eval()
    assert rounding(x) is x  # nothing is known yet
    rounding.train()
    rounding(x)
    assert rounding.is_set
    assert rounding.zero == 0
    state = {name: value.clone() for name, value in rounding.state_dict().items()}
    rounding.eval()
    rounding(100 * x)
    assert all(torch.equal(rounding.state_dict()[name], value) for name, value in state.items())
    again = InputRounding(8, learned=learned).eval()
    again.load_state_dict(state)
    torch.testing.assert_close(again(x), rounding(x), rtol=0, atol=0)


def test_values_below_zero_put_the_level_of_zero_in_the_middle() -> None:
    rounding, x = InputRounding(4, learned=False), torch.tensor([[-1.0, 0.5, 1.0]])
    got = rounding(x)
    assert rounding.zero == 8
    assert got[0, 2] == 1.0
    assert got[0, 0] == -1.0


def test_a_range_is_a_moving_average_of_the_largest_value() -> None:
    rounding = InputRounding(8, learned=False)
    rounding(torch.tensor([[255.0]]))
    rounding(torch.tensor([[510.0]]))
    assert rounding.step.item() == pytest.approx(1.1)


def test_zero_stays_zero_for_padding() -> None:
    for x in (torch.rand(2, 5), torch.randn(2, 5)):
        rounding = InputRounding(3, learned=True)
        rounding(x)
        assert (rounding(torch.zeros(2, 5)) == 0).all()


def test_rows_have_ranges_of_their_own() -> None:
    x = torch.tensor([[1.0, -0.5], [1000.0, 1.0]])
    got = RowRounding(8)(x)
    assert got[0].tolist() == pytest.approx([127 / 127.5, -64 / 127.5])
    assert got[1].tolist() == pytest.approx([1000 * 127 / 127.5, 0.0])


def test_half_precision_is_rounded_in_float32() -> None:
    x = torch.rand(64, 8).bfloat16()
    rounding = InputRounding(8, learned=True)
    got = rounding(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, rounding(x.float()).bfloat16(), rtol=0, atol=0)
