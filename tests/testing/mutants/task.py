"""Tasks with one defect each; what they inherit is sound."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import kdx


class Sound(kdx.Task):
    """Cross-entropy.

    Args:
        scale: of the logits.
    """

    metric = "accuracy"
    label = "accuracy"

    def __init__(self, scale=1.0):
        self.scale = scale

    def __call__(self, outputs, targets):
        total = F.cross_entropy(self.scale * outputs, targets, reduction="sum")
        return total / self.count(targets).clamp(min=1)

    def count(self, targets):
        return (targets >= 0).sum()

    def metrics(self, outputs):
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(outputs.shape[1], average="micro", ignore_index=-100)}


class Undocumented(Sound):
    """Cross-entropy; nothing of the scale."""

    caught_by = "documented"


class NoCopies(Sound):
    """Cross-entropy.

    Args:
        scale: of the logits.
    """

    caught_by = "copies"

    def __deepcopy__(self, memo):
        return type(self)(2 * self.scale)


class NoScalar(Sound):
    caught_by = "scalar"

    def __call__(self, outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none")


class Detached(Sound):
    caught_by = "gradient_reaches_the_outputs"

    def __call__(self, outputs, targets):
        return super().__call__(outputs.detach(), targets) + 0 * outputs.sum()


class WrongGradient(Sound):
    caught_by = "gradient_is_right"

    def __call__(self, outputs, targets):
        return super().__call__(outputs.detach() + 0.5 * (outputs - outputs.detach()), targets)


class EditsTargets(Sound):
    caught_by = "inputs_unchanged"

    def __call__(self, outputs, targets):
        loss = super().__call__(outputs, targets)
        targets[0] = 1
        return loss


class CountsNothing(Sound):
    caught_by = "count"

    def count(self, targets):
        return float("nan")

    def __call__(self, outputs, targets):
        return F.cross_entropy(outputs, targets)


class CountsRows(Sound):
    caught_by = "parts_add_up"

    def count(self, targets):
        return torch.tensor(len(targets)) * (targets >= 0).any()

    def __call__(self, outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="sum") / (targets >= 0).sum().clamp(min=1)


class NanWithoutLabels(Sound):
    caught_by = "unlabelled"

    def __call__(self, outputs, targets):
        return F.cross_entropy(outputs, targets)


class LacksItsMetric(Sound):
    caught_by = "metrics"
    metric = "recall"


class SharesItsMetric(Sound):
    caught_by = "metrics"
    kept = None

    def metrics(self, outputs):
        type(self).kept = type(self).kept or super().metrics(outputs)
        return self.kept


class OtherDirection(Sound):
    caught_by = "metrics"
    higher_is_better = False


class HidesNothing(Sound):
    caught_by = "labelled"

    def hidden(self, targets):
        return targets.clone()


class TakesAnything(Sound):
    caught_by = "misfits_are_refused"

    def check(self, outputs, targets):
        pass


class NoWidth(Sound):
    caught_by = "outputs"

    def outputs(self, num_classes):
        return float(num_classes)


MUTANTS = [
    Undocumented,
    NoCopies,
    NoScalar,
    Detached,
    WrongGradient,
    EditsTargets,
    CountsNothing,
    CountsRows,
    NanWithoutLabels,
    LacksItsMetric,
    SharesItsMetric,
    OtherDirection,
    HidesNothing,
    TakesAnything,
    NoWidth,
]
