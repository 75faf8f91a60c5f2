"""`docs/clients.md`: what each client can do through the proxy, and through vLLM itself."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.conformance.clients import CLIENTS, Client, node_version, vllm_version
from tests.conformance.features import FEATURES
from tests.conformance.run import Result

NOT_APPLICABLE = "–"


@dataclass(frozen=True)
class Comparison:
    """One check, through the proxy and against vLLM itself."""

    client: Client
    proxy: Result
    vllm: Result

    @property
    def is_ours(self) -> bool:
        """Whether the proxy fails what vLLM does not."""
        return self.proxy.outcome == "failed" and self.vllm.outcome != "failed"

    @property
    def is_vllms(self) -> bool:
        """Whether it fails with vLLM itself too."""
        return self.proxy.outcome == "failed" and self.vllm.outcome == "failed"

    @property
    def is_better(self) -> bool:
        """Whether the proxy passes what vLLM fails."""
        return self.proxy.outcome == "passed" and self.vllm.outcome == "failed"


def compare(client: Client, proxy: list[Result], vllm: list[Result]) -> list[Comparison]:
    """Both outcomes of every check that was made; a check one side did not come to has failed."""

    def by_name(results: list[Result]) -> dict[tuple[str, str], Result]:
        return {(result.feature, result.check): result for result in results}

    ours, theirs = by_name(proxy), by_name(vllm)

    def missing(key: tuple[str, str]) -> Result:
        return Result(*key, outcome="failed", message="the check did not end")

    return [
        Comparison(client, ours.get(key) or missing(key), theirs.get(key) or missing(key))
        for key in dict.fromkeys([*ours, *theirs])
    ]


def cell(comparisons: Iterable[Comparison]) -> str:
    """What the table says of one feature of one client."""
    made = [one for one in comparisons if one.proxy.outcome != "skipped"]
    if not made:
        return NOT_APPLICABLE
    if any(one.is_ours for one in made):
        return "**fail**"
    theirs = sum(one.is_vllms for one in made)
    if not theirs:
        return "pass"
    return "as vLLM" if theirs == len(made) else f"{len(made) - theirs} of {len(made)}, as vLLM"


def document(compared: Mapping[str, list[Comparison]]) -> str:
    """The whole document, from the comparisons of every client by its name."""
    everything = [one for comparisons in compared.values() for one in comparisons]
    sections = [
        _INTRODUCTION.format(vllm=vllm_version()),
        _matrix(compared),
        _READING,
        _list("Fails through the proxy only", [one for one in everything if one.is_ours]),
        _list("Fails with vLLM too", [one for one in everything if one.is_vllms]),
        _list("Passes through the proxy only", [one for one in everything if one.is_better]),
        _not_made(everything),
        _clients(),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


_INTRODUCTION = """\
# Clients

What real clients can do through the proxy. `make conformance` writes this document: it starts the
stack of `make run` (emulator, workers, and vLLM {vllm} on the CPU with the built-in models), runs
each client's checks (`tests/conformance/`) against the proxy and once more against vLLM itself, and
fails if anything that vLLM passes fails through the proxy. Where it can, a check compares to the
letter with what vLLM itself says to the same question."""

_READING = """\
*pass*: every check passes, through the proxy as with vLLM. *as vLLM*: it fails with vLLM itself
too, below is how; where numbers stand, so many checks pass. *fail*: vLLM passes, the proxy does
not. –: the client has no such thing, or it could not be checked here. The built-in chat model
has two million parameters; checks that need a sensible answer fail with it."""

_WORTH_KNOWING = """\
The clients for Node run on Node {node}.

vLLM holds a tool's arguments to their schema only if the tool says `"strict": true`. It keeps
responses, for clients to get or to cancel later, only with `VLLM_ENABLE_RESPONSES_API_STORE=1` in
the worker's environment, in the memory of that one worker; the checks run with it.

WebSockets are not served: a handshake is answered 426, `websockets_not_served`. Codex CLI, which
tries one with `supports_websockets = true` or with `openai_base_url`, prints a line of error and
asks over HTTP at once. `client.responses.connect()` of openai-python raises `InvalidStatus`.

A retry that an OpenAI SDK makes because its timeout passed joins the job that is under way, at any
copy where copies share a Redis ([several copies](operate.md#several-copies)). It is known by
`x-stainless-retry-count`, and LangChain.js's, which never counts, by its `User-Agent`. Streams need
no retry, since they begin before the answer does; one that breaks is given again by an
`Idempotency-Key`."""


def _matrix(compared: Mapping[str, list[Comparison]]) -> str:
    lines = [_row(["", *compared]), _row(["---"] * (len(compared) + 1))]
    for feature, title in FEATURES.items():
        cells = [
            cell(one for one in comparisons if one.proxy.feature == feature)
            for comparisons in compared.values()
        ]
        lines.append(_row([title, *cells]))
    return "\n".join(lines)


def _list(title: str, comparisons: list[Comparison]) -> str:
    if not comparisons:
        return ""
    lines = [f"## {title}", "", _row(["client", "check", "what it said"]), _row(["---"] * 3)]
    for one in comparisons:
        said = one.proxy.message or one.vllm.message
        lines.append(_row([one.client.name, f"`{one.proxy.check}`", f"`{_quoted(said)}`"]))
    return "\n".join(lines)


def _not_made(comparisons: list[Comparison]) -> str:
    """What was skipped through the proxy, and why, clients with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for one in comparisons:
        if one.proxy.outcome == "skipped":
            reason = one.proxy.message.removeprefix("Skipped: ").rstrip(".")
            reasons.setdefault(reason, []).append(f"{one.client.name}: `{one.proxy.check}`")
    if not reasons:
        return ""
    lines = ["## Not checked", "", _row(["why", "what"]), _row(["---"] * 2)]
    lines += [_row([_quoted(reason), "; ".join(checks)]) for reason, checks in reasons.items()]
    return "\n".join(lines)


def _clients() -> str:
    titles = ["client", "packages", "worth knowing", "checks"]
    lines = ["## The clients", "", _row(titles), _row(["---"] * len(titles))]
    for client in CLIENTS:
        packages = ", ".join(f"{name} {version}" for name, version in client.versions().items())
        checks = f"`tests/conformance/{client.checks.parent.name}/{client.checks.name}`"
        lines.append(_row([client.name, packages, client.note, checks]))
    return "\n".join([*lines, "", _WORTH_KNOWING.format(node=node_version())])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _quoted(text: str, longest: int = 140) -> str:
    """Text on one line of a table."""
    flat = " ".join(text.split()).replace("|", "\\|").replace("`", "'")
    return flat if len(flat) <= longest else f"{flat[:longest].rstrip()}…"
