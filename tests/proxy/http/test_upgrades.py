"""Offers to speak another protocol are declined, and the request is answered as what it is."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.proxy.conftest import KEY
from tests.proxy.http.test_streaming import FRAMES
from tests.proxy.process import Proxy
from tests.proxy.raw_http import AUTHORIZED, CHAT, JSON, all_of, connected, parsed, read_until
from tests.proxy.scripted_runpod import Page, ScriptedRunPod

pytestmark = pytest.mark.slow

H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"
OFFERS = {
    "h2c, as Java": H2C,
    "TLS": b"upgrade: TLS/1.0\r\nconnection: upgrade\r\n",
    "several": b"connection: keep-alive, upgrade\r\nupgrade: foo/2, bar\r\nupgrade: baz\r\n",
    "a websocket by POST": b"connection: Upgrade\r\nupgrade: websocket\r\n",
}
CLOSING = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def proxy(
    scripted_runpod: tuple[ScriptedRunPod, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    proxy = Proxy(scripted_runpod[1], state_dir=tmp_path_factory.mktemp("state"))
    yield proxy
    proxy.close()


@pytest.fixture
def wire(proxy: Proxy) -> Iterator[socket.socket]:
    with connected(proxy.url) as wire:
        yield wire


def post(offer: bytes, *, is_chunked: bool = False) -> bytes:
    top = b"POST %s HTTP/1.1\r\nhost: x\r\n" % CHAT.encode() + AUTHORIZED + offer
    if not is_chunked:
        return top + b"content-length: %d\r\n\r\n" % len(JSON) + JSON
    pieces = b"5\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (JSON[:5], len(JSON) - 5, JSON[5:])
    return top + b"transfer-encoding: chunked\r\n\r\n" + pieces


@pytest.mark.parametrize("is_chunked", [False, True], ids=["counted", "chunked"])
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
def test_a_post_with_an_offer_is_answered_with_its_body_read(
    wire: socket.socket, runpod: ScriptedRunPod, offer: bytes, is_chunked: bool
) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    wire.sendall(post(offer, is_chunked=is_chunked) + CLOSING)
    received = all_of(wire)
    assert received.startswith(b"HTTP/1.1 200")
    assert b'{"ok":true}' in received
    assert received.endswith(b'{"status":"ok"}')
    assert runpod.jobs[0]["input"]["openai_input"] == msgspec.json.decode(JSON)


@pytest.mark.parametrize("is_chunked", [False, True], ids=["counted", "chunked"])
@pytest.mark.parametrize("packets", [2, 3, 7, 1000])
def test_it_does_not_matter_how_such_a_request_is_cut(
    wire: socket.socket, runpod: ScriptedRunPod, packets: int, is_chunked: bool
) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    request = post(H2C, is_chunked=is_chunked)
    size = max(1, len(request) // packets)
    for start in range(0, len(request), size):
        wire.sendall(request[start : start + size])
    assert b'{"ok":true}' in read_until(wire, b"}", sent=b"")
    assert runpod.jobs[0]["input"]["openai_input"] == msgspec.json.decode(JSON)


def test_such_requests_are_answered_in_turn_on_one_connection(
    wire: socket.socket, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    get = CLOSING.replace(b"connection: close\r\n", H2C)
    wire.sendall(get + post(H2C) + get + CLOSING)
    received = all_of(wire)
    assert received.count(b"HTTP/1.1 200") == 4
    assert received.count(b'{"status":"ok"}') == 3


def test_an_offer_in_http_1_0_is_declined_too(wire: socket.socket, runpod: ScriptedRunPod) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    wire.sendall(post(H2C).replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert parsed(all_of(wire)) == (200, b'{"ok":true}')


def test_a_tunnel_is_refused_in_words(wire: socket.socket) -> None:
    wire.sendall(b"CONNECT example:443 HTTP/1.1\r\nhost: example:443\r\n\r\n\x16\x03\x01")
    status, body = parsed(all_of(wire))
    assert status == 405
    assert msgspec.json.decode(body)["error"]["code"] == "method_not_allowed"


JAVA = """
import java.net.URI;
import java.net.http.*;

class Ask {
    public static void main(String[] given) throws Exception {
        var body = HttpRequest.BodyPublishers.ofString(given[2]);
        if (given[3].equals("chunked")) {
            body = HttpRequest.BodyPublishers.fromPublisher(body);
        }
        var request = HttpRequest.newBuilder(URI.create(given[0]))
            .header("Authorization", "Bearer " + given[1])
            .header("Content-Type", "application/json")
            .POST(body).build();
        var client = HttpClient.newHttpClient();
        for (int i = 0; i < 2; i++) {
            var answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.version());
            System.out.println(answer.body());
        }
    }
}
"""


@pytest.mark.skipif(shutil.which("javac") is None, reason="no JDK is installed")
@pytest.mark.parametrize("form", ["counted", "chunked"])
def test_javas_own_client_is_answered(
    proxy: Proxy, runpod: ScriptedRunPod, tmp_path: Path, form: str
) -> None:
    runpod.script = [Page("COMPLETED", FRAMES)]
    source = tmp_path / "Ask.java"
    source.write_text(JAVA)
    body = JSON.decode().replace("{", '{"stream":true,', 1)
    ask = ["java", "-Xshare:auto", str(source), proxy.url + CHAT, KEY, body, form]
    said = subprocess.run(ask, capture_output=True, text=True, timeout=110, check=True).stdout
    assert said.count("200 HTTP_1_1") == 2
    assert "Grüße" in said
    assert [job["input"]["openai_input"] for job in runpod.jobs] == [msgspec.json.decode(body)] * 2
