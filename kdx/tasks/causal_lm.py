"""Causal language modelling: each token of a sequence is predicted from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from kdx.batch import IGNORE
from kdx.linear_logits import LinearLogits
from kdx.responses import Responses
from kdx.tasks.linear_cross_entropy import linear_cross_entropy
from kdx.tasks.token_classification import TokenClassification

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["CausalLM"]


class CausalLM(TokenClassification):
    """Each token is predicted from those before it: cross-entropy over the labelled tokens, judged by it per token.

    Outputs are logits ``[B, T, V]`` and targets int64 ``[B, T]``, the token ids of the inputs themselves as collators
    give them, with ``-100`` for padding, prompts and all that is not to be learned: the output at place t is held
    against the target at t + 1, the first target is never asked for and the last output never judged. Nothing is
    learned at a place whose next token is ``-100``: not from the labels and, without ``taught``, not from a teacher.

    Loss: the mean of ``-log softmax(z_t)[y_t+1]`` over the labelled, shifted tokens of the batch; micro-batches and
    ranks are put together by how many of them each holds, as one batch would be. It is computed and given in float32
    (float64 stays), whatever the dtype of the logits. Padding is what the data mark with ``-100``; no attention mask is
    read for it.

    Outputs may be :class:`kdx.LinearLogits`, where :class:`kdx.Head` says what logits are made of (and nothing
    is smoothed): loss and metrics then make a few rows of them at a time.

    Metrics, over all labelled, shifted tokens: ``cross_entropy`` (nats per token), ``perplexity`` (its exponential),
    ``accuracy`` (of the likeliest token) and, with ``token_bytes``, ``bits_per_byte``, which compares models with
    different tokenizers: the loss of all those tokens in bits over the bytes that they stand for.

    Args:
        label_smoothing: share of a label's mass that is spread over all tokens, below 1; the metrics have none.
        taught: item of the inputs that is not 0 at the tokens that a teacher teaches, as ``"attention_mask"``, so that
            it teaches prompts too and padding not; None: the labelled ones.
        shift: False for targets that were shifted by the data: target t is then the token after input t.
        token_bytes: number of bytes that each token stands for, ``V`` numbers by token id (0 for special tokens); None:
            those that a recipe's data set has as its attribute ``token_bytes``, else no bits per byte. Of a byte-level
            BPE they are ``[len(token) for token in vocabulary]``.

    Raises:
        ValueError: a share out of range, numbers of bytes that are negative; in a call, outputs and targets of other
            shapes, or soft labels.

    Example:
        >>> logits = torch.zeros(1, 3, 4)
        >>> task, targets = CausalLM(), torch.tensor([[0, 3, -100]])
        >>> round(task(logits, targets).item(), 4), task.count(targets).item()
        (1.3863, 1)
    """

    metric = "cross_entropy"
    label = "cross-entropy per token"
    higher_is_better = False
    share = False
    padded = True

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        taught: str | None = None,
        shift: bool = True,
        token_bytes: Sequence[int] | Tensor | None = None,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing)
        self.taught = taught
        self.shift = shift
        self.token_bytes = None if token_bytes is None else _sizes(token_bytes)

    @override
    def dataset(self, data: Any) -> None:
        if self.token_bytes is None and (found := getattr(data, "token_bytes", None)) is not None:
            self.token_bytes = _sizes(found)

    @property
    @override
    def responses(self) -> Responses:
        return Responses(class_dim=2, void=True, shift=self.shift, taught=self.taught)

    @property
    def takes_held(self) -> bool:  # type: ignore[override]  # a constant of most tasks
        """Whether it takes :class:`kdx.LinearLogits`: without label smoothing."""
        return not self.label_smoothing

    @override
    def __call__(self, outputs: Tensor | LinearLogits, targets: Tensor) -> Tensor:
        self._fit(outputs, targets)
        if isinstance(outputs, LinearLogits):
            if self.label_smoothing:
                raise ValueError(
                    "label_smoothing: logits held as hidden states and a head are not smoothed; give 0, or leave "
                    "kdx.Head out of output="
                )
            return linear_cross_entropy(outputs, self.responses.aligned(targets))
        logits = (outputs if outputs.dtype == torch.float64 else outputs.float()).flatten(0, 1)  # [B T, V]
        wanted = self.responses.aligned(targets).flatten()
        smoothing = self.label_smoothing
        total = F.cross_entropy(logits, wanted, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
        loss: Tensor = total / (wanted != IGNORE).sum().clamp(min=1)
        return loss

    @override
    def count(self, targets: Tensor) -> Tensor:
        """The number of labelled tokens that an output predicts."""
        return super().count(self.responses.aligned(targets))

    @override
    def metrics(self, outputs: Tensor | LinearLogits) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        from kdx.tasks.prepared import Prepared
        from kdx.tasks.token_judge import TokenJudge
        from kdx.tasks.token_loss import TokenLoss

        vocabulary = outputs.shape[2]
        found: dict[str, Metric] = {
            "cross_entropy": TokenLoss("nats"),
            "perplexity": TokenLoss("perplexity"),
        }
        if self.token_bytes is not None:
            if len(self.token_bytes) > vocabulary:
                raise ValueError(
                    f"token_bytes: expected numbers for the {vocabulary} tokens of the outputs at most, got "
                    f"{len(self.token_bytes)}; are they of another tokenizer?"
                )
            found["bits_per_byte"] = TokenLoss("bits_per_byte", token_bytes=self.token_bytes)
        judge = TokenJudge(self._checked)
        found = {name: Prepared(metric, judge.losses) for name, metric in found.items()}
        accuracy = MulticlassAccuracy(num_classes=vocabulary, average="micro")
        return found | {"accuracy": Prepared(accuracy, judge.tokens)}

    def labels(self, outputs: Tensor | LinearLogits, targets: Tensor) -> Tensor:
        """The token ids ``[B, T]`` that the outputs are held against, each at its place, -100 for none.

        Raises:
            ValueError: outputs and targets do not belong together.
            TypeError: likewise.
        """
        self._fit(outputs, targets)
        aligned: Tensor = self.responses.aligned(targets)
        return aligned

    def _checked(self, outputs: Tensor | LinearLogits, targets: Tensor) -> Tensor:
        """The targets ``[B, T]`` of the outputs, -100 where no label is predicted."""
        self.check_values(targets, outputs.shape[self._fit(outputs, targets)])
        aligned: Tensor = self.responses.aligned(targets)
        return aligned

    @override
    def _fit(self, outputs: Any, targets: Any) -> int:
        if isinstance(targets, Tensor) and targets.is_floating_point():
            raise ValueError(
                f"{self._name}: expected token ids, int64 [B, T], as targets, got {targets.dtype} of shape "
                f"{list(targets.shape)}; a teacher's probabilities are taught by knowledge, such as soft-targets"
            )
        return super()._fit(outputs, targets)


def _sizes(token_bytes: Sequence[int] | Tensor) -> Tensor:
    found = torch.as_tensor(token_bytes, dtype=torch.int64).cpu()
    if found.dim() != 1 or bool((found < 0).any()):
        raise ValueError(
            "token_bytes: expected one number of bytes for each token id, 0 or more, got "
            f"{list(found.shape)} numbers, the least {int(found.min())}"
        )
    return found
