"""The wake-up shield: no GPU is woken for what a chat UI asks by itself.

For each message of a user, chat UIs ask the model for a title, tags, follow-up questions and more.
Where the shield is up, such a request goes to the model's fallback while the GPU sleeps, or gets a
short answer of the proxy's own where there is no fallback, or that sleeps as well. While the GPU is
awake it is answered like any other. What only counts tokens is counted beside the proxy, or
refused at once (`proxy.serving.counting`).
"""

from proxy.api.answer import Answer
from proxy.api.call import Call
from proxy.serving.counting import LocalCount
from proxy.serving.models import Model
from proxy.serving.ui_tasks import task_answer


class Shield:
    """Chooses who answers a call; it is up only if `is_up`."""

    def __init__(self, *, is_up: bool) -> None:
        self._is_up = is_up

    async def answer(self, call: Call, model: Model) -> Answer | None:
        """An answer that wakes no GPU, for a call that is not worth it; else None."""
        if not self._is_up:
            return None
        if call.route.counts_tokens and not await model.is_awake():
            return LocalCount(call, model.tokenizer, model.known_max_model_len)
        own = task_answer(call, model.name)
        if own is None or await model.is_awake():
            return None
        if (fallback := model.fallback) is not None and await fallback.is_awake():
            model.metrics.note_fallback(model.name)
            return fallback.ask(call, fallback.terms)
        return own
