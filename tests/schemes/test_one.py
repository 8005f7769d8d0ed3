"""ONE: branches behind a layer, the gate, and what the ensemble teaches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import kdx
from kdx.errors import CaptureError
from kdx.models import ConvNet, ResNet
from kdx.schemes.one import ONE
from kdx.schemes.parts.rest import Rest, modules_before


def convnet() -> ConvNet:
    return ConvNet(width=4, stages=3, num_classes=3, input_shape=(1, 8, 8))


def test_the_terms_are_those_of_the_paper(batch) -> None:
    scheme = ONE(convnet(), split="stage2")
    scheme.setup(batch)
    scheme.eval()
    terms = scheme(batch).terms
    net = scheme.ensemble
    with torch.no_grad():
        feature = net.student.stage2(net.student.stage1(batch.inputs))
        logits = [net.student(batch.inputs)]
        for rest in net.others:
            logits.append(rest.model.fc(rest.model.avgpool(rest.model.stage3(feature))))
        scores = net.gate.linear(feature.mean((2, 3)))
        norm = net.gate.norm
        scores = F.batch_norm(scores, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        shares = scores.relu().softmax(1)
        ensemble = sum(shares[:, b : b + 1] * z for b, z in enumerate(logits))
        expected = {"ensemble/task": F.cross_entropy(ensemble, batch.targets)}
        for b, z in enumerate(logits):
            expected[f"branch{b}/task"] = F.cross_entropy(z, batch.targets)
            kl = F.kl_div((z / 3).log_softmax(1), (ensemble / 3).softmax(1), reduction="batchmean")
            expected[f"branch{b}/kd"] = 9 * kl
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=name)
    torch.testing.assert_close(net(batch.inputs), ensemble)


def test_the_ensemble_learns_from_labels_alone_and_branches_share_no_layer_behind_the_split(batch) -> None:
    scheme = ONE(convnet(), split="stage2", branches=2)
    scheme.setup(batch)
    terms = scheme(batch).terms
    gate, other = list(scheme.ensemble.gate.parameters()), list(scheme.ensemble.others.parameters())
    own = list(scheme.ensemble.student.stage3.parameters())
    trunk = list(scheme.ensemble.student.stage1.parameters())

    def reaches(term: str, parameters) -> bool:
        found = torch.autograd.grad(terms[term], parameters, retain_graph=True, allow_unused=True)
        return any(gradient is not None for gradient in found)

    assert not reaches("branch0/kd", gate)
    assert not reaches("branch0/kd", other)
    assert not reaches("branch1/kd", own)
    assert reaches("branch1/kd", trunk)
    assert reaches("ensemble/task", gate)
    ids = [id(p) for p in scheme.parameters()]
    assert len(ids) == len(set(ids))
    assert not scheme.ensemble.others[0].model.fc.weight.equal(
        scheme.ensemble.student.fc.weight
    )  # branches start apart


@pytest.mark.parametrize(
    ("model", "split"),
    [
        (convnet(), "stage1"),
        (ResNet(depth=8, num_classes=3, input_shape=(1, 8, 8)), "layer2"),
        (ResNet(depth=14, num_classes=3, input_shape=(1, 8, 8)), "layer2.0"),  # amid a stage
    ],
    ids=["convnet", "resnet", "amid a stage"],
)
def test_the_rest_of_a_network_does_what_the_network_does_behind_the_layer(model, split, batch) -> None:
    model.eval()
    before = modules_before(model, split, batch.inputs)
    rest = Rest(model, split, before).eval()
    source = model.state_dict()
    rest.model.load_state_dict({name: source[name] for name in rest.model.state_dict()})
    feature = kdx.capture.Taps(model, ["logits", split])(batch.inputs)
    rest.enter(feature[split])
    torch.testing.assert_close(rest.model(feature[split]), feature.logits)
    gone = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in rest.parameters())
    assert gone > 0
    assert not any(f"{name}.".startswith(f"{split}.") for name in rest.model.state_dict())


def test_a_tap_before_the_split_and_a_wrong_split_are_errors(batch) -> None:
    scheme = ONE(convnet(), split="stage2", knowledge={"h": kdx.Hint(student="stage1", teacher="stage1")})
    with pytest.raises(ValueError, match=r"taps 'stage1'.*lies before the split 'stage2'"):
        scheme.setup(batch)
    with pytest.raises(CaptureError, match="stagee2"):
        ONE(convnet(), split="stagee2")
    with pytest.raises(ValueError, match="branches must be 2 or more"):
        ONE(convnet(), split="stage2", branches=1)
    with pytest.raises(RuntimeError, match=r"call scheme\.setup"):
        ONE(convnet(), split="stage2")(batch)
