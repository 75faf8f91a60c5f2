#!/usr/bin/env bash
# uvicorn with httptools hands an application an empty body for a POST that offers `Upgrade: h2c`;
# with h11 it hands on the body. Java's standard HttpClient (JDK 11 and later) sends that offer with
# every request to an http:// URL, so the POSTs of Spring AI or LangChain4j arrive without their body
# at any FastAPI server that has httptools and no TLS in front (fastapi[standard] brings httptools).
# RFC 9110, 7.8: a server may ignore the offer.
#
# Seen with uvicorn 0.54.0 and httptools 0.9.0 on 2026-11-28:
#   httptools: the application was given 0 of 7 bytes
#   h11: the application was given 7 of 7 bytes
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet uvicorn==0.54.0 httptools==0.9.0 h11==0.16.0
cat > "$folder/ask.py" <<'PYTHON'
import socket
import sys
import threading
import time

import uvicorn

REQUEST = (
    b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
    b"Content-Length: 7\r\n\r\n"
    b'{"a":1}'
)


async def app(scope, receive, send):
    message = await receive()
    size = b"%d" % len(message["body"])
    headers = [(b"content-length", b"%d" % len(size)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": size})


def size_given(implementation):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, http=implementation, lifespan="off", log_level="error")
        server = uvicorn.Server(config)
        run = {"sockets": [listener]}
        thread = threading.Thread(target=server.run, kwargs=run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        with socket.create_connection(listener.getsockname(), 20) as client:
            client.sendall(REQUEST)
            received = b""
            while piece := client.recv(65536):
                received += piece
        server.should_exit = True
        thread.join(20)
    return int(received.rpartition(b"\r\n\r\n")[2] or 0)


sizes = {name: size_given(name) for name in ("httptools", "h11")}
for name, size in sizes.items():
    print(f"{name}: the application was given {size} of 7 bytes")
if sizes != {"httptools": 0, "h11": 7}:
    print("CHANGED: the body arrives, or arrives nowhere")
    sys.exit(1)
PYTHON
"$folder/venv/bin/python" "$folder/ask.py"
