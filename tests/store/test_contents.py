"""The contents of a store, written and read back: whole tensors, top-k with its tail, sampled classes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import DataLoader

import kdx
from kdx.batch import Batch
from kdx.capture import Captured
from kdx.errors import StoreError, StoreWarning
from kdx.knowledge.dkd import DKD
from kdx.knowledge.logits import Logits
from kdx.knowledge.reverse_kl import ReverseKL
from kdx.knowledge.soft_targets import SoftTargets
from kdx.ops import SparseTargets
from kdx.schemes.offline import Offline
from kdx.store import write_store
from kdx.store.content import DTYPES
from kdx.store.contents import parse
from kdx.store.provenance import SampledClasses
from kdx.teachers import Ensemble, Stored, Teacher


def there_and_back(text: str, logits: torch.Tensor, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    (content,) = parse([text]).values()
    stored = content.encode(Captured({"logits": logits}), dtype, torch.Generator().manual_seed(seed))
    return content.decode(stored, logits.shape[-1])["logits"]


@pytest.mark.parametrize("text", ["topk:3@2", "sample:5@2", "logits"])
@pytest.mark.parametrize(
    ("shape", "axis", "class_dim"), [((2, 6, 3, 4), 1, None), ((2, 3, 6), 2, None), ((2, 6, 3), 1, 1)]
)
def test_dense_logits_come_back_with_their_classes_where_they_were(text, shape, axis, class_dim) -> None:
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    rows = logits.movedim(axis, -1).reshape(-1, 6)
    found = []
    for each, dim in ((logits, class_dim), (rows, None)):
        (content,) = parse([text], dim).values()
        stored = content.encode(Captured({"logits": each}), torch.float32, torch.Generator().manual_seed(0))
        found.append(content.decode(stored, 6)["logits"])
    assert found[0].shape == logits.shape
    assert found[0].movedim(axis, -1).reshape(-1, 6).equal(found[1])


@pytest.mark.parametrize(("dtype", "digits"), [("fp32", 0.0), ("fp16", 2.0**-11), ("bf16", 2.0**-8)])
def test_whole_logits_come_back_within_the_rounding_of_their_dtype(dtype: str, digits: float) -> None:
    logits = 10 * torch.randn(50, 20)
    back = there_and_back("logits", logits, DTYPES[dtype])
    assert back.dtype == torch.float32
    assert ((back - logits).abs() <= digits * logits.abs()).all()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("dtype", "digits"), [("fp16", 2.0**-11), ("bf16", 2.0**-8)])
def test_rounded_logits_keep_the_probabilities_within_the_bounds_of_the_readme(
    dtype: str, digits: float, temperature: float
) -> None:
    logits = 6 * torch.randn(500, 20)
    back = there_and_back("logits", logits, DTYPES[dtype])
    p, q = ((z.double() / temperature).log_softmax(1) for z in (logits, back))
    error = digits * logits.abs().amax(1) / temperature  # [N]
    assert ((q - p).abs().amax(1) <= 2 * error).all()
    assert ((p.exp() * (p - q)).sum(1) <= error**2 / 2).all()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_top_k_keeps_the_probabilities_of_its_classes_and_the_mass_of_the_tail(temperature: float) -> None:
    logits = 3 * torch.randn(64, 30, dtype=torch.float64)
    back = there_and_back(f"topk:5@{temperature:g}", logits)
    p, q = (logits / temperature).softmax(1), (back.double() / temperature).softmax(1)
    top = logits.topk(5).indices
    torch.testing.assert_close(q.gather(1, top), p.gather(1, top), rtol=1e-5, atol=0)
    tail = torch.ones_like(p).scatter(1, top, 0.0)
    torch.testing.assert_close((q * tail).sum(1), (p * tail).sum(1), rtol=1e-5, atol=0)
    flat = (q * tail).sum(1, keepdim=True) / 25
    torch.testing.assert_close(q[tail > 0].reshape(64, 25), flat.expand(64, 25))
    torch.testing.assert_close(back.gather(1, top), logits.gather(1, top).float())  # logits, not only their differences


def test_top_k_stored_at_temperature_1_has_too_heavy_a_tail_at_4_as_documented() -> None:
    logits = 3 * torch.randn(64, 30, dtype=torch.float64)
    top = logits.topk(5).indices
    tail = torch.ones_like(logits).scatter(1, top, 0.0)
    exact = ((logits / 4).softmax(1) * tail).sum(1)
    assert (((there_and_back("topk:5", logits).double() / 4).softmax(1) * tail).sum(1) > exact).all()


@pytest.mark.parametrize("read_at", [0.5, 1.0, 2.0, 4.0, 16.0])
def test_the_tail_of_top_k_is_off_by_a_bounded_factor_at_another_temperature(read_at: float) -> None:
    logits = 3 * torch.randn(64, 30, dtype=torch.float64)
    top = logits.topk(5).indices
    tail = torch.ones_like(logits).scatter(1, top, 0.0)
    p = (logits / read_at).softmax(1)
    q = (there_and_back("topk:5@2", logits).double() / read_at).softmax(1)
    odds = (q * tail).sum(1) / (p * tail).sum(1) * p.gather(1, top).sum(1) / q.gather(1, top).sum(1)
    bound = 25 ** (1 - 2 / read_at)  # 1 at the temperature of the store
    low, high = sorted((1.0, bound))
    assert (odds > low * (1 - 1e-5)).all()
    assert (odds < high * (1 + 1e-5)).all()
    relative = q.gather(1, top) / q.gather(1, top).sum(1, keepdim=True)
    torch.testing.assert_close(relative, (logits.gather(1, top) / read_at).softmax(1), rtol=1e-5, atol=0)


def test_another_temperature_than_that_of_a_top_k_store_is_refused_where_it_alone_is_read_and_warned_of_elsewhere(
    tmp_path, teacher, view, make_net
) -> None:
    batch = Batch.of(next(iter(DataLoader(view, 8))))
    at_four, at_one, whole = (
        Stored(write_store(tmp_path / what, teacher, view, what=what, views=3))
        for what in ("topk:3@4", "topk:3", "topk:7")
    )

    def learns(source: Teacher, component) -> None:
        Offline(make_net(), source, task=None, knowledge={"kd": component})(batch)

    message = (
        r"knowledge 'kd' \(SoftTargets\): softens at temperature {:g} the teacher's '{}', top classes stored for "
        r"temperature {:g}.* write the store with topk:K@{:g}, or set temperature {:g}"
    )
    refusal = (
        r"knowledge 'kd' \(SoftTargets\): has temperature {:g}, and the teacher's '{}' are top classes stored for "
        r"temperature {:g}; .* cannot be known: write the store with topk:K@{:g}, or set temperature {:g}"
    )
    for source, tap, stored, softens in (
        (at_one, "logits", 1, 4),
        (at_four, "logits", 4, 1),
        (Ensemble({"one": at_one, "two": at_four}), "logits", 1, 4),
        (Ensemble({"one": at_one, "two": at_four}), "one/logits", 1, 4),
        (Ensemble({"one": at_one, "live": teacher}, over="probabilities", temperature=4.0), "logits", 4, 1),
    ):
        component, numbers = SoftTargets(softens, teacher=tap), (softens, tap, stored, softens, stored)
        if component.takes_held and not isinstance(source, Ensemble):  # reads the top classes alone
            with pytest.raises(ValueError, match=refusal.format(*numbers)):
                learns(source, component)
        else:
            with pytest.warns(StoreWarning, match=message.format(*numbers)):
                learns(source, component)
    with pytest.warns(StoreWarning, match=r"'kd' \(DKD\): softens at temperature 2 the teacher's 'logits'"):
        learns(at_four, DKD(temperature=2.0))
    for source, component in (
        (at_one, SoftTargets(1.0)),
        (at_four, SoftTargets(4.0)),
        (at_four, DKD()),  # softens at 4 by default
        (whole, SoftTargets(4.0)),  # has no tail
        (at_one, Logits()),  # softens nothing
        (Ensemble({"four": at_four, "live": teacher}, over="probabilities", temperature=4.0), SoftTargets(4.0)),
    ):
        learns(source, component)  # a warning is an error in tests


def held_of(text: str, logits: torch.Tensor, places: torch.Tensor | None = None) -> SparseTargets:
    (content,) = parse([text]).values()
    stored = content.encode(Captured({"logits": logits}), torch.float32, torch.Generator().manual_seed(0))
    found = content.held(stored, logits.shape[-1], places)
    assert isinstance(found, SparseTargets)
    return found


@pytest.mark.parametrize("shape", [(9, 30), (3, 4, 30)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_top_k_is_read_back_as_the_log_probabilities_of_its_classes_and_of_the_rest(shape, temperature) -> None:
    logits = 3 * torch.randn(*shape, dtype=torch.float64)
    targets = held_of(f"topk:5@{temperature:g}", logits)
    log_p = (logits / temperature).log_softmax(-1)
    known, classes = log_p.topk(5)
    assert targets.ids.equal(classes)
    assert (targets.temperature, targets.kind, targets.valid) == (temperature, "topk", None)
    torch.testing.assert_close(targets.logprobs.double(), known, rtol=1e-5, atol=1e-6)
    rest = log_p.scatter(-1, classes, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(targets.rest().double(), rest, rtol=1e-5, atol=1e-6)


def test_soft_targets_of_top_classes_take_all_others_as_one() -> None:
    teacher, student = 3 * torch.randn(6, 30), 3 * torch.randn(6, 30, dtype=torch.float64)
    p, q = ((z.double() / 2).softmax(-1) for z in (teacher, student))
    top = teacher.topk(5).indices

    def merged(x: torch.Tensor) -> torch.Tensor:
        kept = x.gather(1, top)
        return torch.cat([kept, 1 - kept.sum(1, keepdim=True)], 1)

    by_hand = 4 * (merged(p) * (merged(p) / merged(q)).log()).sum(1).mean()
    found = kdx.ops.topk_kl(student, held_of("topk:5@2", teacher), temperature=2.0)
    torch.testing.assert_close(found, by_hand, rtol=1e-6, atol=0)


def test_sampled_classes_read_back_by_themselves_teach_what_their_tensor_teaches() -> None:
    teacher = 3 * torch.randn(6, 5, 30)
    found = []
    for spread in (False, True):
        student = torch.randn(6, 5, 30, generator=torch.Generator().manual_seed(1)).requires_grad_()
        if spread:
            loss = kdx.ops.softmax_kl(student, there_and_back("sample:9@2", teacher), temperature=2.0)
        else:
            loss = kdx.ops.topk_kl(student, held_of("sample:9@2", teacher), temperature=2.0)
        loss.backward()
        found.append((loss.detach(), student.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_at_padding_no_class_is_known() -> None:
    places = torch.tensor([[True, True, False], [False, True, True]])
    for text in ("topk:3@2", "sample:3@2"):
        targets = held_of(text, torch.randn(2, 3, 9), places)
        assert targets.valid is not None
        assert targets.valid.any(-1).equal(places)


def test_a_store_of_a_few_classes_makes_the_tensor_of_all_only_for_what_reads_it(tmp_path, teacher, view) -> None:
    for what in ("topk:3@4", "sample:3@4"):
        store = write_store(tmp_path / what, teacher, view, what=what, views=3)
        captured = store.read(torch.tensor([8, 30, 5]), 2)
        assert isinstance(captured.response("logits"), SparseTargets)
        assert "logits" not in captured
        assert captured.logits.shape == (3, 7)
        assert isinstance(captured.detach().response("logits"), SparseTargets)
    whole = write_store(
        tmp_path / "all", teacher, view, what="topk:7@4", views=3
    )  # of which every temperature is known
    assert isinstance(whole.read(torch.tensor([5])).response("logits"), torch.Tensor)


def test_top_k_of_all_classes_is_everything_and_of_more_an_error() -> None:
    logits = torch.randn(4, 6)
    torch.testing.assert_close(there_and_back("topk:6", logits), logits)
    with pytest.raises(StoreError, match="topk:7 wants more classes than the teacher's 6"):
        there_and_back("topk:7", logits)


def test_classes_that_the_teacher_rules_out_stay_ruled_out() -> None:
    logits = torch.tensor([[2.0, -torch.inf, 1.0, -torch.inf], [0.0, 1.0, -torch.inf, 3.0]])
    for text in ("logits", "topk:2", "topk:3", "sample:9"):
        back = there_and_back(text, logits, torch.float16)
        assert (back[0, [1, 3]] == -torch.inf).all(), text
    assert there_and_back("topk:1", logits)[1, 2] > -torch.inf  # the tail of 0 and 1 is spread over all three


def test_sampled_probabilities_have_the_teachers_as_their_mean_and_a_sampling_error_as_their_spread() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -3.0]]).expand(20_000, 5)
    for temperature in (1.0, 4.0):
        estimate = (there_and_back(f"sample:8@{temperature:g}", logits) / temperature).softmax(1).double()
        p = (logits[0].double() / temperature).softmax(0)
        sigma = (p * (1 - p) / 8).sqrt()
        error = (estimate.mean(0) - p).abs() / (sigma / math.sqrt(20_000))
        assert (error < 4.5).all()
        torch.testing.assert_close(estimate.std(0), sigma, rtol=0.03, atol=0)


def test_the_gradient_from_samples_has_that_of_the_whole_distribution_as_its_mean_and_top_k_has_not() -> None:
    teacher = torch.tensor([[2.0, 1.0, 0.0, -1.0, -3.0]])
    student = torch.tensor([[0.0, 0.5, -0.5, 1.0, 0.0]])
    kd = SoftTargets(temperature=2.0)

    def gradient(logits: torch.Tensor) -> torch.Tensor:
        z = student.expand(len(logits), 5).clone().requires_grad_()
        kd(Captured({"logits": z}), Captured({"logits": logits}), None).backward()
        return z.grad.sum(0)  # batchmean over equal rows

    exact = gradient(teacher)
    many = teacher.expand(20_000, 5)
    p = (teacher[0] / 2).softmax(0)
    sigma = 2 * (p * (1 - p) / 4 / 20_000).sqrt()  # of the mean of T (q - p)
    assert ((gradient(there_and_back("sample:4@2", many)) - exact).abs() < 4.5 * sigma).all()
    assert ((gradient(there_and_back("topk:2@2", teacher)) - exact).abs() > 10 * sigma).any()


class Fixed(Teacher):
    """Says what it was given."""

    def __init__(self, said: Captured) -> None:
        super().__init__()
        self.said = said

    def tap(self, names) -> None:
        pass

    def forward(self, batch) -> Captured:
        return self.said.detach()


@pytest.mark.parametrize("component", [SoftTargets(2.0), ReverseKL(), DKD()], ids=lambda c: type(c).__name__)
def test_sampled_classes_are_refused_by_all_but_soft_targets_of_their_temperature(component) -> None:
    said = Captured({"logits": torch.zeros(4, 3)}, provenance={"logits": (SampledClasses(4.0),)})
    batch = (torch.randn(4, 2), torch.zeros(4, dtype=torch.int64))
    distil = Offline(torch.nn.Linear(2, 3), Fixed(said), knowledge={"term": component})
    with pytest.raises(
        ValueError, match=r"'term' \(\w+\): .* classes sampled at temperature 4, from which soft-targets"
    ):
        distil(batch)
    allowed = Offline(torch.nn.Linear(2, 3), Fixed(said), knowledge={"term": SoftTargets(4.0)})
    assert torch.isfinite(allowed(batch).total)


def sampled(*logits: float, temperature: float = 4.0, rows: int = 4) -> Fixed:
    """A teacher whose classes are sampled, eight a row."""
    z = torch.tensor([logits]).expand(rows, -1)
    values = {"logits": there_and_back(f"sample:8@{temperature:g}", z)}
    return Fixed(Captured(values, provenance={"logits": (SampledClasses(temperature),)}))


@pytest.mark.parametrize(
    "options",
    [
        {"over": "logits"},
        {"over": "probabilities", "temperature": 2.0},
        {"over": "probabilities", "temperature": 4.0, "weights": "confidence"},
    ],
    ids=["mean of logits", "another temperature", "weights that depend on the draws"],
)
def test_combinations_of_sampled_classes_that_are_biased_are_refused(options) -> None:
    ensemble = Ensemble({"stored": sampled(2.0, 0.0, 1.0), "live": torch.nn.Linear(2, 3)}, **options)
    batch = (torch.randn(4, 2), torch.zeros(4, dtype=torch.int64))
    for temperature in (2.0, 4.0):
        distil = Offline(torch.nn.Linear(2, 3), ensemble, knowledge={"all": SoftTargets(temperature)})
        with pytest.raises(ValueError, match=r"'all' \(SoftTargets\): .* over='probabilities', constant weights"):
            distil(batch)
    alone = Offline(torch.nn.Linear(2, 3), ensemble, knowledge={"one": SoftTargets(4.0, teacher="stored/logits")})
    assert torch.isfinite(alone(batch).total)
    alone = Offline(torch.nn.Linear(2, 3), ensemble, knowledge={"one": ReverseKL(4.0, teacher="stored/logits")})
    with pytest.raises(ValueError, match="the teacher's 'stored/logits' are classes sampled at temperature 4"):
        alone(batch)


def test_the_mean_of_sampled_probabilities_is_unbiased_and_serves_soft_targets_of_their_temperature_alone() -> None:
    one, two = (2.0, 1.0, 0.0, -1.0, -3.0), (-1.0, 0.0, 0.0, 2.0, -3.0)
    known = Captured({"logits": torch.tensor([two]).expand(20_000, -1)})
    teachers = {"sampled": sampled(*one, rows=20_000), "known": Fixed(known)}
    ensemble = Ensemble(teachers, over="probabilities", temperature=4.0, weights={"sampled": 3.0, "known": 1.0})
    found = (ensemble(Batch(torch.zeros(20_000, 1))).logits / 4).softmax(1).double()
    p, q = ((torch.tensor(z, dtype=torch.float64) / 4).softmax(0) for z in (one, two))
    sigma = 0.75 * (p * (1 - p) / 8 / 20_000).sqrt()  # of the mean
    assert ((found.mean(0) - (0.75 * p + 0.25 * q)).abs() < 4.5 * sigma).all()

    batch = (torch.randn(20_000, 2), torch.zeros(20_000, dtype=torch.int64))
    allowed = Offline(torch.nn.Linear(2, 5), ensemble, knowledge={"all": SoftTargets(4.0)})
    assert torch.isfinite(allowed(batch).total)
    for component in (SoftTargets(2.0), DKD()):
        with pytest.raises(ValueError, match="the teacher's 'logits' are classes sampled at temperature 4"):
            Offline(torch.nn.Linear(2, 5), ensemble, knowledge={"all": component})(batch)


def test_what_cannot_be_stored_is_an_error_and_not_a_number() -> None:
    with pytest.raises(StoreError, match=r"reach 1e\+05, too large for torch.float16; take dtype bf16"):
        there_and_back("logits", torch.tensor([[1e5, 0.0]]), torch.float16)
    for text in ("logits", "topk:1", "sample:1"):
        with pytest.raises(StoreError, match="hold NaN"):
            there_and_back(text, torch.tensor([[torch.nan, 0.0]]))


@pytest.mark.parametrize("text", ["logit", "topk", "topk:0", "sample:x", "features:", "topk:3@0", ""])
def test_unknown_contents_are_an_error_that_lists_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected logits, hidden, .* features:TAP"):
        parse([text])


def test_the_logits_are_stored_in_one_form() -> None:
    with pytest.raises(ValueError, match="one form"):
        parse(["topk:3", "sample:3"])
