"""Causal language models of Hugging Face transformers, from a folder, a GGUF file or a config."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from kdx_text.gguf_file import read_gguf, read_gguf_tokenizer
from kdx_text.quietly import quietly
from kdx_text.vocabulary import folder_tokenizer_id, tokenizer_id

__all__ = ["Attention", "Dtype", "causal_lm"]

Attention = Literal["sdpa", "eager", "flash_attention_2", "flex_attention"]
Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def causal_lm(
    *,
    path: Path | None = None,
    config: dict[str, Any] | None = None,
    attention: Attention = "sdpa",
    dtype: Dtype = "fp32",
    gradient_checkpointing: bool = False,
    lora: dict[str, Any] | None = None,
    tie: bool | None = None,
    num_classes: int = 2,
    input_shape: tuple[int, ...] = (128,),
) -> nn.Module:
    """A causal language model of Hugging Face transformers: token ids ``[N, T]`` in, logits ``[N, T, V]`` out.

    It is the model of transformers itself, so that taps are its module names (``model.layers.*`` and ``model.norm`` of
    a Llama, ``lm_head``), the recipe's data go to it by name (``input_ids``, ``position_ids``), and
    ``kdx export --to hf`` writes a folder that ``from_pretrained`` loads. Nothing is downloaded, and code that comes
    with a model is never run.

    Args:
        path: a local folder with config and weights (``save_pretrained``), or a GGUF file, whose quantised weights
            become the numbers that they stand for; None makes a new model from ``config``.
        config: ``model_type`` and options of its config class, as ``{"model_type": "llama", "hidden_size": 64,
            "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}``; ``vocab_size`` is that of the
            data unless it is given. With ``path`` they replace values of its config that change no shape.
        attention: how attention is computed; ``"eager"`` gives taps on attention probabilities.
        dtype: of the weights. With ``train.mixed_precision: bf16`` weights stay ``"fp32"`` and products are in bf16.
        gradient_checkpointing: computes each layer again in the backward pass instead of keeping what it computed.
        lora: options of peft's ``LoraConfig``, as ``{"r": 8, "target_modules": ["q_proj", "v_proj"]}``: adapters are
            trained and the model stays; needs ``path``, or weights that the recipe gives. None trains the whole model.
        tie: whether the output layer has the embedding's weights; None: as the config says.
        num_classes: number of tokens; the model's vocabulary may be larger, padded.
        input_shape: ``(T,)``, tokens in a row.

    Returns:
        The model, for training. Its attribute ``tokenizer_id`` says which tokenizer its tokens are of, where a folder
        or a file has one: data of another tokenizer are refused.

    Raises:
        ValueError: neither ``path`` nor ``config``, options that their class does not have, a vocabulary smaller than
            that of the data, rows longer than the model's positions, or a folder whose model is code of its own.
        FileNotFoundError: there is no such folder or file.
        ModuleNotFoundError: peft or gguf is needed and not installed.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    options = dict(config or {})
    if path is None:
        model = _new(options if tie is None else options | {"tie_word_embeddings": tie}, attention, num_classes)
    elif Path(path).is_dir():
        model = _from_folder(Path(path), options, attention)
    else:
        model = _from_gguf(Path(path), options, attention)
    _check_sizes(model.config, num_classes, input_shape)
    _tie(model, tie)
    model = model.to(DTYPES[dtype])
    if gradient_checkpointing:
        # its name in transformers before 5.23 is the second
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    made: nn.Module = _with_adapters(model, lora, gradient_checkpointing) if lora is not None else model
    return made.train()


def _new(options: dict[str, Any], attention: str, num_classes: int) -> Any:
    from transformers import AutoConfig

    if "model_type" not in options:
        raise ValueError(
            "give path=, a local folder or a GGUF file, or config= with a model_type, as {'model_type': 'llama'}"
        )
    kind = options.pop("model_type")
    options = {"vocab_size": num_classes} | options
    _check_known(AutoConfig.for_model(kind), options)
    return _built(AutoConfig.for_model(kind, **options), attention)


def _from_folder(path: Path, options: dict[str, Any], attention: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    _set(settings, options)
    if _on_meta():  # shapes are asked for
        return _built(settings, attention)
    with quietly():
        model, read = AutoModelForCausalLM.from_pretrained(
            path,
            config=settings,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            attn_implementation=attention,
            dtype=torch.float32,
            output_loading_info=True,
        )
    _check_loaded(path, read)
    model.tokenizer_id = folder_tokenizer_id(path)
    return model


def _from_gguf(path: Path, options: dict[str, Any], attention: str) -> Any:
    read = read_gguf(path)
    settings = type(read.config).from_dict(read.config.to_dict())
    _set(settings, options)
    if _on_meta():
        return _built(settings, attention)
    # a plain model: what transformers makes of GGUF by itself refuses float() and half()
    weights = {name: weight.clone() for name, weight in read.weights.items()}
    with quietly():
        model, found = read.kind.from_pretrained(
            None,
            config=settings,
            state_dict=weights,
            attn_implementation=attention,
            dtype=torch.float32,
            output_loading_info=True,
        )
    _check_loaded(path, found)
    model.tokenizer_id = tokenizer_id(read_gguf_tokenizer(path))
    return model


def _check_loaded(path: Path, found: Mapping[str, Any]) -> None:
    """Checks that no weight was left as it was drawn, and none left over."""
    if lost := sorted(found["missing_keys"]):
        raise ValueError(f"path: {path} has no weights for {lost[0]!r} ({len(lost)} such), which would be drawn anew")
    if unused := sorted(found["unexpected_keys"]):
        raise ValueError(f"path: {path} has weights {unused[0]!r} ({len(unused)} such) that the model has not")


def _built(settings: Any, attention: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(
        settings, attn_implementation=attention, trust_remote_code=False, dtype=torch.float32
    )


def _on_meta() -> bool:
    return torch.get_default_device().type == "meta"


def _tie(model: Any, tie: bool | None) -> None:
    """Gives a model that was read an output layer of its own, a copy of the embedding."""
    head = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    if tie is None or tie == tied:
        return
    if tie:
        raise ValueError("tie: the model has an output layer of its own, which would be lost; leave tie out")
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False


def _set(settings: Any, options: Mapping[str, Any]) -> None:
    """Sets options of a config that was read."""
    given = dict(options)
    if (kind := given.pop("model_type", settings.model_type)) != settings.model_type:
        raise ValueError(f"config: the model is of the type {settings.model_type!r}, not {kind!r}")
    _check_known(settings, given)
    settings.update(given)


def _check_known(settings: Any, options: Mapping[str, Any]) -> None:
    """Checks that a config has these options; ways of loading are none."""
    known = settings.to_dict()
    if unknown := [key for key in options if key not in known]:
        raise ValueError(f"config: {type(settings).__name__} has no option {unknown[0]!r}")


def _check_sizes(settings: Any, num_classes: int, input_shape: tuple[int, ...]) -> None:
    text = settings.get_text_config()
    if text.vocab_size < num_classes:
        raise ValueError(
            f"the model has {text.vocab_size} tokens and the data {num_classes}: they are of another tokenizer, or "
            "config= should leave vocab_size to the data"
        )
    limit = getattr(text, "max_position_embeddings", None)
    if limit is not None and input_shape[0] > limit:
        raise ValueError(f"rows have {input_shape[0]} tokens, the model takes {limit}; shorten length")


def _with_adapters(model: Any, lora: dict[str, Any], checkpointing: bool) -> Any:
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("lora needs peft, which is not installed: `pip install peft`", name="peft") from error
    try:
        settings = LoraConfig(task_type=TaskType.CAUSAL_LM, **lora)
    except TypeError as error:
        raise ValueError(f"lora: {error}; its options are those of peft.LoraConfig") from error
    if checkpointing:
        model.enable_input_require_grads()  # else the first checkpointed layer has nothing to go back to
    with warnings.catch_warnings():  # peft asks transformers by a name that is going
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, settings)
