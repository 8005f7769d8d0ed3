"""Hugging Face encoders behind the interface of a kdx model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx_text.memory import TextMemory

__all__ = ["HFEncoder"]


class HFEncoder(nn.Module):
    """An encoder of Hugging Face transformers with a task head: token ids in, logits or an embedding out.

    Taps: ``encoder.<...>`` as in the transformers model, for BERT ``encoder.encoder.layer.3`` (hidden states
    ``[N, L, D]``, globs as in ``encoder.encoder.layer.*``) and ``encoder.encoder.layer.3.attention.self[1]`` (attention
    probabilities ``[N, H, L, L]``; attention is computed "eager" so that they exist), ``pooled`` ``[N, D]`` and
    ``head``. The mask comes from the padding id, so that inputs stay one tensor.

    Args:
        path: a local folder with config and weights (``save_pretrained``); None makes a new encoder from ``config``.
        config: ``model_type`` and options of its config class, as ``{"model_type": "bert", "hidden_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 30522}``; with
            ``path`` they replace values of its config. Ways of loading, as ``trust_remote_code``, are none of them.
        head: ``"classification"``: dropout and a linear layer on the pooled vector; ``"embedding"``: the pooled vector,
            through a linear layer if ``num_classes`` (the embedding's width then) is not the encoder's.
        pool: ``"mean"`` over the tokens that are not padding, or ``"first"``, the first token.
        padding: the id of the padding token; None takes the config's.
        trained_layers: how many of the last encoder layers are trained, with the head; None trains everything. With 0
            the encoder stays in evaluation mode, so that the head is a probe on vectors that do not change.
        remember: keeps the pooled vector of every text of a batch (:class:`kdx_text.memory.TextMemory`), so that
            further epochs cost next to nothing; needs ``trained_layers=0``. The encoder's layers cannot be tapped then,
            ``pooled`` and ``head`` can. A batch of one text always runs, so that a latency is that of the encoder.
        num_classes: number of classes, or width of the embedding.
        input_shape: ``(L,)``, tokens per text.

    Raises:
        ValueError: neither ``path`` nor ``config``, a head, pool or number of layers that there is not, ``remember``
            with an encoder that is trained, texts longer than the encoder's positions, an option in ``config`` that its
            class does not have, or a folder whose model is code of its own, which is never run.
        FileNotFoundError: ``path`` is no folder; nothing is downloaded.
    """

    def __init__(
        self,
        *,
        path: Path | None = None,
        config: dict[str, Any] | None = None,
        head: Literal["classification", "embedding"] = "classification",
        pool: Literal["mean", "first"] = "mean",
        padding: int | None = None,
        trained_layers: int | None = None,
        remember: bool = False,
        num_classes: int = 2,
        input_shape: tuple[int, ...] = (64,),
    ) -> None:
        super().__init__()
        if remember and trained_layers != 0:
            raise ValueError(
                f"remember: vectors can be kept of an encoder that is not trained; give trained_layers=0, not "
                f"{trained_layers}"
            )
        self.frozen = trained_layers == 0
        if head not in ("classification", "embedding"):
            raise ValueError(f"head must be 'classification' or 'embedding', got {head!r}")
        if pool not in ("mean", "first"):
            raise ValueError(f"pool must be 'mean' or 'first', got {pool!r}")
        self.encoder = _encoder(path, config or {})
        settings = self.encoder.config
        limit = getattr(settings, "max_position_embeddings", None)
        if limit is not None and input_shape[0] > limit:
            raise ValueError(f"texts have {input_shape[0]} tokens, the encoder takes {limit}; shorten length")
        found = padding if padding is not None else getattr(settings, "pad_token_id", None)
        if found is None:
            raise ValueError("the encoder's config has no pad_token_id; give padding=")
        self.padding = int(found)
        self.pool = pool
        width = int(settings.hidden_size)
        self.pooled = nn.Identity()  # a name to tap
        if head == "classification":
            drop = getattr(settings, "hidden_dropout_prob", None) or 0.0
            self.head: nn.Module = nn.Sequential(nn.Dropout(drop), nn.Linear(width, num_classes))
        else:
            self.head = nn.Identity() if width == num_classes else nn.Linear(width, num_classes)
        if trained_layers is not None:
            self._freeze(trained_layers)
        self.memory = TextMemory(self.encoder, self.padding, pool) if remember else None
        self.train()

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` (or embeddings) of token ids ``[N, L]`` int64."""
        vector = self._vector(ids) if self.memory is None or len(ids) == 1 else self.memory(ids, self._vector)
        logits: Tensor = self.head(self.pooled(vector))
        return logits

    @override
    def train(self, mode: bool = True) -> Self:
        """Sets the mode of the head, and of an encoder that is trained."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def _vector(self, ids: Tensor) -> Tensor:
        kept = ids != self.padding  # [N, L]
        hidden: Tensor = self.encoder(input_ids=ids, attention_mask=kept.long())[0]  # [N, L, D]
        if self.pool == "first":
            return hidden[:, 0]
        weight = kept.unsqueeze(2).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)

    def _freeze(self, trained: int) -> None:
        layers = getattr(getattr(self.encoder, "encoder", self.encoder), "layer", None)
        if layers is None or not 0 <= trained <= len(layers):
            count = "no list of layers that this package knows" if layers is None else f"{len(layers)} layers"
            raise ValueError(f"trained_layers={trained}: {type(self.encoder).__name__} has {count}")
        self.encoder.requires_grad_(False)
        for layer in list(layers)[len(layers) - trained :]:
            layer.requires_grad_(True)


def _encoder(path: Path | None, config: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModel

    if path is not None:
        if not Path(path).is_dir():
            raise FileNotFoundError(f"path: there is no folder {str(path)!r}; give a local one, nothing is downloaded")
        settings = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        for key, value in config.items():  # beside the path, transformers would take ways of loading among them
            if key not in settings.to_dict():
                raise ValueError(f"config: {type(settings).__name__} has no option {key!r}")
            setattr(settings, key, value)
        model: Any = AutoModel.from_pretrained(
            path,
            config=settings,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            attn_implementation="eager",
            dtype=torch.float32,
        )
    else:
        if "model_type" not in config:
            raise ValueError("give path=, a local folder, or config= with a model_type, as {'model_type': 'bert'}")
        options = {key: value for key, value in config.items() if key != "model_type"}
        model = AutoModel.from_config(
            AutoConfig.for_model(config["model_type"], **options), attn_implementation="eager", trust_remote_code=False
        )
    return model.train()
