"""CRD: the loss against an oracle; banks, Z and draws."""

from __future__ import annotations

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdx
from kdx.batch import Batch
from kdx.capture import Captured
from kdx.datasets import View
from kdx.knowledge import crd as module
from kdx.knowledge.crd import CRD, crd


def oracle(scores, log_z, samples):
    """The probabilities of the paper, without log space."""
    p, k = np.exp(np.asarray(scores, np.float64) - log_z), scores.shape[1] - 1
    noise = k / samples
    return -(np.log(p[:, 0] / (p[:, 0] + noise)) + np.log(noise / (p[:, 1:] + noise)).sum(1)).mean()


@pytest.mark.parametrize(("n", "k", "samples"), [(4, 7, 50), (1, 1, 2), (3, 200, 60)])
def test_crd_has_the_value_of_the_oracle_and_the_right_gradient(random, n, k, samples):
    scores, log_z = random(n, 1 + k, seed=1, std=5.0), torch.tensor(3.0, dtype=torch.float64)
    assert crd(scores, log_z=log_z, samples=samples).item() == pytest.approx(oracle(scores, 3.0, samples), rel=1e-10)
    small = scores[:, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: crd(x, log_z=log_z, samples=samples), small)


def test_crd_of_saturated_scores_is_finite_with_its_gradient():
    scores = torch.tensor([[-400.0, 400.0, 0.0], [400.0, -400.0, 0.0]], requires_grad=True)
    loss = crd(scores, log_z=torch.tensor(0.0), samples=100)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(scores.grad).all()


@pytest.fixture
def features(random):
    return Captured({"s": random(4, 6, seed=1)}), Captured({"t": random(4, 9, seed=2)})


@pytest.fixture
def batch():
    return Batch(None, index=torch.tensor([3, 17, 0, 42]))


def build(features, **options):
    torch.manual_seed(0)
    component = CRD(student="s", teacher="t", samples=50, **{"dim": 5, "negatives": 16} | options)
    component.setup(*features)
    return component.double()


def run(component, features, batch, seed=1):
    torch.manual_seed(seed)
    return component(*features, batch)


def expected_step(component, features, batch, seed=1):
    """Loss and new banks of one training batch, from the component's weights and banks."""
    rows = [
        F.normalize(layer(value)).detach().numpy()
        for layer, value in zip(
            (component.embed_student, component.embed_teacher), (features[0]["s"], features[1]["t"]), strict=True
        )
    ]
    torch.manual_seed(seed)
    candidates = component.draw(batch.index).numpy()
    banks = [component.bank_student.numpy().copy(), component.bank_teacher.numpy().copy()]
    loss = 0.0
    for anchor, bank, side in ((rows[0], banks[1], 0), (rows[1], banks[0], 1)):
        scores = np.einsum("nd,nkd->nk", anchor, bank[candidates]) / 0.07
        started = bool(component.started)
        log_z = component.log_z[side].item() if started else math.log(np.exp(scores).mean() * 50)
        loss += oracle(scores, log_z, 50)
    for bank, row in zip(banks, rows, strict=True):
        mixed = 0.5 * bank[batch.index] + 0.5 * row
        bank[batch.index] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return loss, banks


@pytest.mark.parametrize("dense", [8, 0], ids=["whole bank", "gathered"])
def test_crd_steps_give_the_loss_and_the_banks_of_the_oracle(features, batch, dense, monkeypatch):
    monkeypatch.setattr(module, "DENSE", dense)
    component = build(features)
    for seed, factor in ((1, 1.0), (2, -2.0)):  # the second batch meets changed banks and the Z of the first
        now = Captured({"s": factor * features[0]["s"]}), features[1]
        loss, banks = expected_step(component, now, batch, seed)
        found = run(component, now, batch, seed)
        found.backward()
        assert found.item() == pytest.approx(loss, rel=1e-9)
        np.testing.assert_allclose(component.bank_student, banks[0], rtol=1e-12)
        np.testing.assert_allclose(component.bank_teacher, banks[1], rtol=1e-12)
    assert component.embed_student.weight.grad.abs().max() > 0
    assert component.embed_teacher.weight.grad.abs().max() > 0


@pytest.mark.parametrize("dense", [8, 0], ids=["whole bank", "gathered"])
def test_crd_gradient_is_right_in_float64(features, batch, dense, monkeypatch):
    monkeypatch.setattr(module, "DENSE", dense)
    component = build(features, negatives=5).eval()
    component.started.fill_(True)
    student = features[0]["s"].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: run(component, (Captured({"s": x}), features[1]), batch), student)


def test_crd_z_is_fixed_at_the_first_training_batch(features, batch):
    component = build(features)
    component.eval()
    run(component, features, batch)
    assert not component.started
    before = component.bank_student.clone()
    component.train()
    run(component, features, batch)
    first = component.log_z.clone()
    assert component.started
    assert not torch.equal(component.bank_student, before)
    run(component, (Captured({"s": features[0]["s"] * 3}), features[1]), batch)
    assert torch.equal(component.log_z, first)
    untouched = torch.ones(50, dtype=torch.bool)
    untouched[batch.index] = False
    assert torch.equal(component.bank_student[untouched], before[untouched])


def test_crd_saves_banks_and_z_and_goes_on_where_it_stopped(features, batch):
    component = build(features)
    run(component, features, batch)
    buffer = io.BytesIO()
    torch.save(component.state_dict(), buffer)
    buffer.seek(0)
    loaded = build(features)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    assert {"bank_student", "bank_teacher", "log_z", "started"} <= set(component.state_dict())
    twins = [loaded, copy.deepcopy(component), pickle.loads(pickle.dumps(component))]
    truth = run(component, features, batch, seed=5)
    assert all(torch.equal(run(twin, features, batch, seed=5), truth) for twin in twins)
    assert all(torch.equal(twin.bank_teacher, component.bank_teacher) for twin in twins)


def test_crd_negatives_are_uniform_over_all_samples(features):
    component = build(features, negatives=20_000)
    torch.manual_seed(0)
    drawn = component.draw(torch.tensor([7, 8]))
    assert drawn[:, 0].tolist() == [7, 8]
    counts = torch.bincount(drawn[:, 1:].flatten(), minlength=50).double()
    assert ((counts - 800).abs() < 5 * math.sqrt(800)).all()


def test_crd_negatives_with_labels_are_uniform_over_the_other_classes(features):
    labels = torch.tensor([0, 1, 2, 1, 1, 0, 2, 2, 2, 1] * 5)
    component = build(features, negatives=20_000, labels=labels)
    torch.manual_seed(0)
    index = torch.tensor([0, 1, 2])
    for row, anchor in zip(component.draw(index)[:, 1:], index, strict=True):
        counts = torch.bincount(row, minlength=50).double()
        allowed = labels != labels[anchor]
        assert counts[~allowed].sum() == 0
        mean = 20_000 / allowed.sum()
        assert ((counts[allowed] - mean).abs() < 5 * mean.sqrt()).all()
    with pytest.raises(ValueError, match="single class"):
        build(features, labels=torch.zeros(50, dtype=torch.long))
    with pytest.raises(ValueError, match=r"shape \[50\], got \[3\]"):
        build(features, labels=[0, 1, 2])


def test_crd_negatives_of_and_among_samples_without_a_label_are_uniform(features):
    labels = torch.tensor([0, -100, 1, -100, 0] * 10)
    component = build(features, negatives=20_000, labels=labels)
    torch.manual_seed(0)
    for anchor, allowed in ((0, labels != 0), (2, labels != 1), (1, torch.ones(50, dtype=torch.bool))):
        counts = torch.bincount(component.draw(torch.tensor([anchor]))[0, 1:], minlength=50).double()
        assert counts[~allowed].sum() == 0
        mean = 20_000 / allowed.sum()
        assert ((counts[allowed] - mean).abs() < 5 * mean.sqrt()).all()
    with pytest.raises(ValueError, match="classes >= 0, or -100 where unknown; got -1"):
        build(features, labels=torch.full((50,), -1))


def test_crd_takes_the_classes_of_the_training_data(images):
    def scheme(**options):
        component = CRD(student="1", teacher="1", dim=4, negatives=400, **options)
        nets = [nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 3)) for width in (4, 6)]
        return kdx.Offline(*nets, knowledge={"crd": component}), component

    rows = torch.arange(50, 90)
    shown = torch.where(rows < 70, images[1][rows], -100)
    loader = DataLoader(View(TensorDataset(*images), rows, shown), 8)
    told, component = scheme(labels="data")
    kdx.fit(told, loader, device="cpu")
    expected = torch.full((96,), -100)
    expected[50:70] = images[1][50:70]
    for anchor in (50, 51):
        drawn = component.draw(torch.tensor([anchor]))[0, 1:]
        assert (expected[drawn] != expected[anchor]).all()
        assert (expected[drawn] >= 0).any()
    fixed, component = scheme(labels="data", samples=200)
    kdx.fit(fixed, loader, device="cpu")
    assert component.bank_student.shape == (200, 4)
    plain, component = scheme()
    kdx.fit(plain, loader, device="cpu")
    assert component.others is None
    untold = DataLoader(View(TensorDataset(*images)), 8)
    with pytest.raises(ValueError, match="labels: CRD is to draw negatives from other classes and no data set says"):
        kdx.fit(scheme(labels="data")[0], untold, device="cpu")
    with pytest.raises(ValueError, match="labels must be one class per sample, 'data' or None; got 'all'"):
        scheme(labels="all")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_crd_of_half_precision_features_is_computed_in_float32(features, batch, dtype, autocast):
    narrow = [Captured({k: v.to(dtype) for k, v in side.items()}) for side in features]
    exact = [Captured({k: v.double() for k, v in side.items()}) for side in narrow]
    truth = run(build(features), exact, batch)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = run(build(features).float(), narrow, batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(truth.item(), rel=1e-4)


@pytest.mark.parametrize("case", ["zero rows", "duplicates", "one sample"])
def test_crd_of_awkward_features_is_finite(features, batch, case):
    component = build(features)
    s, t = features[0]["s"], features[1]["t"]
    if case == "zero rows":
        nn.init.zeros_(component.embed_student.bias)
        s = s.index_fill(0, torch.tensor([1]), 0)
    elif case == "duplicates":
        s, t, batch = s[[0] * 4], t[[0] * 4], Batch(None, index=torch.zeros(4, dtype=torch.long))
    else:
        s, t, batch = s[:1], t[:1], Batch(None, index=batch.index[:1])
    s = s.clone().requires_grad_()
    loss = run(component, (Captured({"s": s}), Captured({"t": t})), batch)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(s.grad).all()
    assert torch.isfinite(component.bank_student).all()


def test_crd_compiles_into_one_graph_for_any_batch_size_and_still_updates_its_banks(features, batch):
    eager, compiled = build(features), build(features)
    graphs = []

    def backend(graph, _example):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    step = torch.compile(
        lambda s, t, i: compiled(Captured(s), Captured(t), Batch(None, index=i)), fullgraph=True, backend=backend
    )
    for rows in (4, 4, 3, 2):
        now = [Captured({k: v[:rows] for k, v in side.items()}) for side in features]
        truth = run(eager, now, Batch(None, index=batch.index[:rows]), seed=rows)
        torch.manual_seed(rows)
        torch.testing.assert_close(step(dict(now[0]), dict(now[1]), batch.index[:rows]), truth)
    assert len(graphs) == 2  # one for the first size, one for every other
    torch.testing.assert_close(compiled.bank_student, eager.bank_student)
    torch.testing.assert_close(compiled.log_z, eager.log_z)


def peak_of_a_step(peak_bytes, samples, n, k, dim):
    """The peak memory of a training step, in numbers of four bytes, beside the banks that are there before."""
    component = CRD(student="s", teacher="t", samples=samples, negatives=k, dim=dim)
    features = Captured({"s": torch.randn(n, 64, requires_grad=True)}), Captured({"t": torch.randn(n, 64)})
    component.setup(*features)
    component.train()
    batch = Batch(None, index=torch.arange(n))
    return peak_bytes(lambda: component(*features, batch).backward()) / 4


def test_crd_holds_a_copy_of_the_banks_and_scores_but_no_gathered_candidates_for_a_cifar_sized_bank(peak_bytes):
    samples, n, k, dim = 20_000, 8, 4096, 128
    peak = peak_of_a_step(peak_bytes, samples, n, k, dim)
    banks, scores, candidates = 2 * samples * dim, 2 * n * samples, 2 * n * k
    assert banks < peak <= banks + 3 * scores + 20 * candidates
    assert peak < 2 * n * k * dim  # what gathering would take for the candidates alone


def test_crd_gathers_candidates_and_copies_no_bank_where_the_bank_is_large(peak_bytes):
    samples, n, k, dim = 40_000, 4, 500, 64
    peak = peak_of_a_step(peak_bytes, samples, n, k, dim)
    gathered = 2 * n * (k + 1) * dim
    assert gathered < peak <= 1.5 * gathered + 20 * 2 * n * k
    assert peak < samples * dim  # what a copy of one bank would take


def test_crd_names_what_is_wrong_with_its_index_and_options(features):
    component = build(features)
    with pytest.raises(ValueError, match=r"samples is 50, but batch\.index holds 50"):
        component(*features, Batch(None, index=torch.tensor([0, 1, 2, 50])))
    with pytest.raises(ValueError, match=r"CRD: batch\.index numbers the samples from 0, and holds -1 \(row 3\)"):
        component(*features, Batch(None, index=torch.tensor([0, 1, 2, -1])))
    with pytest.raises(ValueError, match=r"needs batch\.index"):
        component(*features, Batch(None))
    with pytest.raises(ValueError, match="negatives must be an integer >= 1"):
        CRD(student="s", teacher="t", samples=5, negatives=0)
    with pytest.raises(ValueError, match="momentum must be >= 0 and <= 1"):
        CRD(student="s", teacher="t", samples=5, momentum=1.5)


def test_crd_learns_the_number_of_samples_from_the_training_loader(features, batch, images):
    def scheme(**options):
        component = CRD(student="1", teacher="1", dim=4, negatives=8, **options)
        nets = [nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 3)) for width in (4, 6)]
        return kdx.Offline(*nets, knowledge={"crd": component}), component

    told, component = scheme()
    part = View(TensorDataset(*images), torch.arange(50, 90))  # few rows, with the numbers of the whole set
    kdx.fit(told, DataLoader(part, 8), device="cpu")
    assert component.bank_student.shape == component.bank_teacher.shape == (96, 4)
    written, component = scheme(samples=200)
    kdx.fit(written, DataLoader(part, 8), device="cpu")
    assert component.bank_student.shape == (200, 4)
    with pytest.raises(ValueError, match=r"samples: .* give samples=len\(dataset\)"):
        kdx.fit(scheme()[0], [Batch(images[0][:8], images[1][:8], torch.arange(8))], device="cpu")
    by_labels = CRD(student="s", teacher="t", negatives=4, labels=[0, 1] * 25)
    by_labels.setup(*features)
    assert len(by_labels.bank_teacher) == 50


def test_crd_run_that_is_resumed_ends_where_the_unbroken_one_ends(tmp_path):
    data = [Batch(torch.randn(8, 5), torch.randint(3, (8,)), torch.arange(8 * i, 8 * i + 8)) for i in range(3)]

    def scheme():
        torch.manual_seed(0)
        nets = [nn.Sequential(nn.Linear(5, w), nn.ReLU(), nn.Linear(w, 3)) for w in (4, 6)]
        return kdx.Offline(
            *nets, knowledge={"crd": (0.8, CRD(student="1", teacher="1", samples=24, dim=4, negatives=8))}
        )

    def fit(folder, resume):
        one = scheme()
        kdx.fit(
            one, data, epochs=3, schedule=None, device="cpu", seed=3, folder=folder, resume=resume, checkpoint_every=4
        )
        return one.state_dict()

    whole = fit(tmp_path, resume=False)
    eighth, ninth = sorted((tmp_path / "checkpoints").iterdir())
    assert eighth.name.startswith("step-00000008-")
    ninth.unlink()  # as if the run had been killed after its eighth step
    parts = fit(tmp_path, resume=True)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
    assert any(name.endswith("bank_student") for name in whole)
