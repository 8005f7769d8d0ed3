"""Language models are held against the next token, and everything around them counts labelled, shifted tokens."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

import kdx
from kdx.schemes.kdcl import KDCL, min_logit_ensemble
from kdx.schemes.tf_kd import TfKD, virtual_teacher_kl
from kdx.tasks import CausalLM, Classification, Head, Heads
from kdx.teachers import Ensemble
from kdx.teachers.ensemble import confidence

VOCABULARY = 11


class Model(nn.Module):
    """A language model of two layers: logits ``[B, T, V]`` of token ids ``[B, T]``."""

    def __init__(self, vocabulary: int = VOCABULARY, width: int = 6, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        return self.head(hidden.cumsum(1))


def tokens(rows: int = 4, length: int = 9, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Ids, and labels of which prompts and padding are -100, differently many in every row."""
    ids = torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    for row in range(rows):
        labels[row, : row + 2] = -100
        labels[row, length - row :] = -100
    return ids, labels


def picked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits ``[M, V]`` that predict a labelled token, and those tokens, as a loop finds them."""
    places = [(b, t) for b in range(len(labels)) for t in range(1, labels.shape[1]) if labels[b, t] != -100]
    return torch.stack([logits[b, t - 1] for b, t in places]), torch.stack([labels[b, t] for b, t in places])


def test_the_loss_is_that_of_the_next_labelled_tokens() -> None:
    ids, labels = tokens()
    logits = Model()(ids)
    rows, wanted = picked(logits, labels)
    task = CausalLM()
    torch.testing.assert_close(task(logits, labels), F.cross_entropy(rows, wanted), rtol=1e-12, atol=0)
    assert task.count(labels).item() == len(wanted)
    smooth = CausalLM(label_smoothing=0.1)(logits, labels)
    torch.testing.assert_close(smooth, F.cross_entropy(rows, wanted, label_smoothing=0.1), rtol=1e-12, atol=0)


def test_targets_that_the_data_shifted_are_not_shifted_again() -> None:
    ids, labels = tokens()
    logits, before = Model()(ids), CausalLM()
    moved = F.pad(labels[:, 1:], (0, 1), value=-100)
    after = CausalLM(shift=False)
    assert torch.equal(before(logits, labels), after(logits, moved))
    assert before.count(labels) == after.count(moved)


def test_the_loss_of_half_precision_logits_is_not_rounded() -> None:
    ids, labels = tokens()
    logits = Model()(ids).bfloat16()
    loss = CausalLM()(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), CausalLM()(logits.double(), labels), rtol=1e-6, atol=0)


def test_metrics_are_those_of_all_labelled_tokens() -> None:
    sizes = [1, 2, 3, 4, 0, 1, 2, 3, 4, 5]  # the last token of the vocabulary is padding and stands for nothing
    task, (ids, labels) = CausalLM(token_bytes=sizes), tokens()
    logits = Model()(ids)
    rows, wanted = picked(logits, labels)
    nats = F.cross_entropy(rows, wanted, reduction="sum").item()
    number = sum([*sizes, 0][token] for token in wanted.tolist())
    made = task.metrics(logits)
    for metric in made.values():
        for part in range(4):  # of differently many tokens each
            metric.update(logits[part : part + 1], labels[part : part + 1])
    found = {name: metric.compute().item() for name, metric in made.items()}
    assert found == pytest.approx(
        {
            "cross_entropy": nats / len(wanted),
            "perplexity": math.exp(nats / len(wanted)),
            "bits_per_byte": nats / math.log(2) / number,
            "accuracy": (rows.argmax(1) == wanted).double().mean().item(),
        }
    )
    assert "bits_per_byte" not in CausalLM().metrics(logits)
    nothing = CausalLM().metrics(logits)["cross_entropy"]
    nothing.update(logits, torch.full_like(labels, -100))
    assert math.isnan(nothing.compute())


COMPONENTS = ["soft-targets", "reverse-kl", "jsd", "logits", "hard-targets", "dkd", "nkd", "dist", "mlld", "ctkd"]


@pytest.mark.parametrize("name", [*COMPONENTS, "logit-standardisation"])
def test_knowledge_learns_at_the_places_that_predict_a_labelled_token(name) -> None:
    ids, labels = tokens()
    student, teacher = Model(), Model(seed=5)
    scheme = kdx.Offline(student, teacher, task=(1.0, CausalLM()), knowledge={"kd": kdx.make("knowledge", name)})
    losses = scheme(kdx.Batch(ids, labels))
    (s, wanted), (t, _) = picked(student(ids), labels), picked(teacher(ids), labels)
    component = kdx.make("knowledge", name)
    given = kdx.Batch(None, wanted)
    expected = component(kdx.Captured({"logits": s}), kdx.Captured({"logits": t}), given)
    torch.testing.assert_close(losses.terms["kd"], expected, rtol=1e-9, atol=0)
    assert float(losses.counts["task"]) == len(wanted)
    if component.mean_over_samples is not False:  # a loss of the batch as a whole, as dist is
        assert float(losses.counts["kd"]) == len(wanted)


class PerToken(Model):
    """One in which a place sees its own token alone."""

    @override
    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


def test_padding_and_prompts_change_neither_loss_nor_gradient() -> None:
    ids, labels = tokens()
    taught = labels.roll(-1, 1) != -100
    taught[:, -1] = False
    found = []
    for given in (ids, ids.where(taught, 0)):
        student = PerToken()
        scheme = kdx.Offline(student, PerToken(seed=5), task=(0, CausalLM()), knowledge={"kd": kdx.SoftTargets(1.0)})
        losses = scheme(kdx.Batch(given, labels))
        losses.total.backward()
        found.append((losses.total.detach(), student.head.weight.grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_void_false_teaches_every_token() -> None:
    ids, labels = tokens()
    student, teacher = Model(), Model(seed=5)
    knowledge = {"kd": kdx.SoftTargets(1.0, void=False)}
    losses = kdx.Offline(student, teacher, task=(1.0, CausalLM()), knowledge=knowledge)(kdx.Batch(ids, labels))
    everywhere = F.kl_div(student(ids).log_softmax(2), teacher(ids).log_softmax(2), log_target=True, reduction="none")
    torch.testing.assert_close(losses.terms["kd"], everywhere.sum(2).mean())
    assert losses.counts["kd"] == ids.numel()


def test_a_mask_of_the_inputs_may_say_where_the_teacher_teaches() -> None:
    ids, labels = tokens()
    mask = torch.ones_like(ids)
    mask[1, 6:] = mask[3, :2] = 0

    class Masked(Model):
        @override
        def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
            return super().forward(ids)

    batch = kdx.Batch({"ids": ids, "attention_mask": mask}, labels)
    student, teacher = Masked(), Masked(seed=5)
    knowledge = {"kd": kdx.SoftTargets(1.0), "own": kdx.SoftTargets(1.0, void=True)}
    scheme = kdx.Offline(student, teacher, task=CausalLM(taught="attention_mask"), knowledge=knowledge)
    losses = scheme(batch)
    shown = ids.masked_fill(mask == 0, -100)
    for name, given in (("kd", shown), ("own", labels)):
        (s, wanted), (t, _) = picked(Model()(ids), given), picked(Model(seed=5)(ids), given)
        expected = F.kl_div(s.log_softmax(1), t.log_softmax(1), log_target=True, reduction="batchmean")
        torch.testing.assert_close(losses.terms[name], expected)
        assert losses.counts[name] == len(wanted)
    assert losses.counts["task"] == losses.counts["own"]
    whole = stepped(scheme, batch)
    parts = stepped(scheme, *(batch.at(slice(row, row + 1)) for row in range(4)))
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)
    elsewhere = kdx.Offline(student, teacher, task=CausalLM(taught="mask"), knowledge={"kd": kdx.SoftTargets(1.0)})
    with pytest.raises(ValueError, match="mask='mask' names no item of the inputs"):
        elsewhere(batch)


def stepped(scheme: kdx.Scheme, *batches: kdx.Batch) -> Tensor:
    """What one step of a scheme on micro-batches takes from the weights of its student's head."""
    before = scheme.student.head.weight.detach().clone()
    sgd = {"name": "SGD", "lr": 1.0, "momentum": 0.0}
    kdx.fit(scheme, batches, accumulate=len(batches), optimizer=sgd, schedule=None, device="cpu", progress=False)
    moved = before - scheme.student.head.weight.detach()
    scheme.student.load_state_dict(Model().state_dict())
    return moved


def test_a_head_of_several_counts_its_own_shifted_tokens() -> None:
    ids, labels = tokens()

    class Both(Model):
        @override
        def forward(self, ids: Tensor) -> dict[str, Tensor]:
            logits = super().forward(ids)
            return {"text": logits, "kind": logits.mean(1)}

    student, teacher = Both(), Both(seed=5)
    knowledge = {"kd": kdx.SoftTargets(1.0, student="logits[text]", teacher="logits[text]")}
    heads = Heads({"text": Head("causal-lm"), "kind": Head("classification")})
    batch = kdx.Batch(ids, {"text": labels, "kind": torch.arange(4)})
    losses = kdx.Offline(student, teacher, task=heads, knowledge=knowledge)(batch)
    (s, wanted), (t, _) = (picked(model(ids)["text"], labels) for model in (student, teacher))
    expected = F.kl_div(s.log_softmax(1), t.log_softmax(1), log_target=True, reduction="batchmean")
    torch.testing.assert_close(losses.terms["kd"], expected)
    torch.testing.assert_close(losses.terms["task/text"], F.cross_entropy(s, wanted))
    assert losses.counts["kd"] == losses.counts["task/text"] == len(wanted)


def test_the_head_as_a_tap_is_masked_as_the_logits_are() -> None:
    ids, labels = tokens()
    made = [
        kdx.Offline(Model(), Model(seed=5), task=(1.0, CausalLM()), knowledge={"kd": kdx.SoftTargets(1.0, **taps)})
        for taps in ({}, {"student": "head", "teacher": "head"})
    ]
    assert torch.equal(*(scheme(kdx.Batch(ids, labels)).total for scheme in made))


def test_schemes_and_teachers_that_look_at_the_label_look_at_the_next_token() -> None:
    ids, labels = tokens()
    student = Model()
    rows, wanted = picked(student(ids), labels)
    virtual = TfKD(student, task=CausalLM())(kdx.Batch(ids, labels)).terms["virtual"]
    torch.testing.assert_close(virtual, 0.1 * virtual_teacher_kl(rows, wanted))
    peers = [Model(seed=1), Model(seed=2)]
    kdcl = KDCL(peers, task=CausalLM(), ensemble="min-logit", shift=0, flip=0)
    answers = kdcl.answers([taps(ids) for taps in kdcl.taps], kdx.Batch(ids, labels))
    each = torch.stack([picked(peer(ids), labels)[0] for peer in peers])
    taught, _ = picked(answers["ensemble"].logits, labels)
    torch.testing.assert_close(taught, min_logit_ensemble(each, wanted))
    ensemble = Ensemble({"a": peers[0], "b": peers[1]}, weights="confidence", class_dim=2)
    ensemble.bind(CausalLM().responses)
    combined, _ = picked(ensemble(kdx.Batch(ids, labels)).logits, labels)
    torch.testing.assert_close(combined, (confidence(each, wanted)[..., None] * each).sum(0))


def test_a_step_on_26_and_3_tokens_is_the_step_on_one_batch() -> None:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(VOCABULARY, (2, 30), generator=generator)
    labels = ids.clone()
    labels[0, :4] = labels[1, :27] = -100  # 26 and 3 labelled tokens

    def gradient(*batches: kdx.Batch) -> Tensor:
        return stepped(
            kdx.Offline(Model(), Model(seed=5), task=(0.5, CausalLM()), knowledge={"kd": kdx.SoftTargets(2.0)}),
            *batches,
        )

    whole = gradient(kdx.Batch(ids, labels))
    parts = gradient(*(kdx.Batch(ids[row : row + 1], labels[row : row + 1]) for row in range(2)))
    assert (parts - whole).norm() <= 1e-12 * whole.norm()
    assert whole.norm() > 0.1


@pytest.mark.parametrize("length", [9, VOCABULARY])
def test_the_default_task_refuses_language_models_by_name(length) -> None:
    ids, labels = tokens(length=length)
    message = r"\[4, .*\] may be \[N, L, C\] or \[N, C, L\]; take the task causal-lm .* token-classification"
    with pytest.raises(ValueError, match=message):
        kdx.fit(kdx.Supervised(Model()), [(ids, labels)], device="cpu", progress=False)
    with pytest.raises(ValueError, match=message):
        kdx.training.evaluate(Model(), [(ids, labels)])


@pytest.mark.parametrize("task", [F.cross_entropy, nn.CrossEntropyLoss()])
def test_a_loss_of_torch_refuses_as_many_tokens_as_classes(task) -> None:
    ids, labels = tokens(length=VOCABULARY)
    with pytest.raises(
        ValueError, match=r"cannot be told .* \[4, 11, 11\].* causal-lm .* token-classification .* class_dim=1"
    ):
        kdx.fit(kdx.Supervised(Model(), task=task), [(ids, labels)], device="cpu", progress=False)
    scheme = kdx.Supervised(Model(), task=Classification(class_dim=1))
    assert kdx.fit(scheme, [(ids, labels)], device="cpu", progress=False).step == 1


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "error", "message"),
    [
        (CausalLM(), (2, 4, 5), torch.zeros(2, 4), ValueError, r"expected token ids, int64 \[B, T\]"),
        (
            CausalLM(),
            (2, 4, 5),
            torch.zeros(2, 3).long(),
            ValueError,
            r"class numbers of shape \[2, 4\] .* got \[2, 3\]",
        ),
        (CausalLM(), (2, 5), torch.zeros(2).long(), ValueError, "class_dim: expected an axis"),
        (CausalLM(), (2, 4, 5), torch.full((2, 4), 5), ValueError, r"expected classes 0 \.\. 4, .* got 5"),
        (CausalLM(), (2, 4, 5), torch.zeros(2, 4).int(), TypeError, "int64"),
    ],
)
def test_outputs_and_targets_that_do_not_belong_together_are_refused(task, outputs, targets, error, message) -> None:
    with pytest.raises(error, match=message):
        task.check(torch.zeros(outputs), targets)


def test_a_data_set_may_say_how_many_bytes_a_token_stands_for() -> None:
    data = SimpleNamespace(token_bytes=[1, 2, 3])
    task, own = CausalLM(), CausalLM(token_bytes=[4, 5, 6])
    several = Heads({"text": Head(task), "other": Head("classification")})
    several.dataset(data)
    own.dataset(data)
    assert task.token_bytes.tolist() == [1, 2, 3]
    assert own.token_bytes.tolist() == [4, 5, 6]
    task = CausalLM()
    task.dataset(SimpleNamespace())
    assert task.token_bytes is None


def test_token_bytes_of_another_tokenizer_are_refused() -> None:
    with pytest.raises(ValueError, match="one number of bytes for each token id, 0 or more"):
        CausalLM(token_bytes=[1, -1])
    with pytest.raises(ValueError, match="numbers for the 5 tokens of the outputs at most, got 6"):
        CausalLM(token_bytes=[1] * 6).metrics(torch.zeros(1, 2, 5))


def held(rows: int = 3, length: int = 6, classes: int = 9) -> kdx.LinearLogits:
    hidden = torch.randn(rows, length, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(classes, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(classes, dtype=torch.float64, requires_grad=True)
    return kdx.LinearLogits(hidden, weight, bias, 0.5, 3.0)


def some_targets() -> torch.Tensor:
    targets = torch.randint(9, (3, 6), generator=torch.Generator().manual_seed(3))
    targets[0, :4], targets[2] = -100, -100
    return targets


def test_hidden_states_and_a_head_have_the_loss_and_gradients_of_their_logits() -> None:
    logits, targets, task = held(), some_targets(), kdx.make("task", "causal-lm")
    leaves = logits.hidden, logits.weight, logits.bias
    found, wanted = task(logits, targets), task(logits.dense(), targets)
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_batch_without_labels_is_0_with_connected_zero_gradients() -> None:
    logits = held()
    loss = kdx.make("task", "causal-lm")(logits, torch.full((3, 6), -100))
    loss.backward()
    assert loss == 0
    assert (logits.weight.grad == 0).all()


def test_metrics_of_hidden_states_and_a_head_are_those_of_their_logits(monkeypatch) -> None:
    from kdx.tasks import token_judge

    monkeypatch.setattr(token_judge, "CHUNK_BYTES", 2 * 8 * 9)  # two rows at a time
    sizes = []
    whole = kdx.LinearLogits.dense
    monkeypatch.setattr(kdx.LinearLogits, "dense", lambda self: (sizes.append(len(self.hidden)), whole(self))[1])
    task, targets = kdx.make("task", "causal-lm", token_bytes=[0, 1, 2, 3, 1, 1, 1, 1]), some_targets()
    logits = held()
    found, wanted = task.metrics(logits), task.metrics(whole(logits))
    for _ in range(2):
        logits = held()
        for name in found:
            found[name].update(logits, targets)
            wanted[name].update(whole(logits), targets)
    assert sizes == [2, 2, 2, 1] * 2, "seven labelled tokens of a batch, a few at a time, once for all four metrics"
    for name, metric in found.items():
        assert metric.compute().item() == pytest.approx(wanted[name].compute().item(), rel=1e-12), name


def test_metrics_see_outputs_that_change_in_place() -> None:
    task, targets, logits = kdx.make("task", "causal-lm"), some_targets(), torch.randn(3, 6, 9)
    metric, wanted = task.metrics(logits)["cross_entropy"], task.metrics(logits)["cross_entropy"]
    first = logits.clone()
    metric.update(logits, targets)
    metric.update(logits.mul_(2), targets)
    for each in (first, 2 * first):
        wanted.update(each, targets)
    assert metric.compute() == wanted.compute()


def test_label_smoothing_beside_a_head_is_refused() -> None:
    task = kdx.make("task", "causal-lm", label_smoothing=0.1)
    assert not task.takes_held
    with pytest.raises(ValueError, match=r"label_smoothing: .* leave kdx.Head out"):
        task(held(), some_targets())
