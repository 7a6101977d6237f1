"""What the operator says of upstream: its URL, its key, its headers and the proxy before it."""

import re
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from shieldgate.errors import ConfigurationError

_VISIBLE = re.compile(r"[\x21-\x7e]+")

# Names and values of headers as RFC 9110 has them, section 5.6.2 and 5.5.
_HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
_FRAMING = frozenset(
    (
        *("host", "content-length", "content-type", "content-encoding", "transfer-encoding", "te"),
        *("connection", "keep-alive", "upgrade", "trailer", "expect", "accept-encoding"),
        *("proxy-authorization", "proxy-connection", "http2-settings", "cookie"),
    )
)
_ACCOUNT = ("authorization", "x-api-key", "api-key")


def checked_url(url: str) -> str:
    """Give the base URL, without a slash at its end; raise ConfigurationError."""
    try:
        parsed = urlsplit(url)
    except ValueError:
        parsed = SplitResult("", "", "", "", "")
    if parsed.scheme not in ("http", "https") or not parsed.hostname:
        why = "it is no http or https URL"
    elif "@" in parsed.netloc or parsed.query or parsed.fragment:
        why = "it holds a password, a query or a fragment; give a key as the upstream's key"
    else:
        return url.rstrip("/")
    # The URL itself may hold a password.
    raise ConfigurationError(
        f"The URL of the upstream is refused: {why}. It looks like http://localhost:8000/v1."
    )


def checked_proxy(proxy: str | None, url: str) -> str | None:
    """Find the proxy for a URL; raise ConfigurationError."""
    if proxy == "environment":
        # Not aiohttp's trust_env, which takes ~/.netrc's passwords for the callers', too.
        parsed = urlsplit(url)
        proxy = getproxies().get(parsed.scheme)
        if proxy and proxy_bypass(parsed.netloc):
            return None
    if proxy is not None and not re.match(r"https?://[^/\s]", proxy):
        # It may hold a password.
        raise ConfigurationError(
            "The proxy to upstream is refused: it is no http or https URL. It looks like "
            "http://proxy:3128, or is the word environment."
        )
    return proxy


def read_headers(given: str) -> tuple[dict[str, str], list[str]]:
    """Read which headers are sent, and which of the caller's go on; raise ConfigurationError."""
    own: dict[str, str] = {}
    passed = []
    for entry in filter(None, (entry.strip() for entry in given.split(","))):
        name, sets, value = entry.partition("=")
        name, value = name.strip().lower(), value.strip()
        # A value may be a secret, and so may a misspelt entry.
        if not _HEADER.fullmatch(name) or name in _FRAMING or not _VALUE.fullmatch(value):
            raise ConfigurationError(
                "The headers for upstream are refused: each is name=value or a name alone, parted "
                "by commas, and none of those that carry the request, such as host."
            )
        if not sets and name in _ACCOUNT:
            raise ConfigurationError(
                f"The headers for upstream are refused: the caller's {name} goes on by itself "
                "where it may."
            )
        if sets:
            own[name] = value
        else:
            passed.append(name)
    return own, passed


def checked_key(key: str) -> str:
    """Give the key, without blanks around it; raise ConfigurationError."""
    if not _VISIBLE.fullmatch(key.strip()):
        raise ConfigurationError(
            "The upstream's key is refused: it is empty, or holds blanks or characters beyond "
            "ASCII. Copy it again, without quotes."
        )
    return key.strip()
