"""Regression: each sample has one or several quantities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from kdx.ranges import check_number
from kdx.responses import Form, Responses
from kdx.tasks.base import Task

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["Regression"]

Loss = Literal["mse", "l1", "huber", "gaussian"]


class Regression(Task):
    """Each sample has K quantities: squared, absolute or Huber error or Gaussian likelihood, judged by RMSE.

    Loss: a mean over the labelled elements, 0 with zero gradient without one; gradients reach the outputs. ``mse``
    ``(z - y)^2``; ``l1`` ``|z - y|``; ``huber`` ``(z - y)^2 / 2`` up to ``delta`` and ``delta (|z - y| - delta / 2)``
    beyond. With ``gaussian`` the model gives means and log-variances, ``[N, 2 K]`` with the means first, and the loss
    is ``(log v + (y - m)^2 / v) / 2``, the likelihood without its constant: a model that says how sure it is
    (heteroscedastic).

    Outputs are ``[N, K]``, or ``[N]`` or ``[N, 1]`` of one quantity; targets are floats of the shape of the values,
    ``[N, K]``, and ``[N]`` or ``[N, 1]`` of one. NaN marks an element without a label. Scale the targets to a standard
    deviation of about 1: the losses of several quantities are added.

    Args:
        loss: ``mse``, ``l1``, ``huber`` or ``gaussian``.
        delta: error from which Huber's loss grows linearly, above 0.

    Raises:
        ValueError: another loss or a ``delta`` out of range; in a call, outputs and targets whose shapes differ, which
            PyTorch would broadcast.
        TypeError: in a call, targets that are no floats.

    Paper: Nix, Weigend, Estimating the mean and variance of the target probability distribution, ICNN 1994,
    https://doi.org/10.1109/ICNN.1994.374138 (``gaussian``).

    Example:
        >>> task, targets = Regression(), torch.tensor([1.0, 3.0, float("nan")])
        >>> task(torch.zeros(3, 1), targets).item(), task.count(targets).item()
        (5.0, 2)
    """

    metric = "rmse"
    label = "RMSE"
    higher_is_better = False
    share = False

    def __init__(self, *, loss: Loss = "mse", delta: float = 1.0) -> None:
        if loss not in get_args(Loss):
            raise ValueError(f"loss must be one of {list(get_args(Loss))}, got {loss!r}")
        self.loss: Loss = loss
        self.delta = check_number("delta", delta, above=0)

    @property
    @override
    def responses(self) -> Responses:
        return Responses(form=Form.VALUES)

    @override
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        values, targets, log_variance = self._fit(outputs, targets)
        labelled = self.labelled(targets)
        wide = torch.promote_types(values.dtype, torch.float32)
        values, wanted = values.to(wide), torch.where(labelled, targets, 0.0).to(wide)
        if log_variance is not None:
            each = (log_variance.to(wide) + (wanted - values).square() * (-log_variance.to(wide)).exp()) / 2
        elif self.loss == "huber":
            each = F.huber_loss(values, wanted, reduction="none", delta=self.delta)
        else:
            each = (F.mse_loss if self.loss == "mse" else F.l1_loss)(values, wanted, reduction="none")
        total = torch.where(labelled, each, 0.0).sum()
        return (total / labelled.sum().clamp(min=1)).to(outputs.dtype)

    @override
    def count(self, targets: Tensor) -> Tensor:
        """The number of labelled elements."""
        return self.labelled(targets).sum()

    @override
    def check(self, outputs: Tensor, targets: Any) -> None:
        self._fit(outputs, targets)
        self.check_values(targets, None)

    @override
    def check_values(self, targets: Any, width: Any) -> None:
        if bool(targets.isinf().any()):
            raise ValueError("Regression: expected finite targets (or NaN, no label), got an infinite one")

    @override
    def metrics(self, outputs: Tensor) -> dict[str, Metric]:
        from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError

        from kdx.tasks.prepared import Prepared
        from kdx.tasks.r_squared import RSquared

        rmse, mae = Prepared(MeanSquaredError(squared=False), self._known), Prepared(MeanAbsoluteError(), self._known)
        return {"rmse": rmse, "mae": mae, "r2": Prepared(RSquared(), self._values)}

    @override
    def outputs(self, num_classes: int) -> int:
        return 2 * num_classes if self.loss == "gaussian" else num_classes

    def _fit(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, targets of their shape, and log-variances, if shapes and dtypes belong together."""
        if not isinstance(targets, Tensor) or not targets.is_floating_point():
            came = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
            raise TypeError(
                f"Regression: expected targets of floating point, got {came}; give targets.float(), and NaN for what "
                "has no label"
            )
        values, log_variance = outputs, None
        if self.loss == "gaussian":
            if outputs.dim() < 2 or outputs.shape[1] % 2:
                raise ValueError(
                    "Regression: loss='gaussian' needs outputs [N, 2 K], the means and then the log-variances, got "
                    f"{list(outputs.shape)}"
                )
            values, log_variance = outputs.chunk(2, 1)
        one, rows = values.numel() == len(values), [len(values)]
        if values.shape != targets.shape:
            if not one or list(targets.shape) not in (rows, [*rows, 1]):
                raise ValueError(
                    f"Regression: expected targets of the shape of the values, {list(values.shape)}, which "
                    f"broadcasting would hide, got {list(targets.shape)}"
                )
            targets = targets.reshape(values.shape)
        return values, targets, log_variance

    def _values(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Values and targets of their shape, of which none is infinite."""
        values, targets, _ = self._fit(outputs, targets)
        self.check_values(targets, None)
        return values, targets

    def _known(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Values and targets of the labelled elements, ``[M]`` each."""
        values, targets = self._values(outputs, targets)
        labelled = self.labelled(targets)
        return values[labelled], targets[labelled].to(values.dtype)
