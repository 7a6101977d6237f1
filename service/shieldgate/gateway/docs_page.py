"""`GET /docs`: Swagger UI over our OpenAPI, from files that are installed: it needs no network."""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from shieldgate.gateway.services import ServicesDep

router = APIRouter(include_in_schema=False)

# fastapi-offline is kept for these two; its app would load them from paths of its own.
_FOLDER = Path(str(files("fastapi_offline") / "static"))
_SCRIPT, _STYLE = "swagger-ui-bundle.js", "swagger-ui.css"
PATHS = ("/docs", f"/docs/{_SCRIPT}", f"/docs/{_STYLE}")

# What the page draws comes from here, and what is tried on it goes here.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:"
)


@router.get("/docs")
async def page(services: ServicesDep) -> HTMLResponse:
    """Show all routes, with examples to try."""
    root = services.settings.root_path
    html = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="shieldgate",
        swagger_js_url=f"{root}/docs/{_SCRIPT}",
        swagger_css_url=f"{root}/docs/{_STYLE}",
        swagger_favicon_url="data:,",
    )
    html.headers["content-security-policy"] = _POLICY
    return html


@router.get(f"/docs/{_SCRIPT}")
async def script() -> FileResponse:
    """Send the page's script."""
    return FileResponse(_FOLDER / _SCRIPT)


@router.get(f"/docs/{_STYLE}")
async def style() -> FileResponse:
    """Send the page's style."""
    return FileResponse(_FOLDER / _STYLE)
