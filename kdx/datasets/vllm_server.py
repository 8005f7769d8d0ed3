"""A vLLM server that holds the student's weights and generates for it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdx.datasets.generation import ends_of

__all__ = ["VllmServer"]


class VllmServer:
    """A server of vLLM that continues prompts with the student's weights, as a :class:`kdx.datasets.Generator`.

    Prompts are sent as token ids and come back as such (``POST /v1/completions`` with ``return_token_ids``, vLLM 0.10.2
    or later), so that no text is tokenised anew. Sampling by the server is seeded, but no run on it is bitwise
    repeatable.

    A server does not follow the student by itself. ``sync(student)`` is called before the first generation and wherever
    the student has changed since the last one; it puts the weights onto the server, by whichever way the server was
    started for, and empties its prefix cache. Without it, a student that has changed since it was given is refused:
    what the server wrote would be another policy's.

    Args:
        url: of the server, as ``"http://localhost:8000"``.
        student: the model whose weights the server is to have.
        sync: puts the weights of a model onto the server.
        model: the name of the model there; None: the first that the server lists.
        ends: tokens that end a row; None: those of the student's ``generation_config`` or ``config``.
        headers: of every request, as ``{"Authorization": "Bearer ..."}``.
        timeout: seconds to wait for an answer.

    Raises:
        ValueError: the URL is not one of HTTP; in a call: the student has changed and there is no ``sync``, or the
            server gives no token ids.
        ConnectionError: in a call: the server cannot be reached, or refuses; its answer is shown.

    Docs: https://docs.vllm.ai/en/stable/serving/openai_compatible_server.html
    """

    def __init__(
        self,
        url: str,
        student: nn.Module,
        *,
        sync: Callable[[nn.Module], object] | None = None,
        model: str | None = None,
        ends: Sequence[int] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 600.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url: expected one that begins with http:// or https://, got {url!r}")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.student = student
        self.sync = sync
        self.model = model
        self.ends = ends_of(student) if ends is None else tuple(ends)
        self.headers = dict(headers or {})
        self.timeout = timeout
        self._weights = None if sync is not None else self._sums()

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
        """See :meth:`kdx.datasets.Generator.generate`."""
        self._bring_up_to_date()
        prompts = [ids[mask != 0].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        body = {
            "model": self._name(),
            "prompt": prompts,
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            # said, since a server fills in what the model's generation_config.json says
            **{"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
            "seed": generator.initial_seed() % (1 << 31),
            "stop_token_ids": list(self.ends),
            "return_token_ids": True,
        }
        choices = self._ask("/v1/completions", body).get("choices")
        found: dict[int, list[int]] = {}
        for choice in choices if isinstance(choices, list) else ():
            ids = choice.get("token_ids")
            if not isinstance(ids, list):
                raise ValueError(
                    f"{self.url} answered without token_ids; serve with vLLM 0.10.2 or later, which gives them where "
                    "return_token_ids is asked for"
                )
            found[int(choice["index"])] = ids
        if sorted(found) != list(range(len(prompts))):
            raise ValueError(
                f"{self.url}: expected one continuation of each of {len(prompts)} prompts, got {len(found)}"
            )
        longest = max(1, *map(len, found.values()))
        new = input_ids.new_full((len(prompts), longest), -1)
        for row, ids in found.items():
            new[row, : len(ids)] = torch.tensor(ids, dtype=new.dtype, device=new.device)
        return torch.cat([input_ids, new], 1)

    def _bring_up_to_date(self) -> None:
        now = self._sums()
        if self._weights is not None and torch.equal(now, self._weights):
            return
        if self.sync is None:
            raise ValueError(
                f"the student has changed since the server {self.url} was given its weights, so that it would write "
                "with old ones; give VllmServer(sync=...), a function that puts the weights of a model onto the server"
            )
        with torch.no_grad():
            self.sync(self.student)
        self._weights = now

    def _sums(self) -> Tensor:
        """The sums of every tensor and of its squares: a fused optimizer changes no version counter of torch's."""
        with torch.no_grad():
            wide = torch.float64
            each = [value.detach() for value in self.student.state_dict().values()]
            sums = [torch.stack([value.sum(dtype=wide), value.float().square().sum(dtype=wide)]) for value in each]
            return torch.stack([pair.cpu() for pair in sums])

    def _name(self) -> str:
        if self.model is None:
            self.model = str(self._ask("/v1/models")["data"][0]["id"])
        return self.model

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self.headers}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            raise ConnectionError(f"{self.url}{path} refused with status {error.code}: {said}") from error
        except (urllib.error.URLError, TimeoutError) as error:
            raise ConnectionError(f"{self.url}{path} cannot be reached: {error}; is the server running?") from error
        return found
