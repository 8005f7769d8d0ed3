"""A server of vLLM, played by a stub: what it is asked, what its answers become, and whose weights it has."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import torch

import kdx
from kdx.datasets import Rollouts, VllmServer
from tests.language_models import END, Causal, batches, tokens


class Stub:
    """A server that answers as vLLM does: ``answer`` gives the token ids after a prompt, in any order of prompts."""

    def __init__(self, answer: Callable[[list[int]], Any]) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.status = 200
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply({"object": "list", "data": [{"id": "tiny"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.asked.append({"path": self.path, **body})
                stub.headers.append(self.headers)
                choices = [
                    {"index": index, "text": "?", "finish_reason": "stop", "token_ids": stub.answer(prompt)}
                    for index, prompt in enumerate(body["prompt"])
                ]
                self.reply({"choices": choices[::-1]} if stub.status == 200 else {"error": "out of memory"})

            def reply(self, body: dict[str, Any]) -> None:
                self.send_response(stub.status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub(lambda prompt: [len(prompt), END])
    yield made
    made.close()


def test_prompts_go_there_as_token_ids_and_come_back_as_rollouts(stub: Stub) -> None:
    student = Causal()
    server = VllmServer(stub.url + "/v1", student, ends=[END], headers={"Authorization": "Bearer key"})
    stub.answer = lambda prompt: {2: [7, END], 3: [], 4: [8]}[len(prompt)]
    (batch,) = Rollouts([tokens()], server, max_new_tokens=6, temperature=0.8, top_p=0.9, seed=0)
    (asked,) = stub.asked
    ids, _ = tokens()
    assert asked["path"] == "/v1/completions"
    assert asked["prompt"] == [row[: 2 + number % 3].tolist() for number, row in enumerate(ids)]
    wanted = {"model": "tiny", "max_tokens": 6, "temperature": 0.8, "top_p": 0.9, "stop_token_ids": [END]}
    assert {key: asked[key] for key in wanted} == wanted
    assert asked["return_token_ids"] is True
    assert stub.headers[0]["Authorization"] == "Bearer key"
    assert batch.views["rollout"].tolist() == [2, 0, 1, 2]
    assert batch.targets[batch.targets != -100].tolist() == [7, END, 8, 7, END]


def test_the_seed_of_a_batch_goes_along(stub: Stub) -> None:
    def seeds(seed: int) -> list[int]:
        stub.asked.clear()
        list(Rollouts(batches(3), VllmServer(stub.url, Causal(), ends=[END]), seed=seed))
        return [asked["seed"] for asked in stub.asked]

    assert seeds(1) == seeds(1) != seeds(2)
    assert len(set(seeds(1))) == 3


@pytest.mark.parametrize("optimizer", ["AdamW", {"name": "AdamW", "fused": True}, {"name": "SGD", "foreach": True}])
def test_weights_are_brought_there_wherever_the_student_has_changed(stub: Stub, optimizer) -> None:
    student, brought = Causal(), []
    server = VllmServer(
        stub.url, student, ends=[END], sync=lambda model: brought.append(model.head.weight.detach().clone())
    )
    scheme = kdx.Offline(
        student, Causal(8, seed=1), task=(0.0, kdx.tasks.CausalLM()), knowledge={"kd": kdx.knowledge.JSD()}
    )
    before = student.head.weight.detach().clone()
    kdx.fit(scheme, Rollouts(batches(3), server), optimizer=optimizer, device="cpu", progress=False)
    assert len(brought) == 3
    assert torch.equal(brought[0], before)
    assert not torch.equal(brought[1], brought[2])
    list(Rollouts(batches(2), server))
    assert len(brought) == 4  # after the last step, and not again as nothing changes


def test_a_student_that_has_changed_is_refused_without_a_way_to_bring_its_weights(stub: Stub) -> None:
    student = Causal()
    server = VllmServer(stub.url, student, ends=[END])
    rollouts = Rollouts(batches(2), server)
    list(rollouts)
    with torch.no_grad():
        student.head.bias.add_(1)
    with pytest.raises(ValueError, match=r"the student has changed since the server .* give VllmServer\(sync="):
        list(rollouts)


def test_a_server_that_gives_text_alone_too_few_rows_or_an_error_is_reported(stub: Stub) -> None:
    server = VllmServer(stub.url, Causal(), ends=[END])
    stub.answer = lambda prompt: None
    with pytest.raises(ValueError, match=r"answered without token_ids; serve with vLLM 0.10.2"):
        list(Rollouts([tokens()], server))
    stub.status = 500
    with pytest.raises(ConnectionError, match=r"refused with status 500: .*out of memory"):
        list(Rollouts([tokens()], server))
    gone = VllmServer("http://127.0.0.1:9", Causal(), model="tiny")
    with pytest.raises(ConnectionError, match="cannot be reached"):
        list(Rollouts([tokens()], gone))
    with pytest.raises(ValueError, match="url: expected one that begins with http"):
        VllmServer("file:///etc/passwd", Causal())
