"""The first batch of a run, tried before the run trains on it: every term must teach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from kdx.batch import Batch
from kdx.losses import Losses
from kdx.schemes.base import Scheme
from kdx.schemes.phase import Phase, shown
from kdx.training.incoming import holes
from kdx.training.no_trace import leaving_no_trace
from kdx.training.packed import overlooked_documents
from kdx.training.probabilities import check_logits
from kdx.training.reach import reaches, unreached
from kdx.training.seen import Call, Seen, components_of

__all__ = ["Tryout"]


Forward = Callable[[Batch, str | None], Losses]
"""Gives the losses of a batch in a phase (None: the only one); not compiled, as that hides what happens to tensors."""


class Tryout:
    """Tries the first batch of a run before the run trains on it, and terms that come later when they come.

    Every phase is run once on the batch and leaves no trace. Each of its terms must teach: its graph leads to a
    parameter that the phase trains and that is not part of a knowledge component (of a phase that trains nothing else:
    to one of those). Its value may be 0. A term whose count is 0 in the batch, an unlabelled one, may be a constant;
    it is tried again.

    Args:
        scheme: set up, in the mode in which it is trained.
        phases: its phases.
        forward: what runs the scheme.
        again: whether to try terms that come later; several processes would have to agree on it.
        whole: whether every trained parameter must be reached, as data parallelism waits for the gradients of all.
        learn: is told the width of the outputs (see :attr:`kdx.training.seen.Seen.width`), and the first window.
    """

    def __init__(
        self,
        scheme: Scheme,
        phases: Sequence[Phase],
        forward: Forward,
        *,
        again: bool = True,
        whole: bool = False,
        learn: Callable[[Any, Sequence[Batch]], None] | None = None,
    ) -> None:
        self.scheme = scheme
        self.phases = phases
        self.forward = forward
        self.again = again
        self.whole = whole
        self.learn = learn
        self._taught: set[str] | None = None
        self.width: Any = None
        """Of the students' outputs, once the first batch was tried; see :attr:`kdx.training.seen.Seen.width`."""

    def first(self, window: Sequence[Batch]) -> None:
        """Tries the first micro-batch of the first step; does nothing for others.

        Raises:
            ValueError: a term teaches nothing; the message names it, what it reads, and what is likely the cause. Or a
                model gives probabilities where logits are taken, ``whole`` and a parameter is not reached, inputs are
                NaN, or documents packed in one row would see each other.
            CaptureError: an operation in place overwrote a tensor that a component reads.
        """
        if self._taught is None:
            self._check_trained()
            if found := holes(window[0]):
                raise ValueError(f"the first batch of train: its {found}; mend or leave out those samples")
            if found := overlooked_documents(window[0], self.scheme.students.values()):
                raise ValueError(f"the first batch of train: its {found}")
            self._taught = self._try(window[0])
            if self.learn is not None:
                self.learn(self.width, window)

    def later(self, batch: Batch, losses: Losses) -> None:
        """Tries a batch on which the run was trained, if there were terms that are not known to teach.

        Raises:
            ValueError: see :meth:`first`.
        """
        if self.again and self._taught is not None and not losses.terms.keys() <= self._taught:
            self._taught |= self._try(batch)

    def _try(self, batch: Batch) -> set[str]:
        """The names of the terms that were found to teach."""
        scheme, taught = self.scheme, set[str]()
        own = {id(parameter) for part in components_of(scheme).values() for parameter in part.parameters()}
        several = len(self.phases) > 1
        batch = batch.at(slice(None))  # what a scheme keeps for a batch of tensors is not found again in the step
        with leaving_no_trace(scheme):
            for phase in self.phases:
                with scheme.only(phase) if several else nullcontext(), Seen(scheme, batch) as seen:
                    losses = self.forward(batch, phase.name if several else None)
                    check_logits(scheme, seen)
                    self.width = seen.width if self.width is None else self.width
                    trained = [parameter for parameter in phase.parameters if id(parameter) not in own]
                    trained = trained or list(phase.parameters)
                    for call in seen.calls:
                        loss = call.loss[0] if isinstance(call.loss, tuple) else call.loss
                        if call.learns and not reaches(loss, trained):
                            raise ValueError(_of_component(scheme, phase, call, loss))
                    for name, term in losses.terms.items():
                        if reaches(term, trained):
                            taught.add(name)
                        elif bool(losses.counts.get(name, 1) > 0):
                            raise ValueError(_of_term(scheme, phase, name, term))
                    if self.whole:
                        self._check_whole(losses)
        return taught

    def _check_whole(self, losses: Losses) -> None:
        asking = [(name, each) for name, each in self.scheme.named_parameters() if each.requires_grad]
        if unused := unreached(losses.total, asking):
            more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
            raise ValueError(
                f"no term of {type(self.scheme).__name__} depends on the parameters {', '.join(unused[:5])}{more}, and "
                "several processes wait for the gradients of all: freeze them (requires_grad_(False)), or give "
                "unused_parameters=True to kdx.fit, which looks for them in every step"
            )

    def _check_trained(self) -> None:
        own = {id(parameter) for part in components_of(self.scheme).values() for parameter in part.parameters()}
        if all(id(parameter) in own for phase in self.phases for parameter in phase.parameters):
            raise ValueError(
                f"{type(self.scheme).__name__} trains nothing but the parts of its knowledge: every parameter of "
                f"{' and '.join(self.scheme.students)} is frozen (requires_grad=False); unfreeze what is to be trained"
            )


def _of_component(scheme: Scheme, phase: Phase, call: Call, loss: Tensor) -> str:
    name = call.name.rpartition(".")[2]
    what = f"knowledge {name!r} ({type(call.component).__name__}) teaches nothing: its loss does not depend on any "
    what += f"parameter that {shown(scheme, phase)} trains. "
    taps = [tap for written in call.component.student_taps for tap in call.student.patterns.get(written, (written,))]
    cut = [tap for tap in taps if tap in call.student and not call.student[tap].requires_grad]
    if cut and len(cut) == len(taps):
        return what + (
            f"What it reads in the student, {', '.join(map(repr, cut))}, came without gradient: the module runs under "
            "torch.no_grad, its output is detached, it runs inside a reentrant checkpoint "
            "(torch.utils.checkpoint with use_reentrant=True), or no layer up to it is trained. Compute it with "
            "gradient, write use_reentrant=False, tap a module outside the checkpoint, or remove the term"
        )
    if loss.requires_grad:
        return what + (
            f"Only its own parts learn: the student's {', '.join(map(repr, taps))} is detached on the way to the loss, "
            "or depends on frozen layers alone. Take out .detach(), or tap a layer that is trained"
        )
    return what + (
        "The loss is cut off from what it reads: .detach(), .item(), an argmax or torch.no_grad in the component. "
        "Compute it from the student's tensor with gradient, or remove the term"
    )


def _of_term(scheme: Scheme, phase: Phase, name: str, term: Tensor) -> str:
    if term.requires_grad:
        cause = "it depends on frozen layers, or on parts of knowledge, alone; unfreeze what it is to train"
    else:
        cause = (
            "it has no gradient at all: the loss function or the model's output is detached, runs under torch.no_grad, "
            "or runs inside a reentrant checkpoint (write use_reentrant=False), or no layer before it is trained"
        )
    return (
        f"term {name!r} teaches nothing: it does not depend on any parameter that {shown(scheme, phase)} trains. "
        f"Likely {cause}; or leave the term out"
    )
