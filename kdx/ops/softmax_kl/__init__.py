"""Temperature-softmax divergences of two rows of logits, and the distillation loss made of them. See README.md."""

from kdx.ops.softmax_kl.api import kd_loss, softmax_kl

__all__ = ["kd_loss", "softmax_kl"]
