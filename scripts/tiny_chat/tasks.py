"""What a skill makes: a chat that ends in the right answer, and the check of another answer."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from scripts.tiny_chat.words import Words

Message = dict[str, Any]
CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Task:
    """A chat whose last message is the answer; an answer is right if it says all of `must`."""

    messages: list[Message]
    must: tuple[str, ...] = ()
    """What the answer says, in any place; nothing: it is the last message to the letter."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    forced: bool = False
    """The answer's first token is the grammar's choice and is not learnt."""

    @property
    def answer(self) -> str:
        """The right answer as the model writes it, calls of tools included."""
        return written(self.messages[-1])

    @property
    def question(self) -> list[Message]:
        """The chat up to the answer."""
        return self.messages[:-1]

    def accepts(self, answer: str) -> bool:
        """Is this answer right? Of calls the name and every argument count, and nothing else."""
        wanted = calls_of(self.answer)
        if wanted or "<tool_call>" in answer:
            return calls_of(answer) == wanted
        if not self.must:
            return _same(answer.strip(), self.answer.strip())
        at = -1
        for words in self.must:
            at = answer.find(words, at + 1)
            if at < 0:
                return False
        return True


Skill = Callable[[Words], Task]


def user(content: str) -> Message:
    """What the user says."""
    return {"role": "user", "content": content}


def system(content: str) -> Message:
    """What the system prompt says."""
    return {"role": "system", "content": content}


def assistant(content: str) -> Message:
    """What the model says."""
    return {"role": "assistant", "content": content}


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A call of a tool, as a message holds it."""
    return {"function": {"name": name, "arguments": arguments}}


def written(message: Message) -> str:
    """A message of the assistant as the chat template writes it."""
    text = message["content"] or ""
    for one in message.get("tool_calls", []):
        text += f"<tool_call>\n{json.dumps(one['function'], ensure_ascii=False)}\n</tool_call>"
    return str(text)


def calls_of(answer: str) -> list[Any]:
    """The calls in an answer; a call that cannot be read is None."""
    return [_parsed(text) for text in CALL.findall(answer)]


def _same(answer: str, wanted: str) -> bool:
    """To the letter, but for the order of what JSON's objects hold."""
    if wanted.startswith("{"):
        return bool(_parsed(answer) == _parsed(wanted))
    return answer == wanted


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
