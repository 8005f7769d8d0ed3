"""Contrastive representation distillation: the same sample together, other samples apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Unpack

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import IGNORE, Batch
from kdx.capture import Captured
from kdx.features.adapters import trained
from kdx.features.gathering import whole_batch
from kdx.knowledge.base import Knowledge
from kdx.knowledge.relation import unit_rows
from kdx.ranges import check_number, check_whole
from kdx.sample_index import check_index
from kdx.tap import TapName, TapOptions

__all__ = ["CRD", "crd"]

DENSE = 8
"""Scores against the whole bank are taken if it has at most this many samples per candidate."""


def crd(scores: Tensor, *, log_z: Tensor, samples: int) -> Tensor:
    """Noise-contrastive loss of one positive among K negatives.

    ``-log h(s_0) - sum_k log(1 - h(s_k))`` averaged over the batch, with ``h(s) = p / (p + K / M)``, ``p = e^s / Z``:
    the probability that a pair belongs together, if K of the M samples are drawn as noise for each that does.

    Args:
        scores: ``[N, 1 + K]``, cosine / temperature, the positive first.
        log_z: scalar, the logarithm of the constant Z.
        samples: M.

    Returns:
        A scalar >= 0, with gradient to the scores. Computed in log space, so no score is too large.

    Example:
        >>> import torch
        >>> round(crd(torch.zeros(1, 2), log_z=torch.tensor(0.0), samples=1).item(), 4)  # 2 log 2
        1.3863
    """
    negatives = scores.shape[1] - 1
    odds = scores - log_z - math.log(negatives / samples)
    return (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(1)).mean()


class CRD(Knowledge):
    """Contrasts the embeddings of student and teacher, each with a memory bank of the other side.

    Loss: ``crd(student against the teacher's bank) + crd(teacher against the student's bank)``, see :func:`crd`; no
    ``T^2``; weight 0.8 in the common CIFAR-100 recipe. Both features go through a linear layer to ``dim`` numbers and
    are l2-normalised; both layers are learned with the student, and gradients reach it and them. The banks hold one
    embedding for every training sample: row i becomes the normalised ``momentum * row + (1 - momentum) * embedding``
    when sample i was in a training batch, on every rank for the samples of all ranks. Z is fixed for each side at the
    first training batch to ``mean(e^s) * samples``. Banks and Z are buffers, so a resumed run goes on with them; a
    batch in evaluation mode changes neither.

    The paper's derivation draws negatives from all samples. Its code draws them from other classes than the anchor's:
    give ``labels`` for that, or ``labels: data`` in a recipe. A sample whose label is unknown (``-100``) is a negative
    for every anchor but itself, and an anchor without a label has all other samples as negatives.

    Memory: the banks take ``2 * samples * dim * 4`` bytes (51 MB for 50,000 samples and dim 128) and are copied once a
    step. Scores need ``N * samples`` floats a side if ``samples <= 8 (negatives + 1)``, otherwise the candidates
    are gathered: ``N (negatives + 1) dim`` floats a side (0.5 GB at batch 64).

    Args:
        student: tap of ``[N, D]``, usually what enters the classifier; maps and tokens are pooled.
        teacher: tap of the teacher's.
        samples: number of samples of the training set; ``batch.index`` counts them. None: the training loader's data
            set says (:func:`kdx.fit`), or ``labels``.
        dim: length of the embeddings.
        negatives: negatives per anchor, drawn anew for each, with replacement.
        temperature: divides the cosine.
        momentum: of the banks.
        labels: class of every training sample ``[samples]``, ``-100`` where it is unknown, to draw negatives from
            other classes only; ``"data"``: the training loader's data set says (:func:`kdx.fit`).
        **features: see :class:`kdx.tap.TapOptions`.

    Paper: Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020, https://arxiv.org/abs/1910.10699.
    Z and the defaults are those of the authors' code; its 1e-7 in the denominators is not needed in log space.

    Example:
        >>> import torch
        >>> from kdx.capture import Captured
        >>> s, t = Captured({"fc": torch.randn(4, 8)}), Captured({"fc": torch.randn(4, 16)})
        >>> component = CRD(student="fc", teacher="fc", samples=100, negatives=32)
        >>> component.setup(s, t)
        >>> component(s, t, Batch(None, index=torch.arange(4))).shape
        torch.Size([])
    """

    kind = "feature"
    mean_over_samples = False  # a sample is compared with those of the memory bank, which moves with every batch
    needs_index = True
    bank_student: Tensor
    bank_teacher: Tensor
    log_z: Tensor
    started: Tensor

    def __init__(
        self,
        *,
        student: TapName,
        teacher: TapName,
        samples: int | None = None,
        dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        labels: Sequence[int] | Tensor | Literal["data"] | None = None,
        **features: Unpack[TapOptions],
    ) -> None:
        super().__init__(student=student, teacher=teacher, **features)
        for name, value in (("samples", samples), ("dim", dim), ("negatives", negatives)):
            if value is not None:
                check_whole(name, value, least=1)
        if isinstance(labels, str) and labels != "data":
            raise ValueError(f"labels must be one class per sample, 'data' or None; got {labels!r}")
        self.labels_of_data = isinstance(labels, str)
        self.samples = samples
        self.dim, self.negatives = dim, negatives
        self.temperature = check_number("temperature", temperature, above=0)
        self.momentum = check_number("momentum", momentum, least=0, most=1)
        self.register_buffer("log_z", torch.zeros(2))  # student as the anchor, teacher as the anchor
        self.register_buffer("started", torch.tensor(False))
        self.others: _OtherClasses | None = None
        if labels is not None and not isinstance(labels, str):
            self.samples = samples or len(labels)
            self.others = _OtherClasses(torch.as_tensor(labels), self.samples)
        self.embed_student: nn.Module | None = None
        self.embed_teacher: nn.Module | None = None

    @property
    @override
    def ready(self) -> bool:
        return self.embed_student is not None

    @override
    def dataset_size(self, samples: int) -> None:
        if self.samples is None:
            self.samples = samples

    @override
    def dataset_labels(self, labels: Tensor) -> None:
        if self.labels_of_data and self.others is None:
            samples = self.samples or len(labels)
            self.others = _OtherClasses(F.pad(labels, (0, max(samples - len(labels), 0)), value=IGNORE), samples)

    @override
    def setup(self, student: Captured, teacher: Captured) -> None:
        if self.embed_student is not None:
            return
        if self.labels_of_data and self.others is None:
            raise ValueError(
                "labels: CRD is to draw negatives from other classes and no data set says the classes of its samples; "
                "train on a loader whose dataset has integer targets [samples], or give labels=, one per sample"
            )
        if self.samples is None:
            raise ValueError(
                "samples: CRD keeps a row per training sample and no data set says how many there are; give "
                "samples=len(dataset), or train on a loader whose dataset has a length"
            )
        s, t = self.student_features(student)[0].vector(), self.teacher_features(teacher)[0].vector()
        bound = math.sqrt(3 / self.dim)  # uniform rows of about unit length
        for name in ("bank_student", "bank_teacher"):
            bank = torch.empty(self.samples, self.dim, device=s.device).uniform_(-bound, bound)
            self.register_buffer(name, bank)
        self.embed_student = trained(nn.Linear(s.shape[1], self.dim), s)
        self.embed_teacher = trained(nn.Linear(t.shape[1], self.dim), s)

    def draw(self, index: Tensor) -> Tensor:
        """Samples ``[N, 1 + negatives]`` to score: each anchor's own first, then its negatives."""
        shape = (len(index), self.negatives)
        if self.others is None:
            noise = torch.randint(len(self.bank_teacher), shape, device=index.device)
        else:
            noise = self.others(index, torch.rand(shape, device=index.device, dtype=torch.float64))
        return torch.cat([index[:, None], noise], 1)

    @override
    def forward(self, student: Captured, teacher: Captured, batch: Batch) -> Tensor:
        index = batch.index
        if self.embed_student is None or self.embed_teacher is None:
            raise RuntimeError("CRD has no embeddings yet; call scheme.setup(batch) before the optimizer is built")
        if index is None:
            raise ValueError(
                "CRD keeps a bank per sample and needs batch.index; yield kdx.Batch(inputs, targets, index)"
            )
        samples = len(self.bank_teacher)
        of_student = self.student_features(student)[0].full().vector()
        of_teacher = self.teacher_features(teacher)[0].full().vector()
        check_index("CRD", index, len(of_student), samples=samples, targets=batch.targets)
        with torch.autocast(index.device.type, enabled=False):
            s = unit_rows(self.embed_student(of_student))
            t = unit_rows(self.embed_teacher(of_teacher))
            candidates = self.draw(index)
            scores = [
                _scores(s, self.bank_teacher, candidates) / self.temperature,
                _scores(t, self.bank_student, candidates) / self.temperature,
            ]
            log_z = self._log_z(torch.stack([side.detach() for side in scores]))
            loss = crd(scores[0], log_z=log_z[0], samples=samples)
            loss = loss + crd(scores[1], log_z=log_z[1], samples=samples)
        if self.training:
            self._remember(index, s.detach(), t.detach())
        return loss

    def _log_z(self, scores: Tensor) -> Tensor:
        """Both constants ``[2]``: those of the first training batch, the mean over its ranks."""
        flat = scores.flatten(1)
        top = flat.amax(1, keepdim=True)
        now = (top + (flat - top).exp().mean(1, keepdim=True).log()).squeeze(1) + math.log(len(self.bank_teacher))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(now)
            now = now / dist.get_world_size()
        log_z = torch.where(self.started, self.log_z, now.to(self.log_z.dtype))
        if self.training:
            self.log_z.copy_(log_z)
            self.started.fill_(True)
        return log_z

    @torch.no_grad()
    def _remember(self, index: Tensor, student: Tensor, teacher: Tensor) -> None:
        index, student, teacher = whole_batch(index), whole_batch(student), whole_batch(teacher)
        for bank, new in ((self.bank_student, student), (self.bank_teacher, teacher)):
            mixed = self.momentum * bank[index] + (1 - self.momentum) * new.to(bank.dtype)
            bank.index_copy_(0, index, F.normalize(mixed))


class _OtherClasses(nn.Module):
    """Uniform draws from the samples of other classes than an anchor's; those without a label are of no class."""

    label: Tensor
    order: Tensor
    count: Tensor
    start: Tensor

    def __init__(self, labels: Tensor, samples: int) -> None:
        super().__init__()
        if labels.shape != (samples,):
            raise ValueError(f"labels must have one class per sample, shape [{samples}], got {list(labels.shape)}")
        known = labels != IGNORE
        if bool((labels[known] < 0).any()):
            raise ValueError(f"labels must be classes >= 0, or {IGNORE} where unknown; got {int(labels[known].min())}")
        label = torch.where(known, labels, labels.max().clamp(min=-1) + 1).long()  # a class of its own at the end
        count = torch.bincount(label)
        if int(count.max()) == samples and bool(known.any()):
            raise ValueError("labels holds a single class, so no sample of another one can be a negative; leave it out")
        start = count.cumsum(0) - count
        if not known.all():
            count[-1] = 0  # nothing is left out for an anchor without a label
        # they follow from the data set, so a checkpoint need not hold them
        self.register_buffer("label", label, persistent=False)
        self.register_buffer("order", label.argsort(stable=True), persistent=False)
        self.register_buffer("count", count, persistent=False)
        self.register_buffer("start", start, persistent=False)

    @override
    def forward(self, index: Tensor, uniform: Tensor) -> Tensor:
        own = self.label[index]
        count, start = self.count[own][:, None], self.start[own][:, None]
        place = (uniform * (len(self.order) - count)).long()  # among the samples sorted by class, own class left out
        return self.order[torch.where(place >= start, place + count, place)]


def _scores(anchor: Tensor, bank: Tensor, candidates: Tensor) -> Tensor:
    """Products ``[N, 1 + K]`` of anchors ``[N, D]`` with rows of a bank. The bank changes before the backward pass."""
    bank = bank.to(anchor.dtype)
    if len(bank) <= DENSE * candidates.shape[1]:
        return (anchor @ bank.clone().T).gather(1, candidates)
    return torch.bmm(bank[candidates], anchor[:, :, None]).squeeze(2)
