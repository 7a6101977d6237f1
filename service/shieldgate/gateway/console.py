"""`GET /`: the console, a page for people, out of the files of `shieldgate/console`.

The page holds nothing of anybody's. What it shows, it asks the routes for, with the key of the
person who reads it.
"""

from pathlib import Path

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from shieldgate.gateway.services import ServicesDep

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parents[1] / "console"
# Not the system's table, in which a module may be text/plain, and is then not run.
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_FILES = {path.name: path for path in _FOLDER.iterdir() if path.suffix in _TYPES}
_PAGE = "index.html"

PATHS = frozenset({"/", *(f"/console/{name}" for name in _FILES)})
"""What is served to whoever asks, with a key or without."""

# All that the page may do: load its own files and ask its own server. It is nobody's frame, and
# no text becomes markup, because where the browser knows how, even our own scripts can't make it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    # A page of one version must not run modules of another.
    "cache-control": "no-cache",
}


@router.get("/")
async def page(request: Request, services: ServicesDep) -> Response:
    """Give the page."""
    # Its links are relative, because a proxy may serve all this below a prefix.
    if not request.scope["raw_path"].endswith(b"/"):
        return RedirectResponse(f"{services.settings.root_path}/")
    return _file(_PAGE)


@router.get("/console/{name}")
async def file(name: str) -> Response:
    """Give a file of the page."""
    if name not in _FILES:
        raise HTTPException(404)
    return _file(name)


def _file(name: str) -> Response:
    path = _FILES[name]
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=_HEADERS)
