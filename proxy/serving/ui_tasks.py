"""What chat UIs ask a model by themselves, and a short answer to each that needs no model."""

import re
import time
import uuid
from typing import Any, Final

import msgspec

from proxy.api.answer import JSON, SSE, Head, LocalAnswer
from proxy.api.call import Call, JSONContent
from proxy.api.usage import wants_usage

MAX_TITLE_CHARS: Final = 40

# How the prompts of the UIs' own tasks begin, and what to answer; "" for a title made of the chat.
# Open WebUI wants JSON; LibreChat the title alone, or JSON with the language, as its `titleMethod`
# says. Open WebUI 0.12 has other words than those before it.
_TASKS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"### Task:\s+Generate a concise(, 3-5 word)? title"), ""),
    (re.compile(r"### Task:\s+Generate 1-3 broad tags"), '{"tags": ["General"]}'),
    (
        re.compile(r"### Task:\s+(Suggest 3-5 relevant follow-up|Predict 3-5 useful messages)"),
        '{"follow_ups": []}',
    ),
    (re.compile(r"### Task:\s+You are an autocompletion system"), '{"text": ""}'),
    (
        re.compile(r"### Task:\s+Analyze the chat history to determine the necessity of"),
        '{"queries": []}',
    ),
    (re.compile(r"Your task is to reflect the speaker's likely facial expression"), "🙂"),
    (re.compile(r"(Please )?(Provide|[Gg]enerate) a concise, 5-word-or-less title"), "New Chat"),
    (
        re.compile(r"Analyze this conversation and provide:\s+1\. The detected language"),
        '{"language": "English", "title": "New Chat"}',
    ),
)
_NONE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
_FIRST_MESSAGE: Final = re.compile(r"<chat_history>\s*USER:\s*([^\n<]+)")


class _Message(msgspec.Struct):
    content: msgspec.Raw = msgspec.Raw(b"null")


def task_answer(call: Call, model: str) -> "TaskAnswer | None":
    """What to answer to a chat UI's own request to this model; None if it is none."""
    content = call.content
    if not call.route.is_chat or not isinstance(content, JSONContent):
        return None
    prompt = _prompt(content)
    for beginning, text in _TASKS:
        if beginning.match(prompt):
            text = text or msgspec.json.encode({"title": _title(prompt)}).decode()
            return TaskAnswer(text, model, content)
    return None


def _prompt(content: JSONContent) -> str:
    """The text of the last message, which is where UIs put what they want."""
    last = msgspec.json.decode(content.readable["messages"], type=list[_Message])[-1]
    if bytes(memoryview(last.content)[:1]) != b'"':
        return ""
    return msgspec.json.decode(last.content, type=str).strip()


def _title(prompt: str) -> str:
    """The beginning of the chat's first message, at a word's end."""
    found = _FIRST_MESSAGE.search(prompt)
    words = found[1].split() if found else ["New", "Chat"]
    title = words[0][:MAX_TITLE_CHARS]
    for word in words[1:]:
        if len(title) + len(word) >= MAX_TITLE_CHARS:
            return title + " …"
        title += " " + word
    return title


class TaskAnswer(LocalAnswer):
    """A chat completion of the proxy's own."""

    def __init__(self, text: str, model: str, asked: JSONContent) -> None:
        self._message = {"role": "assistant", "content": text}
        self._common = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._asked = asked

    async def open(self) -> bytes:
        """All of it: one chunk, or a whole completion."""
        if not self._asked.wants_stream:
            self.head = Head(200, JSON)
            return self._object("chat.completion", [_choice(message=self._message)], usage=_NONE)
        self.head = Head(200, SSE)
        kind = "chat.completion.chunk"
        objects = [self._object(kind, [_choice(delta=self._message)])]
        if wants_usage(self._asked):
            objects.append(self._object(kind, [], usage=_NONE))
        return b"".join(b"data: %s\n\n" % one for one in (*objects, b"[DONE]"))

    def _object(self, kind: str, choices: list[dict[str, Any]], **fields: Any) -> bytes:
        return msgspec.json.encode({"object": kind} | self._common | {"choices": choices} | fields)


def _choice(**content: Any) -> dict[str, Any]:
    return {"index": 0, **content, "logprobs": None, "finish_reason": "stop"}
