"""Models that were quantised in every way that PyTorch and torchao have on a CPU."""

from __future__ import annotations

import warnings

import torch
import torch.ao.quantization as quantization
from torch import nn

__all__ = ["EXAMPLE", "MODELS", "PARAMETERS", "eager_model", "fx_model", "lstm", "net", "pt2e_model", "torchao_model"]

EXAMPLE = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
PARAMETERS = (8 * 9 + 8) + (64 * 128 + 64) + (10 * 64 + 10)
"""Of :func:`net` once its convolution and its BatchNorm are one."""


def net() -> nn.Sequential:
    """A small net in evaluation mode, in the usual order of convolution, norm and activation."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)).eval()


def eager_model() -> nn.Module:
    """Quantised by ``torch.ao.quantization`` layer by layer: packed parameters."""
    model = nn.Sequential(quantization.QuantStub(), *net(), quantization.DeQuantStub()).eval()
    model.qconfig = quantization.get_default_qconfig("x86")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.fuse_modules(model, [["1", "2", "3"]], inplace=True)
        quantization.prepare(model, inplace=True)
        model(EXAMPLE)
        return quantization.convert(model)


def fx_model() -> nn.Module:
    """Quantised by ``torch.ao.quantization`` as a traced graph."""
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(net(), quantization.get_default_qconfig_mapping("x86"), (EXAMPLE,))
        prepared(EXAMPLE)
        return convert_fx(prepared)


def dynamic_model() -> nn.Module:
    """Linear layers whose activations are quantised as they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantization.quantize_dynamic(net(), {nn.Linear})


def lstm() -> nn.Module:
    """A recurrent net, quantised dynamically; it takes ``[N, 5, 8]``."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reader, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 4)

        def forward(self, inputs):
            return self.head(self.reader(inputs)[0][:, -1])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantization.quantize_dynamic(Reader().eval(), {nn.Linear, nn.LSTM})


def pt2e_model() -> nn.Module:
    """Quantised as an exported graph."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(torch.export.export(net(), (EXAMPLE,)).module(), quantizer)
        prepared(EXAMPLE)
        return convert_pt2e(prepared)


def torchao_model(config: str, **options) -> nn.Module:
    """Linear layers with tensors of torchao."""
    import torchao.quantization as ao

    model = net()
    ao.quantize_(model, getattr(ao, config)(**options))
    return model


def int4_model() -> nn.Module:
    """Weights of four bits, in groups of 32, each in a byte."""
    from torchao.quantization.granularity import PerGroup

    return torchao_model("IntxWeightOnlyConfig", weight_dtype=torch.int4, granularity=PerGroup(32))


MODELS = {
    "eager": eager_model,
    "fx": fx_model,
    "dynamic": dynamic_model,
    "pt2e": pt2e_model,
    "int8-weights": lambda: torchao_model("Int8WeightOnlyConfig"),
    "int8": lambda: torchao_model("Int8DynamicActivationInt8WeightConfig"),
    "int4-weights": int4_model,
    "int8-int4": lambda: torchao_model("Int8DynamicActivationIntxWeightConfig"),
}
