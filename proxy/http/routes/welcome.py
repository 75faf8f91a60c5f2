"""`GET /` and `GET /v1`: what this is, for a person who opens the base URL in a browser.

It needs no key, so it says nothing of models, keys or endpoints; it wakes and loads nothing. For
admins there is a login, after which the page fills itself by the routes below `/admin`: its files,
in `proxy/http/page/`, are as public as the package that they come with.
"""

import re
from functools import cache
from html import escape
from pathlib import Path
from string import Template
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from proxy.http.context import services_of

NAME: Final = "runpod-openai-proxy"
WHAT: Final = "An OpenAI-compatible proxy for RunPod Serverless endpoints."
PAGES: Final = Path(__file__).parent.parent / "page"
_FILES: Final = StaticFiles(directory=PAGES / "files", check_dir=False)
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Of the page and its files: nothing from elsewhere, no script in the page, no text as markup."""

router = APIRouter()


@router.api_route("/", methods=["GET", "HEAD"])
@router.api_route("/v1", methods=["GET", "HEAD"])
async def welcome(request: Request) -> Response:
    """A page for a browser, the same as JSON for anything else."""
    base = base_url(request)
    if _prefers_html(request.headers.get("accept", "")):
        has_login = request.url.path == "/" and services_of(request).keys.may_have_admin
        return HTMLResponse(_page(base, has_login=has_login), headers=HEADERS | {"vary": "accept"})
    return JSONResponse(
        {
            "name": NAME,
            "description": WHAT,
            "base_url": base,
            "routes": f"{request.base_url}openapi.json",
            "documentation": f"README.md and docs/ of the project {NAME}",
        },
        headers={"vary": "accept"},
    )


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def page_file(request: Request) -> Response:
    """A script, a style or a picture of the page."""
    response = await _FILES.get_response(request.path_params["name"], request.scope)
    response.headers.update(HEADERS)
    return response


def base_url(request: Request) -> str:
    """What clients take as their base URL, as this one has reached us."""
    return f"{request.base_url}v1"


def _prefers_html(accept: str) -> bool:
    """Whether an Accept header names HTML, and not JSON before it."""
    weights = {"text/html": 0.0, "application/json": 0.0}
    for media_range in accept.split(","):
        media_type, *parameters = media_range.replace(" ", "").lower().split(";")
        if media_type in weights:
            given = re.fullmatch(r"q=([01](?:\.\d{1,3})?)", parameters[-1] if parameters else "")
            weights[media_type] = float(given[1]) if given else 1.0
    return weights["text/html"] > 0 and weights["text/html"] >= weights["application/json"]


def _page(base: str, *, has_login: bool) -> str:
    admins = _file("admins.html") if has_login else ""
    page = Template(_file("welcome.html"))
    return page.substitute(name=NAME, what=WHAT, base=escape(base), admins=admins)


@cache
def _file(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")
