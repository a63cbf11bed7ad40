"""Which endpoints data may be sent to: https ones, and http ones that stay on this machine."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

ALLOW = "use https, or allow plain http by configure(allow_http=True) or TDEV_ALLOW_HTTP=on"


def in_clear_to(url: str, proxy: str | None = None) -> str | None:
    """Return the host that requests would reach unencrypted over a network; None: there is none.

    Args:
        url: the endpoint.
        proxy: the URL of the proxy that plain http goes through.
    """
    if urlsplit(url).scheme != "http":
        return None
    return next((one for one in (url, proxy) if one and not _is_loopback(one)), None)


def _is_loopback(url: str) -> bool:
    parts = urlsplit(url if "//" in url else f"//{url}")
    # With these, not everybody reads the same host from a URL.
    if "@" in parts.netloc or "\\" in parts.netloc:
        return False
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname == "localhost"
