"""What goes wrong with upstream, in words for callers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import aiohttp

from shieldgate.dialects.looks import machine_made
from shieldgate.errors import UpstreamError


@contextmanager
def transport_errors() -> Iterator[None]:
    """Say of a failed connection what failed."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as failure:
        raise UpstreamError(
            "Upstream did not take the connection in time.", status=504, code="upstream_timeout"
        ) from failure
    except TimeoutError as failure:
        raise UpstreamError(
            "Upstream was silent for too long.", status=504, code="upstream_timeout"
        ) from failure
    except aiohttp.ClientConnectorCertificateError as failure:
        raise UpstreamError(
            f"Upstream's certificate is not trusted: {_openssl_reason(failure)}.",
            code="upstream_untrusted",
        ) from failure
    except aiohttp.ClientConnectorSSLError as failure:
        raise UpstreamError(
            "Upstream can't be reached by TLS; does its URL begin with http://?",
            code="upstream_unreachable",
        ) from failure
    except (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError) as failure:
        raise UpstreamError(
            "The proxy to upstream can't be reached or refuses.", code="upstream_unreachable"
        ) from failure
    except aiohttp.ClientConnectorError as failure:
        raise UpstreamError("Upstream can't be reached.", code="upstream_unreachable") from failure
    except aiohttp.ClientError as failure:
        raise UpstreamError(
            "Upstream broke the connection off.", code="upstream_cut_off"
        ) from failure


def _openssl_reason(failure: aiohttp.ClientConnectorCertificateError) -> str:
    """Give OpenSSL's words without the names in them; the operator's machines are nobody's."""
    said = getattr(failure.certificate_error, "verify_message", "")
    return str(said).partition(",")[0] or "it can't be verified"


def refuse(response: aiohttp.ClientResponse, why: str, code: str = "upstream_invalid") -> NoReturn:
    """Raise an UpstreamError that says why a reply is of no use."""
    raise UpstreamError(f"Upstream {why}.", code=code, request_id=request_id(response))


def reported(
    payload: dict[str, Any] | None, response: aiohttp.ClientResponse, status: int | None = None
) -> UpstreamError:
    """Make an error of one that upstream reports, in any of the shapes that servers use.

    Without `status`, the reply began as a good one; some servers then give the status as `code`.
    """
    error = (payload or {}).get("error") or payload or {}
    if not isinstance(error, dict):
        error = {"message": error}
    code, said = error.get("code"), error.get("message") or error.get("detail")
    if status is None:
        status = code if isinstance(code, int) and 400 <= code <= 599 else 502
    return UpstreamError(
        f"Upstream answered with an error ({status}).",
        status=status,
        code=code if isinstance(code, str) and code else "upstream_error",
        request_id=request_id(response),
        body=error | {"message": said if isinstance(said, str) else f"Upstream answered {status}."},
        retry_after=_seconds(response.headers.get("retry-after", "")),
    )


def request_id(response: aiohttp.ClientResponse) -> str | None:
    """Find upstream's request id, where it gave one."""
    # The other one may be that of a proxy between us.
    names = ("request-id", "x-request-id")
    given = next((response.headers[name] for name in names if name in response.headers), "")
    # One that could be somebody's words is left out, as it can't be judged in a header.
    return given if machine_made(given) else None


def _seconds(value: str) -> float | None:
    # The other form, a date, is rare and needs two clocks that agree.
    return float(value) if re.fullmatch(r"\d{1,6}(\.\d+)?", value) else None
