"""`GET /`: what this is, for a person who opens the emulator's address in a browser."""

from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

WHAT = "An emulator of RunPod Serverless. It runs on this machine, without an account."
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>RunPod emulator</title>
<h1>RunPod emulator</h1>
<p>{what}</p>
<p>Base URL for RunPod's clients: <code>{base}</code>, with an endpoint's id behind it.</p>
<p>Documentation: <code>emulator/README.md</code> of the project runpod-openai-proxy.</p>
</html>
"""


def routes() -> list[Route]:
    """The page's only address."""
    return [Route("/", _welcome)]


async def _welcome(request: Request) -> Response:
    base = f"{request.base_url}v2"
    if "text/html" in request.headers.get("accept", ""):
        headers = {"content-security-policy": "default-src 'none'"}
        return HTMLResponse(PAGE.format(what=WHAT, base=escape(base)), headers=headers)
    documentation = "emulator/README.md of the project runpod-openai-proxy"
    return JSONResponse({"description": WHAT, "base_url": base, "documentation": documentation})
