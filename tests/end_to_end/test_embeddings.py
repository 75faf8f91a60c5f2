"""A second model on an endpoint of its own, beside the chat model: embeddings and their kin.

Nothing is replaced: the OpenAI SDK at one end, two vLLMs at the other.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import tiktoken
import tiktoken.registry
from langchain_openai import OpenAIEmbeddings
from pydantic import SecretStr

from scripts.local_stack import Endpoint, LocalStack
from tests.waiting import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

MODEL = "tiny-embed"
DIMENSIONS = 128
TEXTS = ["Good morning, hello!", "Hey there!", "Will it rain in Tokyo?", "The weather in Tokyo"]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "Übermut 🐉 漢字"},
    "/v1/rerank": {"query": TEXTS[0], "documents": TEXTS[1:]},
    "/v2/rerank": {"query": TEXTS[2], "documents": TEXTS, "top_n": 2},
    "/v1/score": {"queries": TEXTS[0], "documents": TEXTS[1:]},
    "/pooling": {"input": TEXTS[0]},
    "/tokenize": {"prompt": TEXTS[0]},
    "/detokenize": {"tokens": [2, 65, 66, 3]},
}


@pytest.fixture
def embed(vllm_stack: LocalStack) -> Endpoint:
    """The endpoint of the embedding model."""
    return vllm_stack.endpoints[1]


@pytest.fixture(scope="module")
def sdk(vllm_stack: LocalStack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=vllm_stack.base_url, api_key=vllm_stack.api_key, max_retries=0, timeout=120
    ) as sdk:
        yield sdk


@pytest.fixture
def direct(embed: Endpoint) -> Iterator[openai.OpenAI]:
    """The same SDK, talking to the worker's vLLM itself."""
    with openai.OpenAI(base_url=f"{embed.vllm_url}/v1", api_key="none") as direct:
        yield direct


def post(stack: LocalStack, route: str, **fields: Any) -> httpx.Response:
    """A call of any route through the proxy, by hand."""
    url = stack.base_url.removesuffix("/v1") + route
    headers = {"authorization": f"Bearer {stack.api_key}"}
    return httpx.post(url, json={"model": MODEL} | fields, headers=headers, timeout=60)


def post_directly(endpoint: Endpoint, route: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{endpoint.vllm_url}{route}", json={"model": MODEL} | fields, timeout=60)


def vectors(sdk: openai.OpenAI, texts: Any, **fields: Any) -> list[list[float]]:
    """The embeddings in the order of the texts."""
    answer = sdk.embeddings.create(model=MODEL, input=texts, **fields)
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    return [one.embedding for one in answer.data]


def likeness(some: list[float], others: list[float]) -> float:
    """The cosine of two vectors of length 1."""
    return sum(a * b for a, b in zip(some, others, strict=True))


def masked(answer: httpx.Response) -> bytes:
    """The body without what differs from call to call."""
    return re.sub(rb'"id":"[^"]*"|"created":\d+', b"", answer.content)


@pytest.mark.parametrize("route", ROUTES)
def test_the_bytes_of_each_route_are_vllms(
    vllm_stack: LocalStack, embed: Endpoint, route: str
) -> None:
    told = post_directly(embed, route, **ROUTES[route])
    answer = post(vllm_stack, route, **ROUTES[route])
    assert (answer.status_code, told.status_code) == (200, 200)
    assert masked(answer) == masked(told)


def test_one_text_and_many_are_embedded_as_vllm_does(
    sdk: openai.OpenAI, direct: openai.OpenAI
) -> None:
    (one,) = vectors(sdk, TEXTS[0])
    assert len(one) == DIMENSIONS
    assert one == vectors(direct, TEXTS[0])[0]
    # Which texts share a batch depends on timing, and the last digits on the batch.
    for got, told in zip(vectors(sdk, TEXTS), vectors(direct, TEXTS), strict=True):
        assert likeness(got, told) > 0.999


def test_base64_and_floats_are_the_same_numbers(vllm_stack: LocalStack, sdk: openai.OpenAI) -> None:
    packed = post(vllm_stack, "/v1/embeddings", input=TEXTS[0], encoding_format="base64").json()
    assert len(packed["data"][0]["embedding"]) > DIMENSIONS * 4
    # The SDK asks for base64 unless it is told otherwise, and unpacks it.
    assert vectors(sdk, TEXTS[0]) == vectors(sdk, TEXTS[0], encoding_format="float")


def test_bytes_come_as_bytes(vllm_stack: LocalStack, embed: Endpoint) -> None:
    asked = {"input": TEXTS[0], "encoding_format": "bytes"}
    answer = post(vllm_stack, "/v1/embeddings", **asked)
    assert answer.headers["content-type"] == "application/octet-stream"
    direct = post_directly(embed, "/v1/embeddings", **asked)
    assert answer.content == direct.content
    assert len(answer.content) == DIMENSIONS * 4
    told, wanted = (json.loads(each.headers["metadata"]) for each in (answer, direct))
    assert (told["data"], told["usage"]) == (wanted["data"], wanted["usage"])


def test_an_answer_of_a_megabyte_arrives_whole(sdk: openai.OpenAI) -> None:
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(400)]
    got = vectors(sdk, texts, encoding_format="float")
    assert len(got) == 400
    for i in (0, 123, 399):
        assert likeness(got[i], vectors(sdk, texts[i])[0]) > 0.999


def test_fewer_dimensions_are_asked_of_vllm_and_refused_by_it(
    sdk: openai.OpenAI, direct: openai.OpenAI
) -> None:
    (short,) = vectors(sdk, TEXTS[0], dimensions=32)
    assert len(short) == 32
    assert likeness(short, short) == pytest.approx(1, abs=0.01)
    bodies = []
    for client in (sdk, direct):
        with pytest.raises(openai.BadRequestError, match=r"dimensions \[32, 128\], got 33") as told:
            vectors(client, TEXTS[0], dimensions=33)
        bodies.append(told.value.body)
    assert bodies[0] == bodies[1]


def test_texts_that_mean_the_same_are_nearer_than_others(sdk: openai.OpenAI) -> None:
    hello, hey, rain, weather = vectors(sdk, TEXTS)
    others = [likeness(a, b) for a in (hello, hey) for b in (rain, weather)]
    assert min(likeness(hello, hey), likeness(rain, weather)) > max(others)


def test_both_models_are_listed(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["tiny-chat", MODEL]
    assert sdk.models.retrieve(MODEL).object == "model"


def test_a_chat_and_an_embedding_at_once_are_jobs_of_two_endpoints(
    vllm_stack: LocalStack, sdk: openai.OpenAI
) -> None:
    wait_until(lambda: not any(jobs(vllm_stack, "inQueue", "inProgress")), seconds=60)
    before = jobs(vllm_stack, "completed")
    with sdk.chat.completions.create(
        model="tiny-chat",
        messages=[{"role": "user", "content": "Hello!"}],
        max_tokens=1500,
        extra_body={"ignore_eos": True},
        stream=True,
    ) as chat:
        next(iter(chat))
        assert len(vectors(sdk, TEXTS)) == 4
        last = list(chat)[-1]
    assert last.choices[0].finish_reason == "length"
    # An answer is whole before RunPod knows that its job is.
    wait_until(lambda: not any(jobs(vllm_stack, "inQueue", "inProgress")), seconds=60)
    assert jobs(vllm_stack, "completed") == [count + 1 for count in before]


def jobs(stack: LocalStack, *states: str) -> list[int]:
    """How many jobs each endpoint has in these states."""
    counts = [stack.health(endpoint)["jobs"] for endpoint in stack.endpoints]
    return [sum(int(one[state]) for state in states) for one in counts]


def test_fifty_requests_at_once_do_not_mix(sdk: openai.OpenAI) -> None:
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(50)]
    together = vectors(sdk, texts)
    with ThreadPoolExecutor(50) as pool:
        alone = list(pool.map(lambda text: vectors(sdk, text)[0], texts))
    for got, told in zip(alone, together, strict=True):
        assert likeness(got, told) > 0.999
    assert max(likeness(together[0], other) for other in together[1:]) < 0.99


def langchain(stack: LocalStack, **fields: Any) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(
        openai_api_base=stack.base_url,
        openai_api_key=SecretStr(stack.api_key),
        model=MODEL,
        **fields,
    )


def test_langchain_embeds_texts(vllm_stack: LocalStack, sdk: openai.OpenAI) -> None:
    embeddings = langchain(vllm_stack, check_embedding_ctx_length=False)
    assert embeddings.embed_query(TEXTS[0]) == vectors(sdk, TEXTS[0])[0]
    documents = embeddings.embed_documents(TEXTS)
    for got, told in zip(documents, vectors(sdk, TEXTS), strict=True):
        assert likeness(got, told) > 0.999


def test_langchain_embeds_arrays_of_tokens(
    vllm_stack: LocalStack, sdk: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default it counts tokens itself, as OpenAI's models have them, and sends their numbers."""
    bytes_as_tokens = tiktoken.Encoding(
        "bytes",
        pat_str=r"[\s\S]",
        mergeable_ranks={bytes([byte]): byte for byte in range(256)},
        special_tokens={},
    )
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "cl100k_base", bytes_as_tokens)
    (got,) = langchain(vllm_stack).embed_documents(["abc"])
    assert got == vectors(sdk, [list(b"abc")])[0]
    assert got != vectors(sdk, "abc")[0]
    with pytest.raises(openai.BadRequestError, match="out of vocabulary"):
        vectors(sdk, [[99_999]])


def test_a_model_is_not_asked_for_what_it_cannot_do(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        sdk.embeddings.create(model="tiny-chat", input="Hello!")
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello!"}])
    with pytest.raises(openai.NotFoundError, match="other"):
        sdk.embeddings.create(model="other", input="Hello!")
