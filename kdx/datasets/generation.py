"""Sampling from language models: the interface, the ``generate`` of Hugging Face, and a plain loop for other models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kdx import rng
from kdx.capture import call, logits_of
from kdx.modes import evaluating

__all__ = ["Generator", "HuggingFaceGenerator", "StepByStep", "ends_of", "generator_of", "nucleus"]


@runtime_checkable
class Generator(Protocol):
    """Anything that continues prompts: a model here, or a server that holds the same weights."""

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        generator: torch.Generator,
    ) -> Tensor:
        """The prompts with what was generated after them.

        Args:
            input_ids: int64 ``[N, L]``, the prompts, padded on the left.
            attention_mask: int64 ``[N, L]``, 0 where ``input_ids`` is padding.
            max_new_tokens: the most that is generated.
            temperature: that logits are divided by before a token is drawn; 0 takes the likeliest.
            top_p: tokens are drawn from the likeliest that have this probability together; 1: from all.
            generator: the source of all that is drawn, so that the same one gives the same tokens. What draws from
                another source takes its seed, ``generator.initial_seed()``.

        Returns:
            int64 ``[N, L + M]``, M at most ``max_new_tokens``. A row ends with its first end token; behind it anything
            may stand. A row that ends without one has -1 behind its last token.
        """


class HuggingFaceGenerator:
    """A causal model of Hugging Face, sampled by its own ``generate``, in evaluation mode and without gradient.

    Tokens come from the model's own distribution at ``temperature`` and ``top_p``: what its ``generation_config`` says
    of ``top_k``, beams, penalties and all else is passed over, and the config itself stays as it is.

    Args:
        model: with ``generate`` and ``generation_config``.
        ends: tokens that end a row.
        pad: a token to pad with.
    """

    def __init__(self, model: nn.Module, *, ends: Sequence[int] = (), pad: int = 0) -> None:
        self.model = model
        self.ends = tuple(ends)
        self.pad = pad

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        generator: torch.Generator,
    ) -> Tensor:
        """See :meth:`Generator.generate`.

        Raises:
            ValueError: prompts and new tokens are together longer than the positions that the model has.
        """
        most = getattr(getattr(self.model, "config", None), "max_position_embeddings", None)
        if isinstance(most, int) and input_ids.shape[1] + max_new_tokens > most:
            raise ValueError(
                f"max_new_tokens: prompts of up to {input_ids.shape[1]} tokens and {max_new_tokens} new ones are more "
                f"than the {most} positions of the model ({type(self.model).__name__}); give fewer, or shorter prompts"
            )
        drawn = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
        model: Any = self.model
        with rng.isolated(), evaluating(self.model), torch.no_grad(), _plain_config(self.model):
            torch.manual_seed(generator.initial_seed())
            found: Tensor = model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                max_new_tokens=max_new_tokens,
                eos_token_id=list(self.ends) or None,
                pad_token_id=self.pad,
                **(drawn or {"do_sample": False}),
                use_cache=True,
            )
        return found


@contextmanager
def _plain_config(model: nn.Module) -> Iterator[None]:
    """Within it the model, and the base of adapters, have a ``generation_config`` that says nothing."""
    base = getattr(model, "get_base_model", None)
    models: list[Any] = [model, *([base()] if callable(base) else [])]
    kept = [(each, each.generation_config) for each in models if getattr(each, "generation_config", None) is not None]
    try:
        for each, config in kept:
            each.generation_config = type(config)()
        yield
    finally:
        for each, config in kept:
            each.generation_config = config


class StepByStep:
    """Any causal model that gives logits ``[N, L, V]`` of ids ``[N, L]``, run anew for every token that is drawn.

    Rows are padded behind their last token, which a causal model does not see; no mask is needed. A model that keeps
    what it has computed is better given as a :class:`Generator` of its own.

    Args:
        model: the model, called with the ids alone, in evaluation mode and without gradient.
        ends: tokens that end a row.
        pad: a token to pad with.
        output: finds the logits in what the model returns; None: the usual ways, see :func:`kdx.capture.logits_of`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        ends: Sequence[int] = (),
        pad: int = 0,
        output: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.model = model
        self.ends = tuple(ends)
        self.pad = pad
        self.output = output or logits_of

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        generator: torch.Generator,
    ) -> Tensor:
        """See :meth:`Generator.generate`.

        Raises:
            ValueError: the model gives something else than logits ``[N, L, V]``.
        """
        rows, longest = input_ids.shape
        lengths = attention_mask.sum(1)
        ids = input_ids.new_full((rows, longest + max_new_tokens), self.pad)
        for row, length in enumerate(lengths.tolist()):
            ids[row, :length] = input_ids[row, longest - length :]
        new = input_ids.new_full((rows, max_new_tokens), -1)
        ended = torch.zeros(rows, dtype=torch.bool, device=ids.device)
        ends = torch.tensor(self.ends, dtype=ids.dtype, device=ids.device)
        every = torch.arange(rows, device=ids.device)
        with evaluating(self.model), torch.no_grad():
            for place in range(max_new_tokens):
                logits = self.output(call(self.model, ids[:, : longest + place]))
                if logits.dim() != 3 or logits.shape[:2] != (rows, longest + place):
                    raise ValueError(
                        f"generation: expected logits [N, L, V] of ids {[rows, longest + place]} from "
                        f"{type(self.model).__name__}, got {list(logits.shape)}; give a kdx.datasets.Generator of "
                        "your own"
                    )
                token = _drawn(logits[every, lengths + place - 1], temperature, top_p, generator)
                new[:, place] = torch.where(ended, -1, token)
                ids[every, lengths + place] = token
                ended |= torch.isin(token, ends)
                if bool(ended.all()):
                    break
        return torch.cat([input_ids, new[:, : place + 1]], 1)


def _drawn(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """One token for each row of logits ``[N, V]``."""
    if temperature == 0:
        return logits.argmax(1)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    probabilities = nucleus((wide / temperature).softmax(1), top_p)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Probabilities ``[N, V]`` without all but the likeliest classes that have ``top_p`` together; not renormalised.

    Paper: Holtzman et al., The Curious Case of Neural Text Degeneration, ICLR 2020, https://arxiv.org/abs/1904.09751.

    Example:
        >>> nucleus(torch.tensor([[0.5, 0.3, 0.2]]), 0.6).tolist()
        [[0.5, 0.30000001192092896, 0.0]]
    """
    if top_p >= 1:
        return probabilities
    ordered, places = probabilities.sort(1, descending=True)
    before = ordered.cumsum(1) - ordered
    return torch.zeros_like(ordered).scatter(1, places, ordered.masked_fill(before >= top_p, 0.0))


def ends_of(model: Any) -> tuple[int, ...]:
    """The end tokens that a model of Hugging Face says it has; none of other models."""
    for config in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return tuple(found) if isinstance(found, Sequence) else (int(found),)
    return ()


def generator_of(
    model: nn.Module, *, ends: Sequence[int], pad: int, output: Callable[[Any], Tensor] | None = None
) -> Generator:
    """How a model is sampled: by its own ``generate`` where it is one of Hugging Face, else step by step.

    Args:
        model: the model.
        ends: tokens that end a row.
        pad: a token to pad with.
        output: see :class:`StepByStep`.
    """
    if callable(getattr(model, "generate", None)) and getattr(model, "generation_config", None) is not None:
        return HuggingFaceGenerator(model, ends=ends, pad=pad)
    return StepByStep(model, ends=ends, pad=pad, output=output)
