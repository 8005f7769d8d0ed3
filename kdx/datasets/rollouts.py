"""Rollouts: batches of what the student itself writes, mixed with those of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from kdx.batch import IGNORE, Batch
from kdx.datasets.batch_maker import BatchMaker
from kdx.datasets.generation import Generator, ends_of, generator_of
from kdx.ranges import check_number, check_whole

__all__ = ["ROLLOUT", "Rollouts"]

ROLLOUT = "rollout"
"""The view of a batch of rollouts: how many tokens were generated in each row, int64 ``[N]``."""


class Rollouts(BatchMaker):
    """A loader of token rows that the student continues itself, as on-policy distillation needs them.

    Each batch of the loader inside is either given on as it is (the data's own completions) or replaced: its prompts
    are continued by the student as it is at that moment, in evaluation mode and without gradient. Prompts, padding and
    all behind the first end token are ``-100`` in the targets; the end token itself is taught. Rows are padded behind
    their end, with a mask where the batch had one. Such a batch has the view ``rollout``, the number of tokens that
    were generated in each row; a row may have none.

    What is drawn follows from the seed and the number of the batch alone, so that a resumed run on a CPU is bitwise the
    unbroken one; a checkpoint holds the batches that are kept for replay. Ranks draw apart, but agree on which batches
    are the student's.

    Args:
        loader: batches of token ids ``[N, L]``, alone or as ``input_ids`` beside an ``attention_mask``, with targets
            ``[N, L]`` that are ``-100`` in the prompts; without targets every row is a prompt.
        student: the model; or a :class:`kdx.datasets.Generator` that samples from it elsewhere, such as
            :class:`kdx.datasets.VllmServer`.
        share: the probability that a batch is the student's (lambda of GKD); the others are the data's.
        max_new_tokens: the most that is generated for a row.
        temperature: of sampling; 0 takes the likeliest token.
        top_p: tokens are drawn from the likeliest that have this probability together; 1: from all.
        every: the student writes anew in each ``every``-th of its batches; those between are drawn from the ones kept.
        buffer: how many of the newest batches that the student wrote are kept; read where ``every`` is above 1.
        prompt: the number of tokens at the start of a row that are its prompt, in the data's completions too; None:
            those before the first that has a target.
        ends: end tokens; None: those of the model's ``generation_config`` or ``config``, if it has one.
        pad: the token to pad with, which nothing reads; None: that of the model's config, else the first end token, or
            0.
        shift: False for targets that the data have shifted: target t is then the token after input t.
        output: finds the logits in what a model returns, see :class:`kdx.datasets.StepByStep`.
        seed: of all that is drawn; None: torch's, when the first batch is made.

    Raises:
        ValueError: a number out of range; in a batch: inputs that are no token ids, or hold more than a mask beside
            them, packed documents, a row without a prompt, or no targets where the data's completions are asked for.

    Paper: Agarwal et al., On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes, ICLR 2024,
    https://arxiv.org/abs/2306.13649.

    Example:
        >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
        >>> ids = torch.tensor([[1, 2, 3, 4]])
        >>> rollouts = Rollouts([(ids, ids)], model, prompt=2, max_new_tokens=3, seed=0)
        >>> batch = next(iter(rollouts))
        >>> batch.inputs.shape, batch.targets[:, :2].tolist(), batch.views["rollout"].tolist()
        (torch.Size([1, 5]), [[-100, -100]], [3])
    """

    def __init__(
        self,
        loader: Iterable[Any],
        student: nn.Module | Generator,
        *,
        share: float = 1.0,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float = 1.0,
        every: int = 1,
        buffer: int = 1,
        prompt: int | None = None,
        ends: Sequence[int] | int | None = None,
        pad: int | None = None,
        shift: bool = True,
        output: Callable[[Any], Tensor] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(loader)
        self.share = check_number("share", share, least=0, most=1)
        self.max_new_tokens = check_whole("max_new_tokens", max_new_tokens, least=1)
        self.temperature = check_number("temperature", temperature, least=0)
        self.top_p = check_number("top_p", top_p, above=0, most=1)
        self.every = check_whole("every", every, least=1)
        self.buffer = check_whole("buffer", buffer, least=1)
        self.prompt = None if prompt is None else check_whole("prompt", prompt, least=1)
        self.shift = shift
        self.seed = seed
        said = getattr(student, "ends", None) if ends is None else ends
        self.ends = tuple([said] if isinstance(said, int) else said) if said is not None else ends_of(student)
        own = getattr(getattr(student, "config", None), "pad_token_id", None) if pad is None else pad
        self.pad = int(own if isinstance(own, int) else self.ends[0] if self.ends else 0)
        self.student = student
        self.generator: Generator = (
            generator_of(student, ends=self.ends, pad=self.pad, output=output)
            if isinstance(student, nn.Module)
            else student
        )
        self._made = self._turns = 0
        self._kept: list[Batch] = []

    @override
    def make(self, batch: Batch) -> Batch:
        if self.seed is None:
            self.seed = torch.initial_seed()
        number, self._made = self._made, self._made + 1
        rows = _Rows.of(batch, self.prompt, shift=self.shift)
        if self.share < 1 and (self.share == 0 or self._stream(number, "share").random() >= self.share):
            return self._of_data(batch, rows)
        turn, self._turns = self._turns, self._turns + 1
        if turn % self.every and self._kept:
            kept = self._kept[int(self._stream(number, "replay").integers(len(self._kept)))]
            return kept.to(rows.ids.device)
        made = self._written(batch, rows, number)
        if self.every > 1:
            self._kept = [*self._kept, made][-self.buffer :]
        return made

    @override
    def state_dict(self) -> dict[str, Any]:
        kept = [
            {"inputs": each.inputs, "targets": each.targets, "index": each.index, "views": dict(each.views)}
            for each in (batch.to("cpu") for batch in self._kept)
        ]
        return {"seed": self.seed, "made": self._made, "turns": self._turns, "kept": kept}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed, self._made, self._turns = state["seed"], state["made"], state["turns"]
        self._kept = [Batch(**each) for each in state["kept"]]

    def _of_data(self, batch: Batch, rows: _Rows) -> Batch:
        """The data's own completions, ``-100`` in the prompts."""
        if rows.targets is None:
            raise ValueError(
                f"Rollouts: share={self.share:g} takes the data's own completions in some batches, and this one has no "
                "targets; give targets that are -100 in the prompts, or share=1"
            )
        if self.prompt is None:
            return batch
        behind = rows.real & (rows.real.cumsum(1) > self.prompt - (0 if self.shift else 1))
        return batch._replace(targets=torch.where(behind, batch.targets, IGNORE))

    def _written(self, batch: Batch, rows: _Rows, number: int) -> Batch:
        """The prompts of a batch and what the student writes after them."""
        prompts = [ids[here] for ids, here in zip(rows.ids, rows.prompts, strict=True)]
        for row, prompt in enumerate(prompts):
            if not len(prompt):
                raise ValueError(
                    f"Rollouts: row {row} of the batch has no prompt: its first token has a target (is not -100), or "
                    "is masked; give prompt=, the number of tokens at the start of each row that are its prompt"
                )
        device = next((each.device for each in _parameters(self.student)), rows.ids.device)
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.pad, dtype=torch.int64, device=device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt.to(device)
            mask[row, longest - len(prompt) :] = 1
        generator = torch.Generator(device).manual_seed(self._seed_of(number))
        found = self.generator.generate(
            ids,
            mask,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            generator=generator,
        )
        self._check(found, ids)
        written = [self._until_end(row) for row in found[:, longest:].to(rows.ids.device)]
        return self._put_together(batch, prompts, written)

    def _put_together(self, batch: Batch, prompts: Sequence[Tensor], written: Sequence[Tensor]) -> Batch:
        like = prompts[0]
        length = max(len(prompt) + len(new) for prompt, new in zip(prompts, written, strict=True))
        ids = like.new_full((len(prompts), length), self.pad)
        targets, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
        for row, (prompt, new) in enumerate(zip(prompts, written, strict=True)):
            end = len(prompt) + len(new)
            ids[row, :end] = torch.cat([prompt, new])
            targets[row, len(prompt) : end] = new
            mask[row, :end] = 1
        inputs: Any = ids
        if isinstance(batch.inputs, Mapping):
            given = batch.inputs.get("attention_mask")
            inputs = {"input_ids": ids} | ({} if given is None else {"attention_mask": mask.to(given.dtype)})
        lengths = torch.tensor([len(new) for new in written], device=ids.device)
        return Batch(inputs, self._targets(targets), batch.index, {ROLLOUT: lengths})

    def _targets(self, targets: Tensor) -> Tensor:
        """Targets that stand where their tokens are, as the data would have them."""
        if self.shift:
            return targets
        moved = targets.roll(-1, 1)
        moved[:, -1] = IGNORE
        return moved

    def _until_end(self, new: Tensor) -> Tensor:
        """A row of generated tokens up to its first end token, which belongs to it."""
        over = torch.isin(new, torch.tensor(self.ends, dtype=new.dtype, device=new.device)).nonzero()
        new = new[: int(over[0]) + 1] if len(over) else new
        none = (new < 0).nonzero()
        return new[: int(none[0])] if len(none) else new

    def _check(self, found: Any, ids: Tensor) -> None:
        fits = isinstance(found, Tensor) and found.dim() == 2 and not found.is_floating_point()
        if not fits or found.shape[0] != ids.shape[0] or not torch.equal(found[:, : ids.shape[1]], ids):
            came = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"{type(self.generator).__name__}.generate: expected the prompts {list(ids.shape)} with the new tokens "
                f"behind them, got {came}; return torch.cat([input_ids, new], 1)"
            )

    def _stream(self, number: int, what: str) -> np.random.Generator:
        """The numbers drawn for one purpose in one batch, the same on all ranks."""
        assert self.seed is not None  # set with the first batch
        return np.random.default_rng((self.seed % (1 << 63), number, *what.encode()))

    def _seed_of(self, number: int) -> int:
        """The seed of what is generated in one batch, another one on each rank."""
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if several else 0
        return int(self._stream(number, f"rank {rank}").integers(1 << 63))


class _Rows(NamedTuple):
    """The rows of a batch: ids ``[N, L]``, which of them are no padding, which the prompts, and the targets."""

    ids: Tensor
    real: Tensor
    prompts: Tensor
    targets: Tensor | None

    @classmethod
    def of(cls, batch: Batch, prompt: int | None, *, shift: bool) -> _Rows:
        """Reads a batch; targets are put where their tokens are."""
        inputs = batch.inputs
        mask = None
        if isinstance(inputs, Mapping):
            if more := sorted(set(inputs) - {"input_ids", "attention_mask"}):
                raise ValueError(
                    f"Rollouts: the inputs hold {', '.join(more)} beside input_ids and attention_mask, and what they "
                    "are for generated tokens is not known; give one prompt in each row, with nothing beside them"
                )
            mask, inputs = inputs.get("attention_mask"), inputs.get("input_ids")
        if not isinstance(inputs, Tensor) or inputs.dim() != 2 or inputs.dtype not in (torch.int64, torch.int32):
            came = f"{inputs.dtype} {list(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
            raise ValueError(
                "Rollouts: expected token ids, int64 [N, L], as the inputs or as their item input_ids, got "
                f"{came}; on-policy training is for language models"
            )
        ids = inputs.long()
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
        targets = batch.targets
        if targets is not None:
            if not isinstance(targets, Tensor) or targets.shape != ids.shape or targets.is_floating_point():
                which = str(list(targets.shape)) if isinstance(targets, Tensor) else type(targets).__name__
                raise ValueError(f"Rollouts: expected targets, token ids of the shape {list(ids.shape)}, got {which}")
            if not shift:
                targets = torch.cat([torch.full_like(targets[:, :1], IGNORE), targets[:, :-1]], 1)
        if prompt is not None:
            prompts = real & (real.cumsum(1) <= prompt)
        elif targets is None:
            prompts = real
        else:
            prompts = real & ((targets != IGNORE).cumsum(1) == 0)
        return cls(ids, real, prompts, targets)


def _parameters(student: Any) -> Iterable[Tensor]:
    return student.parameters() if isinstance(student, nn.Module) else ()
