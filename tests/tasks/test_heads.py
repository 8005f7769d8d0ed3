"""Several heads: terms with counts of their own, metrics, knowledge that reads one head, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import kdx
from kdx.errors import CaptureError, KdxError
from kdx.losses import Over, OverHead
from kdx.tasks import Head, Heads, Regression, Segmentation
from kdx.training.evaluation import evaluate

DTYPE = torch.float64
ROWS = 64


class TwoHeads(nn.Module):
    """Logits of pixels and one quantity a row, as a mapping or a tuple."""

    def __init__(self, form: str = "mapping") -> None:
        super().__init__()
        self.body, self.seg, self.depth = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 3, 1), nn.Linear(4, 1)
        self.form = form

    def forward(self, x):
        hidden = self.body(x).tanh()
        seg, depth = self.seg(hidden), self.depth(hidden.mean((2, 3)))
        return (seg, [depth]) if self.form == "tuple" else {"seg": seg, "depth": depth}


def data(form: str = "mapping") -> tuple[torch.Tensor, Any, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 1, 3, 3, generator=draw, dtype=DTYPE)
    seg = torch.randint(0, 3, (ROWS, 3, 3), generator=draw)
    seg[torch.rand(seg.shape, generator=draw) < torch.linspace(0, 0.9, ROWS)[:, None, None]] = -100
    depth = torch.randn(ROWS, 1, generator=draw, dtype=DTYPE)
    depth[10:30] = torch.nan
    return x, {"seg": seg, "depth": depth} if form == "mapping" else (depth, seg), torch.arange(ROWS)


def task(form: str = "mapping", **heads: Any) -> Heads:
    if form == "tuple":
        seg, depth = Head(Segmentation(), output=0, target=1), Head("regression", 0.5, output="[1][0]", target=0)
    else:
        seg, depth = Head("segmentation"), Head({"name": "regression"}, weight=0.5)
    return Heads({"seg": seg, "depth": depth} | heads)


def net(form: str = "mapping") -> TwoHeads:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return TwoHeads(form).to(DTYPE)


def knowledge() -> dict[str, Any]:
    at = {name: {"student": f"logits[{name}]", "teacher": f"logits[{name}]"} for name in ("seg", "depth")}
    return {
        "kd": (0.7, kdx.SoftTargets(2.0, **at["seg"])),
        "sizes": (0.3, kdx.make("knowledge", "logits", **at["depth"])),
    }


@pytest.mark.parametrize("form", ["mapping", "tuple"])
def test_every_head_is_a_term_of_its_own_with_its_weight_and_count(form) -> None:
    x, targets, index = data(form)
    model = net(form)
    losses = kdx.Supervised(model, task=(2.0, task(form)))(kdx.Batch(x, targets, index))
    outputs = net("mapping")(x)
    known = data()[1]
    wanted = {
        "task/seg": 2.0 * Segmentation()(outputs["seg"], known["seg"]),
        "task/depth": 2.0 * 0.5 * Regression()(outputs["depth"], known["depth"]),
    }
    torch.testing.assert_close(losses.terms, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(losses.total, sum(wanted.values()), rtol=1e-12, atol=0)
    assert int(losses.counts["task/seg"]) == int((known["seg"] != -100).sum())
    assert int(losses.counts["task/depth"]) == ROWS - 20
    assert losses.over == {"task/seg": OverHead(Over.TASK, "seg"), "task/depth": OverHead(Over.TASK, "depth")}


SCHEMES = {
    "supervised": lambda: kdx.Supervised(net(), task=task()),
    "offline": lambda: kdx.Offline(net(), teacher(), task=task(), knowledge=knowledge()),
    "online": lambda: kdx.schemes.Online(net(), teacher(), task=task(), knowledge=knowledge()),
    "mutual": lambda: kdx.Mutual([net(), teacher()], task=task(), knowledge=knowledge()),
}


def teacher() -> TwoHeads:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return TwoHeads().to(DTYPE)


def trained(scheme: kdx.Scheme, size: int, accumulate: int) -> dict[str, torch.Tensor]:
    x, targets, index = data()
    rows = [kdx.Batch(x, targets, index).at(slice(k, k + size)) for k in range(0, ROWS, size)]
    kdx.fit(scheme, rows, steps=1, accumulate=accumulate, optimizer={"name": "SGD", "lr": 0.1}, device="cpu")
    return {name: value.detach().clone() for name, value in scheme.state_dict().items()}


@pytest.mark.parametrize("name", list(SCHEMES))
def test_a_step_on_64_rows_is_that_on_4_times_16(name) -> None:
    whole, parts = trained(SCHEMES[name](), 64, 1), trained(SCHEMES[name](), 16, 4)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    moved = trained(kdx.Supervised(net(), task=task(seg=Head("segmentation", weight=3.0))), 16, 4)
    assert not torch.allclose(
        moved["student.seg.weight"], trained(SCHEMES["supervised"](), 16, 4)["student.seg.weight"]
    )


@pytest.mark.parametrize("name", ["offline", "online", "mutual"])
def test_knowledge_of_one_head_is_that_of_a_model_with_this_head_alone(name) -> None:
    x, targets, index = data()
    scheme = SCHEMES[name]()
    terms = scheme(kdx.Batch(x, targets, index)).terms
    s, t = net()(x)["seg"], teacher()(x)["seg"]
    alone = kdx.SoftTargets(2.0, void=True, class_dim=1)
    of = kdx.Captured({"logits": s}), kdx.Captured({"logits": t})
    wanted = 0.7 * alone(*of, kdx.Batch(x, targets["seg"]))
    torch.testing.assert_close(terms["peer0/kd" if name == "mutual" else "kd"], wanted, rtol=1e-12, atol=0)


def test_a_run_keeps_the_epoch_of_a_heads_metric() -> None:
    x, targets, index = data()
    batch = kdx.Batch(x.float(), {"seg": targets["seg"], "depth": targets["depth"].float()}, index)
    rows = [batch.at(slice(k, k + 16)) for k in range(0, ROWS, 16)]
    of = task()
    run = kdx.fit(
        kdx.Offline(net().float(), teacher().float(), task=of, knowledge=knowledge()),
        rows,
        epochs=3,
        evaluate=rows,
        metrics=of.metrics,
        select="depth/rmse",
        optimizer={"name": "SGD", "lr": 0.3},
        device="cpu",
    )
    values = [row["student/depth/rmse"] for row in run.history]
    assert run.best["student/depth/rmse"] == min(values)
    assert "student/seg/miou" in run.history[0]
    assert run.higher_is_better["student/seg/miou"] is True
    assert (of.metric, of.higher_is_better, of.label) == ("seg/miou", True, "mean IoU of seg")
    judged = Heads({"seg": "segmentation", "depth": "regression"}, judged="depth")
    assert (judged.metric, judged.higher_is_better, judged.share) == ("depth/rmse", False, False)


def test_the_metrics_are_those_of_each_head_alone() -> None:
    x, targets, index = data()
    model, of = net(), task()
    loader = [kdx.Batch(x, targets, index).at(slice(k, k + 16)) for k in range(0, ROWS, 16)]
    found = evaluate(model, loader, metrics=of.metrics, output=of.read)
    for name, alone in (("seg", Segmentation()), ("depth", Regression())):
        single = [(batch.inputs, batch.targets[name]) for batch in loader]
        wanted = evaluate(model, single, metrics=alone.metrics, output=f"[{name}]")
        assert {f"{name}/{metric}": value for metric, value in wanted.items()}.items() <= found.items()
        assert {f"{name}/{metric}": up for metric, up in wanted.higher_is_better.items()}.items() <= (
            found.higher_is_better.items()
        )


def test_a_teacher_with_one_output_teaches_one_head() -> None:
    x, targets, index = data()
    single = nn.Conv2d(1, 3, 1).to(DTYPE)
    kd = kdx.SoftTargets(2.0, student="logits[seg]")
    terms = kdx.Offline(net(), single, task=task(), knowledge={"kd": kd})(kdx.Batch(x, targets, index)).terms
    assert list(terms) == ["task/seg", "task/depth", "kd"]


def test_a_balanced_weight_is_balanced_against_the_loss_of_its_head() -> None:
    terms = knowledge()
    terms["kd"] = (kdx.schemes.Balanced(ratio=1.0, momentum=0.0), terms["kd"][1])
    scheme = kdx.Offline(net(), teacher(), task=task(), knowledge=terms)
    norms = {"task/seg": 6.0, "task/depth": 100.0, "kd": 2.0, "sizes": 1.0}
    scheme.rebalance({name: torch.tensor(value) for name, value in norms.items()})
    start = kdx.schemes.Balanced(ratio=1.0).start
    assert scheme.weight("kd").item() == pytest.approx(start * 3.0)


def test_a_batch_with_no_label_for_a_head_teaches_the_others() -> None:
    x, targets, index = data()
    targets = {"seg": torch.full_like(targets["seg"], -100), "depth": targets["depth"]}
    losses = kdx.Supervised(net(), task=task())(kdx.Batch(x, targets, index))
    assert losses.terms["task/seg"].item() == 0
    assert int(losses.counts["task/seg"]) == 0
    assert losses.terms["task/depth"].item() > 0


def test_a_component_that_reads_logits_is_told_which_head_it_may_read() -> None:
    message = r"knowledge 'kd': SoftTargets reads 'logits', and .* student='logits\[seg\]' .*logits\[depth\]\)"
    with pytest.raises(ValueError, match=message):
        kdx.Offline(net(), teacher(), task=task(), knowledge={"kd": kdx.SoftTargets(2.0)})


def test_a_component_that_does_not_suit_its_head_is_refused() -> None:
    wrong = kdx.SoftTargets(2.0, student="logits[depth]", teacher="logits[depth]")
    with pytest.raises(ValueError, match="those of the task are of the form 'values'"):
        kdx.Offline(net(), teacher(), task=task(), knowledge={"kd": wrong})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seg": torch.zeros(ROWS, 3, 3, dtype=torch.int64)}, r"head 'depth': .* item 'depth' .* keys \['seg'\]"),
        (torch.zeros(ROWS), r"head 'seg': .* got one tensor of shape \[64\]; .* target=0 in a tuple"),
    ],
)
def test_targets_that_lack_a_head_are_refused(given, message) -> None:
    with pytest.raises(KdxError, match=message):
        kdx.Supervised(net(), task=task())(kdx.Batch(data()[0], given))


def test_a_model_that_lacks_a_head_is_refused() -> None:
    of = Heads({"seg": "segmentation", "edges": "binary"})
    with pytest.raises(CaptureError, match=r"keys \['seg', 'depth'\] without item 'edges'"):
        kdx.Supervised(net(), task=of)(kdx.Batch(data()[0], {}))


def test_targets_of_a_wrong_shape_are_found_before_training_by_the_name_of_their_head() -> None:
    x, targets, index = data()
    targets = targets | {"depth": torch.zeros(ROWS, 5, dtype=DTYPE)}
    with pytest.raises(KdxError, match="head 'depth': Regression: expected targets of the shape"):
        kdx.fit(kdx.Supervised(net(), task=task()), [kdx.Batch(x, targets, index)], steps=1, device="cpu")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Heads({}), ValueError, "expected at least one"),
        (lambda: Heads({"a/b": "binary"}), ValueError, "give one without"),
        (lambda: Heads({"a": Head("binary", weight=0)}), ValueError, "leave out a head"),
        (lambda: Heads({"a": {"weight": 1.0}}), TypeError, "a head needs a task"),
        (lambda: Heads({"a": {"task": "binary", "weigth": 1.0}}), TypeError, "no option 'weigth'; .*weight"),
        (lambda: Heads({"a": nn.MSELoss()}), TypeError, "needs a task of kdx"),
        (lambda: Heads({"a": "binary", "b": Head("binary", output="a")}), ValueError, "an output of its own"),
        (lambda: Heads({"a": "binary"}, judged="b"), ValueError, "judged: there is no head 'b'"),
        (lambda: Heads({"a": Heads({"b": "binary"})}), TypeError, "got Heads"),
    ],
)
def test_heads_that_mean_nothing_are_refused(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


def test_labels_of_every_head_are_hidden() -> None:
    for form in ("mapping", "tuple"):
        of, targets = task(form), data(form)[1]
        assert of.labelled(targets).shape == (ROWS,)
        hidden = of.hidden(targets)
        assert type(hidden) is type(targets)
        assert not of.labelled(hidden).any()
        assert float(of.count(hidden)) == 0
        assert copy.deepcopy(of)(net("mapping")(data()[0]), targets).item() > 0
