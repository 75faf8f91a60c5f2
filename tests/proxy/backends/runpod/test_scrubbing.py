"""What a client is told of a worker's words: no path, no secret, one line, bounded."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.backends.runpod.scrubbing import MAX_READ_CHARS, scrubbed


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot open /runpod-volume/models/a b", "cannot open [path] b"),
        ("OSError: '/src/handler.py', line 3", "OSError: '[path]', line 3"),
        ("~/.cache/huggingface is full", "[path] is full"),
        ("see file:///root/x.log", "see [path]"),
        ("in vllm/engine/core.py: no", "in [path]: no"),
        (r"at C:\\Users\\me", "at [path]"),
        ("HF_TOKEN=hf_abcdefghijklmnop123 is wrong", "HF_TOKEN=[removed] is wrong"),
        ("token hf_ABCDEFGH1234 is wrong", "token [removed] is wrong"),
        ("key rpa_SECRETSECRET9", "key [removed]"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer [removed]"),
        ('{"api_key": "abcd"}', '{"api_key=[removed]'),
        ("digest 0123456789abcdef0123456789abcdef", "digest [removed]"),
        ("GET https://me:pw@hf.co/a?X-Amz-Signature=1 failed", "GET https://hf.co/a failed"),
        ("first\x1b[31m red\x1b[0m\nsecond", "first red"),
        ("  \n\r\n late\tline\u2028next", "late line"),
        ("", ""),
    ],
)
def test_paths_and_secrets_are_taken_out(text: str, told: str) -> None:
    assert scrubbed(text, max_chars=200) == told


@pytest.mark.parametrize(
    "text",
    [
        "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8 was not found on Hugging Face.",
        "Lower MAX_MODEL_LEN or MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS=8192, and/or a GPU of 24 GiB",
        "Set HF_TOKEN to a token whose account has accepted the model's license.",
        "HF_HUB_ENABLE_HF_TRANSFER: hf_transfer is gone; https://huggingface.co/Qwen/Qwen3",
        "LocalEntryNotFoundError: 404 Client Error",
    ],
)
def test_what_a_person_acts_on_stays(text: str) -> None:
    assert scrubbed(text, max_chars=200) == text


@given(st.text(), st.integers(min_value=1, max_value=50))
def test_any_text_becomes_one_bounded_line(text: str, max_chars: int) -> None:
    told = scrubbed(text, max_chars=max_chars)
    assert len(told) <= max_chars
    assert len(told.splitlines()) <= 1


@pytest.mark.parametrize(
    "piece", ["a", "/a", "a/", "token", "a.py", "=", "_1", "../", "https://a@"]
)
def test_no_text_takes_long(piece: str) -> None:
    began = time.process_time()
    scrubbed(piece * MAX_READ_CHARS, max_chars=100)
    assert time.process_time() - began < 1
