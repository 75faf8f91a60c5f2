"""`make conformance`: every client of the document, or those named; proxy and vLLM are asked alike.

`docs/clients.md` is written when all were run. The exit code is 1 if something that vLLM passes
fails through the proxy.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import openai

from scripts.clients import set_up_client
from scripts.environments import Environment
from scripts.installer import ROOT
from scripts.local_stack import LocalStack, local_stack
from scripts.processes import ProcessDied
from scripts.progress import SetUpError
from tests.conformance.clients import CLIENTS, Client
from tests.conformance.report import Comparison, compare, document
from tests.conformance.run import Target, run_checks
from tests.long_models import long_models

DOCUMENT = ROOT / "docs" / "clients.md"
LOGS = ROOT / ".cache" / "conformance"
COLD_START_SECONDS = 600.0
IDLE_TIMEOUT_SECONDS = 86400.0
"""vLLM is asked behind the emulator's back, which must not take its worker for idle meanwhile."""


def main() -> int:
    """Run the clients named as arguments, or all of them."""
    names = sys.argv[1:]
    if unknown := set(names) - {client.name for client in CLIENTS}:
        known = ", ".join(f'"{client.name}"' for client in CLIENTS)
        print(f"no such client: {', '.join(sorted(unknown))}; there are {known}", file=sys.stderr)
        return 2
    clients = [client for client in CLIENTS if not names or client.name in names]
    try:
        environments = {client: set_up_client(client.environment) for client in clients}
        with local_stack(
            long_models(SETTINGS), LOGS, idle_timeout_seconds=IDLE_TIMEOUT_SECONDS
        ) as stack:
            wake_workers(stack)
            compared = {
                client.name: _compare(client, environments[client], stack) for client in clients
            }
    except (SetUpError, ProcessDied, openai.OpenAIError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if not names:
        DOCUMENT.write_text(document(compared))
    failed = [one for comparisons in compared.values() for one in comparisons if one.is_ours]
    for one in failed:
        print(f"FAILED {one.client.name}: {one.proxy.check}: {one.proxy.message}", flush=True)
    return 1 if failed else 0


SETTINGS = {
    # A worker that does not keep its responses knows none to get or to cancel.
    "VLLM_ENABLE_RESPONSES_API_STORE": "1",
}
"""Of the worker that is chatted with, beside those it has in `make run`."""


def wake_workers(stack: LocalStack) -> None:
    """Have the workers up, so that each vLLM can be asked itself.

    Raises:
        OpenAIError: one did not come up.
    """
    chat, embed = (endpoint.model.name for endpoint in stack.endpoints)
    with openai.OpenAI(
        base_url=stack.base_url, api_key=stack.api_key, timeout=COLD_START_SECONDS
    ) as client:
        client.chat.completions.create(
            model=chat, messages=[{"role": "user", "content": "Hi"}], max_tokens=1
        )
        client.embeddings.create(model=embed, input="Hi")


def _compare(client: Client, environment: Environment, stack: LocalStack) -> list[Comparison]:
    started = time.monotonic()
    print(f"  {client.name} ...", end="", flush=True)
    proxy, vllm = (
        run_checks(client, environment, target, _log(client, target)) for target in _targets(stack)
    )
    compared = compare(client, proxy, vllm)
    passed = sum(one.proxy.outcome == "passed" for one in compared)
    failed = sum(one.is_ours for one in compared)
    as_vllm = sum(one.is_vllms for one in compared)
    print(
        f" {passed} passed, {failed} failed, {as_vllm} fail with vLLM too,"
        f" {time.monotonic() - started:.0f} s",
        flush=True,
    )
    return compared


def _targets(stack: LocalStack) -> tuple[Target, Target]:
    """The proxy, and the two vLLMs behind it, which ask for no key."""
    chat, embed = stack.endpoints
    proxy = Target(
        name="proxy",
        base_url=stack.base_url,
        api_key=stack.api_key,
        model=chat.model.name,
        vllm_url=chat.vllm_url,
        asks_for_keys=True,
        embeddings_model=embed.model.name,
        embeddings_url=stack.base_url,
        vllm_embeddings_url=embed.vllm_url,
    )
    vllm = replace(
        proxy,
        name="vllm",
        base_url=f"{chat.vllm_url}/v1",
        asks_for_keys=False,
        embeddings_url=f"{embed.vllm_url}/v1",
    )
    return proxy, vllm


def _log(client: Client, target: Target) -> Path:
    return LOGS / f"{client.checks.stem}-{target.name}.txt"


if __name__ == "__main__":
    sys.exit(main())
