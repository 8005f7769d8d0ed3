"""BYOT: branches on the stages, what they learn from whom, and that they are gone at export."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from torch import nn

import kdx
from kdx.models import ConvNet, ResNet, ViT
from kdx.schemes.byot import BYOT


@pytest.fixture
def batch() -> kdx.Batch:
    generator = torch.Generator().manual_seed(3)
    return kdx.Batch(torch.randn(6, 1, 16, 16, generator=generator), torch.arange(6) % 10, torch.arange(6))


def make(batch, **options) -> BYOT:
    scheme = BYOT(ConvNet(width=4, stages=3, input_shape=(1, 16, 16)), stages=("stage1", "stage2", "stage3"), **options)
    scheme.double()
    scheme.setup(double(batch))
    return scheme


def double(batch) -> kdx.Batch:
    return batch._replace(inputs=batch.inputs.double())


def kl(target, logits, t: float):
    """T^2 KL(target || logits), written out."""
    p, q = (target / t).softmax(1), (logits / t).softmax(1)
    return t * t * (p * (p / q).log()).sum(1).mean()


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_the_terms_are_those_of_the_paper(batch, variant) -> None:
    scheme = make(batch, task=(0.5, F.cross_entropy), alpha=0.2, temperature=2.0, feature_weight=0.01, variant=variant)
    scheme.eval()
    losses = scheme(double(batch))
    net, y = scheme.student, batch.targets
    features = [net[0](batch.inputs.double())]
    features += [net[1](features[0])]
    features += [net[2](features[1])]
    logits = net.fc(net.avgpool(features[2]))
    last = 0.8 if variant == "code" else 1.0
    expected = {"task": last * 0.5 * F.cross_entropy(logits, y)}
    for k in range(2):
        feature = scheme.branches[k].bottleneck(features[k])
        z = scheme.branches[k].classifier(feature.mean((2, 3)))
        gap = feature - features[2]
        if variant == "code":
            s, t = feature.mean((2, 3)), features[2].mean((2, 3))
            gap = (s - t) * ((s > 0) | (t > 0))
        expected |= {
            f"branch{k}/task": 0.8 * 0.5 * F.cross_entropy(z, y),
            f"branch{k}/kd": 0.2 * kl(logits, z, 2.0),
            f"branch{k}/feature": 0.01 * gap.square().flatten(1).sum(1).mean(),
        }
    assert losses.terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses.terms[name], value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(losses.total, sum(expected.values()))


def test_the_code_compares_features_only_where_one_side_is_positive() -> None:
    student = torch.tensor([[-1.0, 2.0]], requires_grad=True)
    sides = kdx.Captured({"embedding": student}), kdx.Captured({"embedding": torch.tensor([[-3.0, -1.0]])})
    found = {
        variant: BYOT(ConvNet(width=4, stages=3), variant=variant).components["feature"]
        for variant in ("paper", "code")
    }
    found["paper"].student_taps = found["paper"].teacher_taps = ("embedding",)
    assert found["paper"](*sides, None).item() == 13.0
    loss = found["code"](*sides, None)
    assert loss.item() == 9.0
    loss.backward()
    assert student.grad.tolist() == [[0.0, 6.0]]


def test_the_defaults_are_those_of_the_re_implementation() -> None:
    scheme = BYOT(ConvNet(width=4, stages=3))
    assert scheme.weights == {"kd": 0.1, "feature": 1e-6}
    assert scheme.components["kd"].temperature == 3.0
    assert scheme.alpha == 0.1


def test_no_gradient_of_a_branch_reaches_what_teaches_it(batch) -> None:
    scheme = make(batch)
    terms = scheme(double(batch)).terms
    deeper = [*scheme.student.stage2.parameters(), *scheme.student.stage3.parameters(), *scheme.student.fc.parameters()]
    for name in ("task", "kd", "feature"):
        loss = terms[f"branch0/{name}"]
        into = torch.autograd.grad(loss, deeper, retain_graph=True, allow_unused=True)
        assert all(gradient is None for gradient in into), name
        own = torch.autograd.grad(loss, scheme.student.stage1.conv1.weight, retain_graph=True)[0]
        assert own.abs().sum() > 0, name
    through = torch.autograd.grad(terms["branch1/kd"], scheme.student.stage1.conv1.weight)[0]
    assert through.abs().sum() > 0


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: ConvNet(width=4, input_shape=(1, 17, 13)), (1, 17, 13)),
        (lambda: ResNet(8, input_shape=(1, 16, 16)), (1, 16, 16)),
        (lambda: ViT(dim=8, depth=3, heads=2, input_shape=(1, 16, 16)), (1, 16, 16)),
    ],
    ids=["odd sizes", "resnet", "vit"],
)
def test_branches_fit_any_sizes_and_take_a_single_sample(model, shape) -> None:
    scheme = BYOT(model())
    one = kdx.Batch(torch.randn(1, *shape), torch.zeros(1, dtype=torch.int64))
    scheme.setup(one)
    scheme.train()
    losses = scheme(one)
    losses.total.backward()
    assert len(scheme.branches) == len(scheme.stages) - 1
    for name, parameter in scheme.branches.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_hugging_face_encoder_gets_branches() -> None:
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config)
    batch = {"input_ids": torch.randint(20, (4, 7)), "labels": torch.arange(4) % 3}
    with pytest.raises(ValueError, match=r"BYOT: the stage at .* 7 tokens is the class token or the mean"):
        BYOT(model).setup(batch)
    scheme = BYOT(model, class_token=1)
    scheme.setup(batch)
    terms = scheme(batch).terms
    assert len(terms) == 1 + 2 * 3
    assert all(term.isfinite() for term in terms.values())


def test_setup_changes_nothing_in_the_student_and_twice_does_nothing(batch) -> None:
    student = ConvNet(width=4, stages=3, input_shape=(1, 16, 16))
    before = copy.deepcopy(student.state_dict())
    scheme = BYOT(student).eval()
    scheme.setup(batch)
    branch = scheme.branches[0]
    assert not any(module.training for module in scheme.modules())
    scheme.setup(batch)
    assert scheme.branches[0] is branch
    assert all(value.equal(before[name]) for name, value in student.state_dict().items())
    fresh = scheme.branches[0].bottleneck[1].running_mean
    assert fresh.eq(0).all()


def test_the_exported_student_has_no_branch_and_answers_as_before(batch, tmp_path) -> None:
    scheme = BYOT(ConvNet(width=4, stages=3, input_shape=(1, 16, 16)))
    kdx.fit(scheme, [batch], epochs=2, folder=tmp_path, device="cpu")
    plain = ConvNet(width=4, stages=3, input_shape=(1, 16, 16))
    plain.load_state_dict(load_file(tmp_path / "student.safetensors"))  # strict: not a name more
    scheme.eval()
    scheme(batch)
    assert plain.eval()(batch.inputs).equal(scheme.student(batch.inputs))


def test_knowledge_replaces_the_default_and_every_branch_has_its_own(batch) -> None:
    knowledge = {
        "hint": (2.0, kdx.Hint(student="feature", teacher="feature")),
        "rkd": kdx.make("knowledge", "rkd", student="embedding", teacher="embedding"),
        "dkd": kdx.make("knowledge", "dkd"),
    }
    scheme = make(batch, knowledge=knowledge)
    terms = scheme(double(batch)).terms
    assert terms.keys() == {"task"} | {f"branch{k}/{n}" for k in (0, 1) for n in ("task", *knowledge)}
    adapters = [scheme.lesson_components(k)["hint"].adapters[0].weight for k in (0, 1)]
    assert adapters[0] is not adapters[1]
    assert {name for name, _ in scheme.named_parameters()} >= {
        f"knowledge.lesson{k}.hint.adapters.0.weight" for k in (0, 1)
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"knowledge": {"h": kdx.Hint(student="stage1", teacher="feature")}}, "knowledge 'h' taps 'stage1'"),
        ({"alpha": 1.5}, r"alpha must be >= 0 and <= 1"),
        ({"variant": "codes"}, "variant: there is no 'codes'"),
        ({"stages": ("stage1",)}, "stages must name at least two modules"),
    ],
)
def test_bad_arguments_say_what_was_expected(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        BYOT(ConvNet(width=4, stages=3), **options)


def test_logits_of_every_pixel_are_refused_and_setup_is_asked_for(batch) -> None:
    with pytest.raises(ValueError, match=r"logits of shape \[6, 4, 16, 16\]; branches of byot classify whole samples"):
        BYOT(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)), stages=("0", "1")).setup(batch)
    with pytest.raises(RuntimeError, match=r"call scheme.setup\(batch\) once"):
        BYOT(ConvNet(width=4, stages=3))(batch)
