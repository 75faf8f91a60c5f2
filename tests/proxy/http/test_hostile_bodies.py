"""Bodies made to cost as much as they can: the time they take is linear, and the proxy lives on."""

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import httpx
import psutil
import pytest

from proxy.api.call import Body, Call, Content, JSONContent, _json_content
from proxy.api.forms import FormContent
from proxy.api.route_table import Route
from proxy.api.turns import at_once
from proxy.errors import ProxyError
from proxy.http.body import _Buffer, _unpack
from proxy.memory import Memory
from proxy.serving.sharing import _fingerprint
from proxy.serving.ui_tasks import _prompt
from tests.proxy.conftest import KEY
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod

CHAT = "/v1/chat/completions"
LARGEST = 9_900_000
FORM = "multipart/form-data; boundary=b"
START = b'{"model": "m", "messages": [{"role": "user"}], "x": '

Make = Callable[[int], bytes]
"""Makes a body of about so many bytes."""


def filled(unit: bytes, *, before: bytes = START + b"[", after: bytes = b"]}") -> Make:
    """Makes JSON that is full of this, with commas between."""
    return lambda size: before + b",".join([unit] * (size // (len(unit) + 1))) + after


def stretched(unit: bytes, *, before: bytes = START, after: bytes = b"}") -> Make:
    """Makes JSON with this many times in a row."""
    return lambda size: before + unit * (size // len(unit)) + after


def names(size: int) -> bytes:
    """Makes an object of as many fields as go in."""
    return START + b"0," + b",".join(b'"%x": 0' % i for i in range(size // 12)) + b"}"


JSON: dict[str, Make] = {
    "empty lists": filled(b"[]"),
    "objects": filled(b'{"": 0}'),
    "deep lists": filled(b"[" * 90 + b"]" * 90),
    "nothing but opening brackets": stretched(b"["),
    "numbers": filled(b"1"),
    "numbers with exponents": filled(b"1e5"),
    "one number": stretched(b"9"),
    "digits of a fraction": stretched(b"9", before=START + b"1.", after=b"e1}"),
    "empty strings": filled(b'""'),
    "escapes": stretched(b"\\n", before=START + b'"', after=b'"}'),
    "backslashes": stretched(b"\\\\", before=START + b'"', after=b'"}'),
    "half surrogates": stretched(b"\\ud800", before=START + b'"', after=b'"}'),
    "characters of four bytes": stretched("🙂".encode(), before=START + b'"', after=b'"}'),
    "blanks": stretched(b" ", after=b"0}"),
    "blanks before a name": stretched(b" ", before=START + b"0,", after=b'"y": 0}'),
    "fields": names,
    "a name of escapes": stretched(b"\\n", before=START + b'0, "', after=b'": 0}'),
    "a name that stands twice": stretched(b"\\n", before=START + b'"', after=b'", "x": 0}'),
    "tiny messages": filled(b'{"role":"user"}', before=b'{"model": "m", "messages": ['),
    "names in a message": filled(b'"a":0', before=b'{"model": "m", "messages": [{', after=b"}]}"),
}
PARTS: dict[str, tuple[str, Make]] = {
    "a header's name": (FORM, stretched(b"content-disposition:", before=b"--b\r\n", after=b"")),
    "a header's name in a whole part": (
        FORM,
        stretched(
            b"content-disposition:", before=b"--b\r\n", after=b"\r\n\r\nx\r\n--b--\r\n"
        ),
    ),
    "parameters": (FORM, stretched(b";name", before=b"--b\r\nContent-Disposition:", after=b"")),
    "line ends": (FORM, stretched(b"\r\n", before=b"--b", after=b"--b--\r\n")),
    "marks": (FORM, stretched(b"--b\r\n", before=b"", after=b"--b--")),
    "almost marks": (
        f"multipart/form-data; boundary={'-' * 34}b{'-' * 35}",
        stretched(b"-", before=b"", after=b""),
    ),
}  # fmt: skip


def cpu_seconds(work: Callable[[], object]) -> float:
    """The least of three measures of this thread's own time, whatever else the machine does."""
    measures = []
    for _ in range(3):
        began = time.thread_time()
        work()
        measures.append(time.thread_time() - began)
    return min(measures)


def assert_linear(work: Callable[[bytes], object], make: Make, *, size: int) -> None:
    """Eight times as many bytes take no more than thirty times as long: squared, it were 64."""
    small, large = make(size), make(8 * size)
    took = cpu_seconds(lambda: work(small)), cpu_seconds(lambda: work(large))
    assert took[1] < 30 * took[0] + 0.005, took


def check_json(raw: bytes) -> None:
    body = Body(raw, Memory(LARGEST).reserve())
    route = Route("POST", CHAT, prompts=("messages",))
    with suppress(ProxyError):
        at_once(_json_content(body, route))


@pytest.mark.slow
@pytest.mark.parametrize("kind", JSON)
def test_a_json_body_is_checked_in_linear_time(kind: str) -> None:
    assert_linear(check_json, JSON[kind], size=100_000)


@pytest.mark.parametrize("kind", PARTS)
def test_a_form_is_read_in_linear_time(kind: str) -> None:
    content_type, make = PARTS[kind]

    def read(raw: bytes) -> None:
        with suppress(ProxyError):
            FormContent(raw, content_type)

    assert_linear(read, make, size=5_000)


@pytest.mark.slow
@pytest.mark.parametrize("member", [b"", b"x" * 100_000])
def test_gzip_is_unpacked_in_linear_time(member: bytes) -> None:
    packed = gzip.compress(member, mtime=0)

    def unpack(raw: bytes) -> None:
        buffer = _Buffer(LARGEST * 10, Memory(LARGEST * 10).reserve())
        at_once(_unpack(raw, buffer))

    assert_linear(unpack, lambda size: packed * (size // 10_000), size=100_000)


@pytest.mark.slow
@pytest.mark.parametrize("kind", JSON)
def test_no_step_of_checking_the_largest_body_takes_long(kind: str) -> None:
    """Compared with msgspec's own look at the largest string, which is as quick as can be."""
    raw = JSON[kind](LARGEST - 200)
    steps = _json_content(
        Body(raw, Memory(LARGEST).reserve()), Route("POST", CHAT, prompts=("messages",))
    )
    longest = 0.0
    try:
        while True:
            began = time.thread_time()
            next(steps)
            longest = max(longest, time.thread_time() - began)
    except (StopIteration, ProxyError):
        longest = max(longest, time.thread_time() - began)
    control = json.dumps("x" * LARGEST).encode()
    assert longest < 20 * cpu_seconds(lambda: json.loads(control)), longest


@pytest.fixture(scope="module")
def proxy(
    scripted_runpod: tuple[ScriptedRunPod, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """A proxy with a loop of its own, which nothing in this process holds."""
    proxy = Proxy(scripted_runpod[1], state_dir=tmp_path_factory.mktemp("state"))
    yield proxy
    proxy.close()


FIELDS = "application/json"
HOSTILE: dict[str, tuple[int, str, str, bytes]] = {
    "refused, deep": (400, CHAT, FIELDS, JSON["nothing but opening brackets"](LARGEST - 200)),
    "refused, fields": (400, CHAT, FIELDS, names(LARGEST - 200)),
    "refused, messages": (400, CHAT, FIELDS, JSON["tiny messages"](LARGEST - 200)),
    "for a model that is not there": (
        404,
        CHAT,
        FIELDS,
        JSON["deep lists"](LARGEST - 500).replace(b'"m"', b'"other"', 1),
    ),
    "a form's header": (
        400,
        "/v1/audio/transcriptions",
        FORM,
        PARTS["a header's name in a whole part"][1](400_000),
    ),
    "accepted": (200, CHAT, FIELDS, START + b'"%s"}' % (b"x" * (LARGEST - 200))),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_others_are_served_while_hostile_bodies_are_read(
    proxy: Proxy, runpod: ScriptedRunPod, kind: str
) -> None:
    """The loop's longest pause is far shorter than what five such bodies take together.

    Both are measured as CPU time of the proxy: other processes may keep it waiting as they like.
    """
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    status, path, content_type, body = HOSTILE[kind]
    packed = gzip.compress(body)
    headers = {
        "authorization": f"Bearer {KEY}",
        "content-encoding": "gzip",
        "content-type": content_type,
    }

    def send() -> None:
        response = httpx.post(proxy.url + path, content=packed, headers=headers, timeout=100)
        statuses.append(response.status_code)

    statuses: list[int] = []
    threads = [threading.Thread(target=send) for _ in range(5)]
    began = cpu_seconds_of(proxy)
    for thread in threads:
        thread.start()
    longest = 0.0
    while any(thread.is_alive() for thread in threads):
        asked = cpu_seconds_of(proxy)
        assert proxy.client.get("/health").status_code == 200
        longest = max(longest, cpu_seconds_of(proxy) - asked)
    took = cpu_seconds_of(proxy) - began
    assert statuses == [status] * 5
    assert longest < max(took / 15, 0.12), (longest, took)


def cpu_seconds_of(proxy: Proxy) -> float:
    """How much CPU the proxy has used so far."""
    times = psutil.Process(proxy.process.pid).cpu_times()
    return times.user + times.system


def chat_of(message: bytes) -> Content:
    """A chat that fills the largest body, with this many times in its one message."""
    raw = b'{"model": "m", "messages": [{"role": "user", "content": %s}]}' % message
    route = Route("POST", CHAT, prompts=("messages",))
    return at_once(_json_content(Body(raw, Memory(10 * LARGEST).reserve()), route))


def form_of(mark: str, filling: bytes) -> Content:
    """A form that fills the largest body, with this many times in its one file."""
    part = b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    parts = part % (mark.encode(), b"model", b"m")
    parts += part % (mark.encode(), b"file", filling * (LARGEST // len(filling)))
    return FormContent(parts + f"--{mark}--".encode(), f"multipart/form-data; boundary={mark}")


ACCEPTED: dict[str, Callable[[], Content]] = {
    "a long text": lambda: chat_of(b'"%b"' % (b"x" * LARGEST)),
    "escapes": lambda: chat_of(b'"%b"' % (b"\\n" * (LARGEST // 2))),
    "blanks": lambda: chat_of(b'"%b"' % (b" " * LARGEST)),
    "empty lists": lambda: chat_of(b"[%b]" % b",".join([b"[]"] * (LARGEST // 3))),
    "a form full of its boundary": lambda: form_of("b", b"b"),
    "a form full of its boundary, scattered": lambda: form_of("b", b"bx"),
    "a form of almost marks": lambda: form_of("-" * 70, b"-" * 69 + b"x"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_is_done_with_an_accepted_body_holds_the_loop_no_longer_than_its_check(
    kind: str,
) -> None:
    """Naming the model, telling repetitions apart, and looking for the tasks of chat UIs.

    Compared with Python's reading of the largest string.
    """
    content = ACCEPTED[kind]()
    call = Call("r", Route("POST", CHAT), "", content)
    works: list[Callable[[], object]] = [
        lambda: content.naming("other"),
        lambda: _fingerprint(call),
    ]
    if isinstance(content, JSONContent):
        works.append(lambda: _prompt(content))
    control = json.dumps("x" * LARGEST).encode()
    assert max(map(cpu_seconds, works)) < 5 * cpu_seconds(lambda: json.loads(control))
