"""Every component on features of every layout: the value of the channels-first twin, or a refusal that says the way."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

import kdx
from kdx.batch import Batch
from kdx.capture import Captured, Taps
from kdx.knowledge import (
    AB,
    CC,
    CRD,
    CWD,
    FSP,
    FT,
    IRG,
    NST,
    OFD,
    PKT,
    RKD,
    SP,
    VID,
    AttentionTransfer,
    Cosine,
    HiddenStates,
    Hint,
    ReviewKD,
    SemCKD,
    SimKD,
)
from kdx.layout import Layout, UnknownLayout
from kdx.options import check_options
from kdx.tap import Tap

TAPS = {"student": ("a", "b"), "teacher": ("a", "b")}
COMPONENTS = {
    "hint": lambda **options: Hint(**TAPS, **options),
    "attention-transfer": lambda **options: AttentionTransfer(**TAPS, **options),
    "cwd": lambda **options: CWD(**TAPS, **options),
    "hidden-states": lambda **options: HiddenStates(**TAPS, shared=False, **options),
    "cosine": lambda **options: Cosine(**TAPS, shared=False, **options),
    "nst": lambda **options: NST(**TAPS, **options),
    "vid": lambda **options: VID(**TAPS, **options),
    "ab": lambda **options: AB(**TAPS, **options),
    "ft": lambda **options: FT(student="a", teacher="a", **options),
    "ofd": lambda **options: OFD(**TAPS, **options),
    "review-kd": lambda **options: ReviewKD(**TAPS, **options),
    "semckd": lambda **options: SemCKD(**TAPS, **options),
    "crd": lambda **options: CRD(student="a", teacher="b", samples=8, negatives=3, **options),
    "simkd": lambda **options: SimKD(student="a", teacher="a", **options),
    "fsp": lambda **options: FSP(**TAPS, **options),
    "fsp by the maximum": lambda **options: FSP(**TAPS, variant="paper", **options),
    "irg": lambda **options: IRG(**TAPS, vertex_weight=0, transform="edge", **options),
    "rkd": lambda **options: RKD(**TAPS, **options),
    "sp": lambda **options: SP(**TAPS, **options),
    "pkt": lambda **options: PKT(**TAPS, **options),
    "cc": lambda **options: CC(**TAPS, **options),
    "cc by places": lambda **options: CC(student="a", teacher="a", variant="code", **options),
    "hint by cka": lambda **options: Hint(**TAPS, pairing="cka", **options),
}
# a layout, its channels-first twin, and sizes of the places of the two layers
KINDS = {
    "ncl": ("ncl", (6,), (3,)),
    "nchw": ("nchw", (4, 6), (2, 3)),
    "nhwc": ("nchw", (4, 6), (2, 3)),
    "ncdhw": ("ncdhw", (2, 4, 3), (2, 2, 3)),
    "ndhwc": ("ncdhw", (2, 4, 3), (2, 2, 3)),
    "nlc": ("nchw", (4, 6), (2, 3)),
    "lnc": ("nchw", (4, 6), (2, 3)),
}


def sides(places):
    """Student and teacher, two layers each, channels first; layer ``a`` is as wide in both."""
    generator = torch.Generator().manual_seed(0)

    def layer(channels, size):
        return torch.randn(5, channels, *size, generator=generator, dtype=torch.float64)

    shallow, deep = places
    return {"a": layer(3, shallow), "b": layer(4, deep)}, {"a": layer(3, shallow), "b": layer(5, deep)}


def turned(tensor, axes):
    """A channels-first tensor in another layout."""
    if axes in ("nlc", "lnc"):
        tokens = tensor.flatten(2).mT
        return (tokens.transpose(0, 1) if axes == "lnc" else tokens).contiguous()
    return tensor.movedim(1, -1).contiguous() if axes.endswith("c") else tensor


def value(component, student, teacher):
    torch.manual_seed(0)
    batch = Batch(None, torch.arange(5) % 2, torch.arange(5))
    component = copy.deepcopy(component)
    component.setup(student, teacher)
    component.double()
    torch.manual_seed(1)
    loss = component(student, teacher, batch)
    return loss.value if isinstance(loss, kdx.Mean) else loss


def of(values, axes, grids=None):
    grids = grids or {}
    layouts = {name: Layout(axes, **({"grid": grids[name], "class_token": 0} if grids else {})) for name in values}
    return Captured({name: turned(tensor, axes) for name, tensor in values.items()}, layouts=layouts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COMPONENTS)
def test_a_layout_changes_no_value(name, kind):
    twin, *places = KINDS[kind]
    student, teacher = sides(places)
    tokens = kind in ("nlc", "lnc")
    grids = dict(zip("ab", places, strict=True)) if tokens else None
    component = COMPONENTS[name]()
    if tokens and name in ("hint", "vid", "simkd", "cc by places", "hint by cka", "hidden-states", "cosine"):
        twin = "ncl"  # token by token, as they are as many on both sides
        student, teacher = ({k: v.flatten(2) for k, v in side.items()} for side in (student, teacher))
    if name == "hint by cka" and tokens:
        pytest.skip("pairs of layers whose grids differ are covered by the maps")
    expected = value(component, of(student, twin), of(teacher, twin))
    found = value(component, of(student, kind, grids), of(teacher, kind, grids))
    assert torch.isfinite(found)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-12)
    assert expected != 0


@pytest.mark.parametrize("name", sorted(COMPONENTS.keys() - {"cwd"}))  # which refuses what has no places
def test_vectors_need_no_layout_and_by_hand_features_are_laid_out_as_documented(name):
    student, teacher = sides([(), ()])
    found = value(COMPONENTS[name](), Captured(student), Captured(teacher))
    assert torch.isfinite(found)
    maps = sides([(4, 6), (2, 3)])
    plain = value(COMPONENTS[name](), *map(Captured, maps))
    assert plain.item() == pytest.approx(
        value(COMPONENTS[name](), *(of(side, "nchw") for side in maps)).item(), rel=1e-12
    )


@pytest.mark.parametrize("name", COMPONENTS)
def test_an_unknown_layout_is_refused_with_the_options_to_write_or_not_needed(name):
    student, teacher = sides([(4, 6), (2, 3)])
    unknown = {"a": UnknownLayout("Block"), "b": UnknownLayout("Block")}
    hidden = [Captured({k: turned(v, "nhwc") for k, v in side.items()}, layouts=unknown) for side in (student, teacher)]
    expected = value(COMPONENTS[name](), of(student, "nchw"), of(teacher, "nchw"))
    if name in ("rkd", "sp", "pkt", "cc"):  # the order of a sample's numbers does not matter
        assert value(COMPONENTS[name](), *hidden).item() == pytest.approx(expected.item(), rel=1e-10)
    else:
        says = (
            rf"{type(COMPONENTS[name]()).__name__}: the (student|teacher)'s feature at '[ab]' has shape \[5, .*\] and "
            r"comes from Block.*layout='nchw' or 'nhwc'.*kdx\.Tap\('name', layout='nchw'\)"
        )
        with pytest.raises(ValueError, match=says):
            value(COMPONENTS[name](), *hidden)
    found = value(COMPONENTS[name](layout="nhwc"), *hidden)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("name", ["rkd", "sp", "pkt", "cc"])
def test_relations_refuse_features_whose_first_axis_is_open(name):
    student, teacher = sides([(6,), (3,)])
    unknown = {"a": UnknownLayout("Block", batch_first=False), "b": UnknownLayout("Block", batch_first=False)}
    hidden = [Captured({k: turned(v, "lnc") for k, v in side.items()}, layouts=unknown) for side in (student, teacher)]
    with pytest.raises(ValueError, match="not known which axis holds the channels"):
        value(COMPONENTS[name](), *hidden)
    expected = value(COMPONENTS[name](), of(student, "ncl"), of(teacher, "ncl"))
    assert value(COMPONENTS[name](layout="lnc"), *hidden).item() == pytest.approx(expected.item(), rel=1e-10)


def test_a_hint_on_conv1d_learns_an_adapter_over_channels():
    student, teacher = nn.Sequential(nn.Conv1d(2, 16, 3, padding=1)), nn.Sequential(nn.Conv1d(2, 64, 3, padding=1))
    hint = kdx.make("knowledge", "hint", student="0", teacher="0")
    series = torch.randn(4, 2, 50)
    s, t = (Taps(net, ("0",), output=lambda out: out.mean(2))(series).detach() for net in (student, teacher))
    hint.setup(s, t)
    assert isinstance(hint.adapters[0], nn.Conv1d)
    assert hint.adapters[0].weight.shape == (64, 16, 1)
    with torch.no_grad():
        expected = (torch.einsum("oc,ncl->nol", hint.adapters[0].weight[:, :, 0], s["0"]) - t["0"]).square().mean()
    assert hint(s, t, Batch(None)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_options_come_from_the_module_then_the_tap_then_the_component():
    tokens, image = torch.randn(2, 145, 3), torch.randn(2, 4, 9, 16)
    s, t = Captured({"a": tokens}, layouts={"a": Layout("nlc")}), Captured({"b": image}, layouts={"b": Layout("nchw")})
    plain = kdx.make("knowledge", "attention-transfer", student="a", teacher="b")
    with pytest.raises(
        ValueError, match=r"AttentionTransfer: the student's feature at 'a' .* 145 tokens .* give grid="
    ):
        plain(s, t, None)
    expected = value(
        AttentionTransfer(student="x", teacher="b"), Captured({"x": tokens[:, 1:].mT.unflatten(2, (9, 16))}), t
    )
    by_component = kdx.make("knowledge", "attention-transfer", student="a", teacher="b", grid=(9, 16), class_token=1)
    by_tap = AttentionTransfer(student=Tap("a", grid=(9, 16), class_token=1), teacher="b", grid=(12, 12), layout="nhwc")
    for component in (by_component, by_tap):
        assert component(s, t, None).item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"its tap says layout='nhwc', but the module that gave it says 'nchw'"):
        AttentionTransfer(student=Tap("a", grid=(9, 16), class_token=1), teacher=Tap("b", layout="nhwc"))(s, t, None)
    with pytest.raises(ValueError, match=r"its tap says layout='nhwc', which has 4 axes; give a layout of 3"):
        AttentionTransfer(student=Tap("a", layout="nhwc"), teacher="b")(s, t, None)
    with pytest.raises(ValueError, match=r"its tap has grid=, which is about tokens"):
        AttentionTransfer(student=Tap("a", grid=(9, 16), class_token=1), teacher=Tap("b", grid=(9, 16)))(s, t, None)
    with pytest.raises(TypeError, match=r"AttentionTransfer has no option 'layuot'; did you mean 'layout'"):
        kdx.make("knowledge", "attention-transfer", student="a", teacher="b", layuot="nchw")


def vit():
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=(18, 32),
        patch_size=2,
        num_channels=1,
        num_labels=3,
    )
    return transformers.ViTForImageClassification(config)


def test_a_vision_transformer_of_hugging_face_says_its_tokens_and_the_user_says_its_grid():
    images = torch.randn(2, 1, 18, 32)
    teacher, student = vit(), nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(576, 3))
    layer = next(name for name, _ in teacher.named_modules() if name.endswith("layer.1") or name.endswith("layers.1"))

    def scheme(**options):
        at = kdx.make("knowledge", "attention-transfer", student="0", teacher=layer, **options)
        found = kdx.Offline(student, teacher, task=None, knowledge={"at": at})
        return found((images, None)).total

    with pytest.raises(ValueError, match=rf"the teacher's feature at '{layer}' has shape \[2, 145, 8\].*give grid="):
        scheme()
    assert scheme(grid=(9, 16), class_token=1) > 0
    with pytest.raises(ValueError, match=r"make 144 tokens, but there are 145"):
        scheme(grid=(9, 16))
    patches = next(name for name, _ in teacher.named_modules() if name.endswith("patch_embeddings"))
    captured = Taps(teacher, (patches,))(images)
    assert isinstance(captured.layouts[patches], UnknownLayout)


def test_tokens_of_text_become_a_vector_as_somebody_said():
    tokens = torch.randn(4, 52, 6)
    s, t = Captured({"a": tokens}, layouts={"a": Layout("nlc")}), Captured({"b": torch.randn(4, 5)})
    with pytest.raises(ValueError, match=r"Hint: the student's feature at 'a' .* class_token=1 .* class_token=0"):
        Hint(student="a", teacher="b").setup(s, t)
    first, mean = (Hint(student="a", teacher="b", class_token=number) for number in (1, 0))
    for hint, vector in ((first, tokens[:, 0]), (mean, tokens.mean(1))):
        hint.setup(s, t)
        expected = (hint.adapters[0](vector) - t["b"]).square().mean()
        assert hint(s, t, None).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_recipe_gives_options_to_taps_and_components():
    hint = kdx.plugins().load("knowledge", "hint")
    teacher = [{"tap": "a", "grid": [9, 16], "class_token": 1}, "b"]
    checked = check_options("knowledge.h (hint)", hint, {"student": ["x", "y"], "teacher": teacher, "layout": "nhwc"})
    assert checked["teacher"] == ("a", "b")
    assert checked["teacher"][0].told.grid == (9, 16)
    made = kdx.make("knowledge", "hint", student={"tap": "x", "layout": "ncl"}, teacher=teacher, grid=[3, 4])
    assert made.student_taps[0].told.layout == "ncl"
    assert made.teacher_taps[0].told.class_token == 1
    assert made.told.grid == (3, 4)
    for options, message in (
        ({"teacher": {"tap": "a", "gird": [2, 2]}}, r"knowledge.h \(hint\).teacher: expected a tap .* the key 'gird'"),
        ({"teacher": "a", "layout": "nchww"}, r"layout: .*'nchww'"),
        ({"teacher": "a", "girdd": 3}, r"unknown option 'girdd'; did you mean 'grid'"),
    ):
        with pytest.raises(kdx.errors.RecipeError, match=message):
            check_options("knowledge.h (hint)", hint, {"student": "x", **options})
