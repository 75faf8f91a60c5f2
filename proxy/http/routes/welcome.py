"""`GET /` and `GET /v1`: what this is, for a person who opens the base URL in a browser.

It needs no key, so it says nothing of models, keys or endpoints; it wakes and loads nothing.
"""

from html import escape

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

NAME = "runpod-openai-proxy"
WHAT = "An OpenAI-compatible proxy for RunPod Serverless endpoints."
CLOSED = {"content-security-policy": "default-src 'none'"}
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{name}</title>
<h1>{name}</h1>
<p>{what}</p>
<p>Base URL for clients: <code>{base}</code>. They need an API key of this proxy.</p>
<p>Routes: <a href="/openapi.json">/openapi.json</a>. Documentation: <code>README.md</code> and
<code>docs/</code> of the project {name}.</p>
</html>
"""

router = APIRouter()


@router.api_route("/", methods=["GET", "HEAD"])
@router.api_route("/v1", methods=["GET", "HEAD"])
async def welcome(request: Request) -> Response:
    """The page for a browser, the same as JSON for anything else."""
    base = base_url(request)
    if "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(PAGE.format(name=NAME, what=WHAT, base=escape(base)), headers=CLOSED)
    return JSONResponse(
        {
            "name": NAME,
            "description": WHAT,
            "base_url": base,
            "routes": f"{request.base_url}openapi.json",
            "documentation": f"README.md and docs/ of the project {NAME}",
        }
    )


def base_url(request: Request) -> str:
    """What clients take as their base URL, as this one has reached us."""
    return f"{request.base_url}v1"
