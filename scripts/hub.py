"""A Hugging Face hub on loopback that holds one model: so that an image can be built with a model
in it where no hub can be reached. It speaks what `huggingface_hub.snapshot_download` asks for.

    python scripts/hub.py FOLDER --model NAME --port N --token TOKEN

The model is gated: without TOKEN every answer is a 401.
"""

import argparse
import hashlib
import json
import shutil
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34


class HubHandler(BaseHTTPRequestHandler):
    """Answers for one model; every revision is the same commit."""

    def __init__(self, folder: Path, model: str, token: str, *args: object) -> None:
        self.folder, self.model, self.token = folder, model, token
        super().__init__(*args)  # type: ignore[arg-type]  # request, address and server

    def do_HEAD(self) -> None:
        """As GET, without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """The model's facts, its list of files, or one file."""
        path = self.path.partition("?")[0]
        if self.headers["Authorization"] != f"Bearer {self.token}":
            self._answer_json({"error": "the model is gated"}, status=401)
        elif path.startswith(f"/api/models/{self.model}/revision/"):
            self._answer_json({"id": self.model, "sha": COMMIT, "siblings": []})
        elif path == f"/api/models/{self.model}/tree/{COMMIT}":
            self._answer_json([_entry(file) for file in sorted(self.folder.iterdir())])
        elif path.startswith(f"/{self.model}/resolve/{COMMIT}/"):
            self._answer_file(self.folder / path.rpartition("/")[2])
        else:
            self._answer_json({"error": "not found"}, status=404)

    def _answer_json(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _answer_file(self, file: Path) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(file.stat().st_size))
        self.send_header("ETag", f'"{_digest(file)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            with file.open("rb") as source:
                shutil.copyfileobj(source, self.wfile)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _entry(file: Path) -> dict[str, object]:
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _digest(file)}


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--token", required=True)
    options = parser.parse_args()
    handler = partial(HubHandler, options.folder, options.model, options.token)
    ThreadingHTTPServer(("127.0.0.1", options.port), handler).serve_forever()


if __name__ == "__main__":
    main()
