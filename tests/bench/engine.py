"""A stand-in for vLLM that costs next to nothing: `python -m tests.bench.engine --port 8000`.

A stream has `max_tokens` tokens, twenty a second; a plain answer comes at once. The flags of vLLM
that it does not know are ignored, so that a worker can start it.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable

from tests.bench.http_server import Connection, serve
from tests.bench.metronome import Metronome, first_chunk, plain_answer, token_chunk


class Generation:
    """One stream under way."""

    def __init__(
        self,
        connection: Connection,
        answer_id: str,
        model: str,
        tokens: int,
        on_left: Callable[[], None],
    ) -> None:
        self._connection = connection
        connection.on_close = on_left
        self._id, self._model = answer_id.encode(), model.encode()
        self._tokens = tokens
        self._made = 0
        connection.begin_stream()

    def tick(self) -> bool:
        """Send the next token; whether there are more, and anyone to read them."""
        if not self._connection.is_open:
            return False
        is_last = self._made + 1 == self._tokens
        chunk = token_chunk(self._id, self._model, self._made, is_last=is_last)
        if self._made == 0:
            chunk = first_chunk(self._id, self._model) + chunk
        if is_last:
            chunk += b"data: [DONE]\n\n"
            self._connection.on_close = None
        self._connection.send_chunk(chunk, is_last=is_last)
        self._made += 1
        return not is_last


class Engine:
    """Answers as vLLM does, for any model."""

    def __init__(self) -> None:
        self.metronome = Metronome()
        self._serial = itertools.count(1)
        self._left: list[float] = []
        """When the reader of each stream that was left had gone."""

    def answer(self, connection: Connection) -> None:
        """Answer a chat, the list of models, or anything else as a healthy endpoint would."""
        if connection.path.startswith("/v1/chat/completions"):
            self._chat(connection)
        elif connection.path == "/bench/left":
            connection.respond_json(self._left)
        elif connection.path.startswith("/v1/models"):
            card = {"id": "m", "object": "model", "created": 1, "max_model_len": 8192}
            connection.respond_json({"object": "list", "data": [card]})
        else:
            workers = {"idle": 1, "ready": 1}
            connection.respond_json({"jobs": {"inQueue": 0}, "workers": workers})

    def _chat(self, connection: Connection) -> None:
        body = json.loads(connection.body)
        answer_id, model = f"chatcmpl-{next(self._serial)}", body.get("model", "m")
        if body.get("stream"):
            tokens = int(body.get("max_tokens") or 16)
            generation = Generation(connection, answer_id, model, tokens, self._note_left)
            self.metronome.add(generation)
        else:
            connection.respond_json(plain_answer(answer_id, model))

    def _note_left(self) -> None:
        self._left.append(time.monotonic())


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int, required=True)
    arguments, _ = parser.parse_known_args()
    engine = Engine()
    serve(engine, arguments.port, engine.metronome.start)


if __name__ == "__main__":
    main()
