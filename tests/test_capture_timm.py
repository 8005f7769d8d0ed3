"""Taps on models as timm writes them: nested blocks, ``forward_features``, outputs that are dicts; under wrappers."""

from __future__ import annotations

import accelerate
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kdx
from kdx.analysis.layers import list_layers
from kdx.batch import Batch
from kdx.capture import Taps
from kdx.errors import CaptureError
from kdx.knowledge.attention_transfer import AttentionTransfer


class Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(self.attn_drop((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)) @ v)


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim)
        self.ls1 = nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Class token, position embedding, ``blocks`` in a Sequential, features and head as methods."""

    def __init__(self, dim: int, depth: int, *, output: str = "tensor") -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, dim, 2, 2)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 17, dim))
        self.blocks = nn.Sequential(*(Block(dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.fc_norm = nn.Identity()
        self.head = nn.Linear(dim, 3)
        self.output = output

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.norm(self.blocks(x))

    def forward_head(self, x: Tensor) -> Tensor:
        return self.head(self.fc_norm(x[:, 0]))

    def forward(self, x: Tensor):
        features = self.forward_features(x)
        logits = self.forward_head(features)
        return {"tensor": logits, "dict": {"x_norm": features, "logits": logits}}[self.output]


class ConvStage(nn.Module):
    """A stage as of timm's ConvNeXt and RegNet: blocks inside a stage inside ``stages``; gives a dict."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.downsample = nn.Conv2d(inputs, outputs, 2, 2)
        self.blocks = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        down = self.downsample(x)
        return {"down": down, "out": down + self.blocks(down)}


class ConvNet(nn.Module):
    """Its stages and itself return dicts, the logits under another name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList([ConvStage(1, width), ConvStage(width, 2 * width)])
        self.head = nn.ModuleDict({"fc": nn.Linear(2 * width, 3)})

    def forward_features(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)["out"]
        return x

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.forward_features(x)
        return {"features": features, "prediction": self.head["fc"](features.mean((2, 3)))}


X, Y = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


def offline(**options) -> kdx.Offline:
    """A convolutional student that returns dicts learns maps from the tokens of a transformer, and logits."""
    torch.manual_seed(0)
    tokens = {"grid": (4, 4), "class_token": 1}
    taps = {"student": ("stages.0[out]", "stages.1.blocks"), "teacher": ("blocks.0", "blocks.1.mlp")}
    return kdx.Offline(
        ConvNet(4),
        VisionTransformer(8, 2, output="dict"),
        student_output=lambda result: result["prediction"],
        knowledge={
            "kd": kdx.SoftTargets(2.0),
            "hint": kdx.Hint(**taps, **tokens),
            "at": AttentionTransfer(student="stages.1[down]", teacher="blocks.*.attn", pairing="uniform", **tokens),
        },
        **options,
    )


def test_nested_blocks_are_tapped_by_glob_item_and_input() -> None:
    model = VisionTransformer(8, 3, output="dict").eval()
    captured = Taps(model, ["blocks.*", "blocks.*.attn.proj", "blocks.2.norm2:input", "patch_embed.proj", "norm"])(X)
    assert captured.patterns["blocks.*"] == ("blocks.0", "blocks.1", "blocks.2")
    first, second, third = captured.select("blocks.*")
    torch.testing.assert_close(model.blocks[1](first), second)
    torch.testing.assert_close(captured["blocks.2.norm2:input"], second + captured["blocks.2.attn.proj"])
    torch.testing.assert_close(captured["norm"], model.norm(third))
    torch.testing.assert_close(captured.logits, model.forward_head(model.forward_features(X)))


def test_a_part_of_a_dict_is_tapped_and_a_dict_alone_is_no_tensor() -> None:
    model = ConvNet(4)
    captured = Taps(model, ["stages.1[down]", "stages.*[out]"], output=lambda result: result["prediction"])(X)
    torch.testing.assert_close(captured["stages.1[down]"], model.stages[1].downsample(captured["stages.0[out]"]))
    assert captured.patterns["stages.*[out]"] == ("stages.0[out]", "stages.1[out]")
    with pytest.raises(CaptureError, match=r"with keys \['down', 'out'\], not a tensor; .* 'stages.0\[key\]'"):
        Taps(model, ["stages.0"], output=lambda result: result["prediction"])(X)
    with pytest.raises(CaptureError, match="pass output="):
        Taps(model, ["stages.0[out]", "logits"])(X)


def test_forward_features_alone_leaves_the_head_untapped_which_is_an_error() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = VisionTransformer(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.net.forward_features(x)[:, 0]

    assert Taps(Features(), ["net.blocks.1"])(X)["net.blocks.1"].shape == (8, 17, 8)
    with pytest.raises(CaptureError, match=r"\['net.head'\] did not run"):
        Taps(Features(), ["net.head"])(X)


def test_layers_are_listed_with_their_nested_names() -> None:
    names = [layer.name for layer in list_layers(VisionTransformer(8, 2), X)]
    assert {"patch_embed.proj", "blocks.0.attn.qkv", "blocks.0", "blocks", "norm", "head"} <= set(names)


def losses_and_gradients(scheme: kdx.Scheme, forward) -> list[Tensor]:
    losses = forward(Batch(X, Y))
    trained = [parameter for parameter in scheme.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(losses.total, trained, allow_unused=True, materialize_grads=True)
    return [*losses.terms.values(), *found]


def test_taps_fire_inside_a_compiled_scheme_as_outside() -> None:
    scheme = offline()
    scheme.setup(Batch(X, Y))
    plain = losses_and_gradients(scheme, scheme)
    torch.compiler.reset()
    compiled = losses_and_gradients(scheme, torch.compile(scheme, backend="aot_eager", fullgraph=True))
    assert len(plain) == len(compiled)
    for one, other in zip(compiled, plain, strict=True):
        torch.testing.assert_close(one, other)
    assert all(term > 0 for term in plain[:4])


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_taps_fire_in_a_model_that_accelerate_has_wrapped(precision: str) -> None:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    model = VisionTransformer(8, 2)
    before = Taps(model, ["blocks.*", "head"])
    wrapped = accelerator.prepare(model)
    after = Taps(wrapped, ["blocks.*", "head"])
    for taps in (before, after):
        captured = taps(X)
        assert captured["head"].dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
        torch.testing.assert_close(captured["head"].float(), captured.logits)
        assert len(captured.select("blocks.*")) == 2
    with pytest.raises(CaptureError, match=r"after torch\.compile"):
        Taps(torch.compile(wrapped, backend="eager"), ["head"])
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_such_models_are_trained_by_fit(precision: str) -> None:
    scheme = offline(task=F.cross_entropy)
    scheme.setup(Batch(X, Y))
    before = [adapter.weight.detach().clone() for adapter in scheme.knowledge["hint"].adapters]
    run = kdx.fit(scheme, [Batch(X, Y)] * 4, mixed_precision=precision, device="cpu", evaluate=[Batch(X, Y)])
    assert run.step == 4
    assert "student/accuracy" in run.history[-1]
    assert all(parameter.isfinite().all() for parameter in scheme.parameters())
    for adapter, old in zip(scheme.knowledge["hint"].adapters, before, strict=True):
        assert not torch.equal(adapter.weight, old)
