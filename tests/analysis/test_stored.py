"""What models store: dense, quantised, packed, exported, sparse, masked."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from kdx.analysis.cost import measure_cost
from kdx.analysis.flops import count_flops
from kdx.analysis.stored import count_parameters, count_stored
from kdx.analysis.tensors import dense, stored_bytes
from kdx.errors import CountError
from tests.analysis.quantised import EXAMPLE, MODELS, PARAMETERS, fx_model, lstm, net, pt2e_model, torchao_model

FLOPS = 2 * (64 * 8 * 9 + 128 * 64 + 64 * 10)
NORM = 2 * 8  # parameters of the BatchNorm, which the ways without a graph leave
WEIGHTS = 64 * 128 + 10 * 64
BIASES = 8 + 64 + 10
CHANNELS = 64 + 10


@pytest.mark.parametrize("name", MODELS)
def test_every_way_of_quantising_leaves_parameters_and_operations_as_they_are(name):
    model = MODELS[name]()
    cost = measure_cost(model, EXAMPLE, repeats=2)
    assert cost.parameters == PARAMETERS + (0 if name in ("eager", "fx", "pt2e") else NORM)
    assert cost.flops == FLOPS == count_flops(net(), EXAMPLE)
    assert cost.uncounted == {}


def test_bytes_and_bits_of_packed_layers_are_those_of_their_integers_and_scales():
    found = count_stored(fx_model())
    # a scale of eight bytes and a zero point of eight for each of the 82 channels
    in_weights = 8 * 9 + WEIGHTS + 4 * BIASES + 16 * BIASES
    assert found.bits == 8 * in_weights / PARAMETERS
    assert found.bytes == in_weights + 5 * (4 + 8)  # of the inputs, the pooling, and the three layers


def test_bytes_and_bits_of_torchao_are_those_of_its_tensors():
    found = count_stored(torchao_model("Int8WeightOnlyConfig"))
    in_weights = WEIGHTS + CHANNELS * (4 + 1) + 4 * (8 * 9 + BIASES + NORM)
    assert found.bits == 8 * in_weights / (PARAMETERS + NORM)
    assert found.bytes == in_weights + 4 * NORM + 8  # statistics of the BatchNorm


def test_the_float_weights_that_an_exported_graph_keeps_beside_its_integers_are_bytes_and_no_parameters():
    found = count_stored(pt2e_model())
    integers = 8 * 9 + WEIGHTS + BIASES * (4 + 8)
    assert found.bytes == integers + 4 * PARAMETERS
    assert found.bits == 8 * found.bytes / PARAMETERS
    assert found.bits > 40


def test_a_recurrent_net_is_counted_with_its_packed_cells():
    model = lstm()
    cost = measure_cost(model, torch.zeros(3, 5, 8), repeats=2)
    assert cost.parameters == 4 * 16 * (8 + 16) + 2 * 64 + 16 * 4 + 4
    assert cost.flops == 2 * (5 * 4 * 16 * (8 + 16) + 16 * 4)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_quantised_convolutions_are_counted_as_those_they_stand_for(dimensions, transposed):
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dimensions}d")
    plain = kind(4, 6, 3, stride=2, groups=2)
    qconfig = torch.ao.quantization.get_default_qconfig("qnnpack" if transposed else "x86")
    engine, torch.backends.quantized.engine = torch.backends.quantized.engine, "onednn"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stubs = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
            model = nn.Sequential(stubs[0], plain, stubs[1]).eval()
            model.qconfig = qconfig
            torch.ao.quantization.prepare(model, inplace=True)
            example = torch.randn(2, 4, *[7] * dimensions)
            model(example)
            model = torch.ao.quantization.convert(model)
        assert count_flops(model, example) == count_flops(plain, example) > 0
    finally:
        torch.backends.quantized.engine = engine
    assert count_parameters(model) == count_parameters(plain)


def test_torchscript_that_packs_its_weights_is_refused_with_where_to_count():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.jit.script(fx_model())
        frozen = torch.jit.freeze(torch.jit.trace(net(), EXAMPLE))
        plain = torch.jit.trace(net(), EXAMPLE)
    for model, why in ((packed, "in packed objects"), (frozen, "as constants")):
        with pytest.raises(CountError, match=why) as refused:
            count_stored(model)
        assert str(refused.value).endswith("count the model that it was made from")
        cost = measure_cost(model, EXAMPLE, repeats=2)
        assert (cost.parameters, cost.bytes, cost.bits, cost.sparsity) == (None,) * 4
        assert set(cost.uncounted) == {"parameters", "bytes", "bits", "sparsity"}
        assert cost.flops == FLOPS
    assert count_stored(plain) == count_stored(net())


@pytest.mark.parametrize("register", ["register_parameter", "register_buffer"])
def test_integers_of_an_unknown_kind_are_refused_rather_than_counted_wrong(register):
    model = nn.Linear(4, 4)
    codes = torch.zeros(4, 2, dtype=torch.int8)
    getattr(model, register)("codes", nn.Parameter(codes, False) if register == "register_parameter" else codes)
    with pytest.raises(CountError, match=r"codes is torch\.int8"):
        count_stored(model)


def test_masks_of_a_buffer_that_counts_positions_are_no_weights():
    model = nn.Linear(4, 4)
    model.register_buffer("positions", torch.arange(6)[None])
    assert count_stored(model).parameters == 20
    assert count_stored(model).bytes == 80 + 48
    assert count_stored(model).bits == 32


def test_sparsity_is_that_of_the_weights_which_are_computed_with():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    assert count_stored(model).sparsity == 0
    with torch.no_grad():
        model[0].weight.view(-1, 4)[:, :2] = 0  # two of four
        model[0].bias.zero_()  # counts for nothing
    assert count_stored(model).sparsity == 1 / 4
    prune.l1_unstructured(model[1], "weight", 0.5)
    assert count_stored(model).sparsity == 1 / 2
    assert count_stored(model).parameters == 144
    prune.remove(model[1], "weight")

    class Mask(nn.Module):
        def forward(self, weight):
            return weight.tril()

    parametrize.register_parametrization(model[1], "weight", Mask())
    zeros = 32 + int((model[1].weight == 0).sum())
    assert count_stored(model).sparsity == zeros / 128 > 1 / 2


def test_sparsity_of_integers_is_that_of_the_values_they_stand_for():
    model = torchao_model("Int8WeightOnlyConfig")
    assert 0 < count_stored(model).sparsity < 0.02
    whole = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        whole.weight.copy_(torch.eye(4))
    packed = nn.Sequential(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.ao.quantization.quantize_dynamic(packed, {nn.Linear})
    assert count_stored(packed).sparsity == 3 / 4


def test_models_without_values_or_weights_have_no_sparsity_and_no_bits():
    with torch.device("meta"):
        assert count_stored(nn.Linear(2, 2)).sparsity is None
    nothing = count_stored(nn.ReLU())
    assert (nothing.parameters, nothing.bytes, nothing.bits, nothing.sparsity) == (0, 0, None, None)


def test_tied_weights_are_stored_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert count_stored(model).parameters == 16 + 4 + 4


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_sparse_tensors_are_their_values_and_indices(layout):
    values = torch.eye(6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = values.to_sparse(layout=layout)
    indices = 2 * 6 * 8 if layout == torch.sparse_coo else (7 + 6) * 8
    assert stored_bytes(tensor) == 6 * 4 + indices
    assert torch.equal(dense(tensor), values)


def test_four_bits_take_half_a_byte_where_two_share_one():
    weight = torch.randn(4, 8)
    scales = torch.full((4,), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.quantize_per_channel(weight, scales, torch.zeros(4), 0, torch.quint4x2)
    kind = packed.q_per_channel_scales().element_size() + packed.q_per_channel_zero_points().element_size()
    assert stored_bytes(packed) == 4 * 8 // 2 + 4 * kind


def test_a_module_says_which_of_its_integers_are_weights():
    class Codes(nn.Module):
        kdx_codes = {"levels": ("steps",)}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("levels", torch.tensor([[0, 1, -3], [2, 0, 0]], dtype=torch.int8))
            self.register_buffer("steps", torch.ones(2))

    found = count_stored(Codes())
    assert (found.parameters, found.bytes, found.bits, found.sparsity) == (6, 14, 8 * 14 / 6, 0.5)
