"""``DistillationMixin``: a scheme as the loss of the trainers of transformers and trl."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdx.batch import Batch
from kdx.hf.step_counts import StepCounts
from kdx.hf.taken import check_alone, check_scheme
from kdx.losses import Losses
from kdx.schemes.base import Scheme
from kdx.schemes.torch_losses import checks_of
from kdx.training.tokenizers import check_tokenizers
from kdx.training.tryout import Tryout

__all__ = ["DistillationMixin"]


class DistillationMixin:
    """Makes a scheme the loss of a ``Trainer`` of transformers or an ``SFTTrainer`` of trl; stands before it::

        class Distil(kdx.hf.DistillationMixin, transformers.Trainer): ...

        trainer = Distil(
            student,
            TrainingArguments(...),
            distil=lambda student: kdx.Offline(student, teacher, task=kdx.make("task", "causal-lm"), knowledge={...}),
            train_dataset=rows,
            data_collator=collator,
        )

    A step is that of :func:`kdx.fit`: every term is a mean over what it counts (labelled, shifted tokens) in all
    micro-batches of the step together, so that accumulation over 26 and 3 tokens is one batch of 29. The numbers are
    counted by the scheme, as ``num_items_in_batch`` is by the trainer. Logs have a mean of every term beside the loss.
    The first batch is tried before the first step, as by :func:`kdx.fit`: a term that teaches nothing, a token id
    beyond the vocabulary or packed documents that would see each other are errors with a sentence.

    In evaluation ``eval_loss`` is the total of the scheme and ``eval_task``, ``eval_kd`` ... are its terms, each an
    exact mean over all that it counts, not a mean of the batches' means.

    The scheme is no part of the model, so that checkpoints and ``save_model`` hold the student alone; teachers go to
    the trainer's device. Where the student is made by the trainer (``peft_config=`` of ``SFTTrainer``) ``distil`` gets
    that one, which may be its own teacher: ``kdx.teachers.Frozen(student, adapter="off")``.

    Args:
        distil: called with the trainer's model once it is there, gives the scheme; that trains this model alone.
        args: handed on to the trainer.
        kwargs: handed on to the trainer.

    Raises:
        TypeError: ``distil`` gives no scheme.
        ValueError: the scheme trains more than the model, keeps what a trainer would not save (parts of knowledge with
            parameters, a teacher that follows the student, balanced weights), or the run has several processes or
            devices: :func:`kdx.fit` trains those.
    """

    loss_is_scaled_for_ga = True
    """Read by transformers: the loss is divided by what all micro-batches count, and not once more by their number."""

    def __init__(self, *args: Any, distil: Callable[[nn.Module], Scheme], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        trainer: Any = self
        check_alone(trainer)
        # of transformers before there was loss_is_scaled_for_ga: asks for num_items_in_batch, and divides by nothing
        trainer.model_accepts_loss_kwargs = True
        self.scheme = check_scheme(distil(trainer.model), trainer.model)
        self.scheme.to(trainer.args.device)
        if trainer.train_dataset is not None:
            check_tokenizers(self.scheme, trainer.train_dataset)
        self._counts: StepCounts | None = None
        self._tried = False
        self._epoch: int | None = None
        self._logged: dict[str, Tensor] = {}
        self._steps = 0
        self._evaluated: dict[str, Tensor] | None = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The micro-batches of the next step, of which the scheme is told and counts what its terms are means over."""
        trainer: Any = self
        samples, items = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]  # of the trainer
        if samples:
            state, scheme = trainer.state, self.scheme
            if (epoch := int(state.epoch or 0)) != self._epoch:
                self._epoch = epoch
                scheme.epoch_start(epoch, math.ceil(trainer.args.num_train_epochs))
            scheme.advance(state.global_step, max(state.max_steps, 1))
            self._counts = StepCounts(scheme, [Batch.of(sample) for sample in samples])
            self._steps += 1
        return samples, items

    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The share of a micro-batch in the loss of its step; in evaluation the loss of the batch."""
        scheme, batch = self.scheme, Batch.of(inputs)
        if scheme.training != model.training:
            scheme.train(model.training)
        if model.training and not self._tried:
            self._tried = True
            self._try(batch)
        outputs: list[Any] = []
        student = next(iter(scheme.students.values()))
        hook = student.register_forward_hook(lambda module, given, found: outputs.append(found))
        try:
            losses = scheme(batch)
        finally:
            hook.remove()
        loss = self._share(losses, batch) if model.training else self._judge(losses)
        return (loss, _whole(outputs[0], student, batch)) if return_outputs else loss  # the first pass is the student's

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """That of the trainer, with the loss and every term as means over all that they count."""
        self._evaluated = {}
        try:
            found = super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]  # of the trainer
            prefix = kwargs.get("metric_key_prefix") or (args[4] if len(args) > 4 else "eval")
            terms = {name: float(sums[0] / sums[1].clamp(min=1)) for name, sums in self._evaluated.items()}
        finally:
            self._evaluated = None
        if terms:
            found.metrics[f"{prefix}_loss"] = sum(terms.values())
            found.metrics.update({f"{prefix}_{name}": value for name, value in terms.items()})
        return found

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean of every term over the steps since the last log."""
        if "loss" in logs and self._steps:
            logs.update({name: float(total) / self._steps for name, total in self._logged.items()})
            self._logged, self._steps = {}, 0
        super().log(logs, *args, **kwargs)  # type: ignore[misc]  # of the trainer

    def _try(self, batch: Batch) -> None:
        scheme = self.scheme

        def learn(width: Any, window: Sequence[Batch]) -> None:
            checks = checks_of(scheme.task) if scheme.task_weight > 0 else None
            if checks is not None and width is not None:
                checks.check_values(window[0].targets, width)

        Tryout(scheme, scheme.phases, lambda each, _: scheme(each), again=False, learn=learn).first([batch])

    def _share(self, losses: Losses, batch: Batch) -> Tensor:
        counts = self._counts
        if counts is None:
            raise RuntimeError(
                "compute_loss was called in training before get_batch_samples, which counts the tokens of a step; let "
                "the trainer run its own steps"
            )
        parts = counts.shares(losses, batch)
        for name, part in parts.items():
            self._logged[name] = self._logged.get(name, 0) + part.detach()
        return torch.stack(list(parts.values())).sum()

    def _judge(self, losses: Losses) -> Tensor:
        if self._evaluated is not None:
            for name, term in losses.terms.items():
                count = torch.as_tensor(losses.counts[name], dtype=torch.float64)
                sums = torch.stack([term.detach().double().cpu() * count.cpu(), count.cpu()])
                self._evaluated[name] = self._evaluated.get(name, torch.zeros(2, dtype=torch.float64)) + sums
        return losses.total


def _whole(outputs: Any, student: nn.Module, batch: Batch) -> Any:
    """The outputs with the logits of all places, where the scheme asked for those of the last one alone."""
    logits, targets = getattr(outputs, "logits", None), batch.targets
    if isinstance(logits, Tensor) and isinstance(targets, Tensor) and logits.shape[:2] != targets.shape[:2]:
        with torch.no_grad():
            return student(**batch.inputs)
    return outputs
