"""The one guard for URLs that come from users: where the server may connect on their behalf.

A name is resolved here, every address of it is checked, and the connection is made to the checked address, so that a
name cannot resolve to something else in between. Redirects are followed by hand, each through the same guard.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from stateroom.errors import InvalidRequest

REDIRECTS_MAX = 3


class OutboundGuard:
    """Fetches users' URLs within bounds."""

    def __init__(self, *, allow_private: bool, bytes_max: int, timeout_seconds: float) -> None:
        self._allow_private = allow_private
        self._bytes_max = bytes_max
        self._timeout_seconds = timeout_seconds

    async def fetch(self, url: str, *, param: str, accept: str) -> tuple[bytes, str]:
        """The content behind a URL and its media type. Raises InvalidRequest for whatever goes wrong."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._follow(url, param, accept)
        except TimeoutError:
            message = f"Downloading the URL took longer than {self._timeout_seconds:g} seconds."
            raise InvalidRequest(message, code="failed_to_download_image", param=param) from None

    async def _follow(self, url: str, param: str, accept: str) -> tuple[bytes, str]:
        for _ in range(REDIRECTS_MAX + 1):
            await self._check(url, param)
            connector = aiohttp.TCPConnector(resolver=_CheckedResolver(self), limit=1)
            try:
                async with (
                    aiohttp.ClientSession(connector=connector, auto_decompress=True) as session,
                    session.get(url, allow_redirects=False, headers={"accept": accept}) as answer,
                ):
                    if answer.status in (301, 302, 303, 307, 308) and "location" in answer.headers:
                        url = urljoin(url, answer.headers["location"])
                        continue
                    if answer.status != 200:
                        message = f"Downloading the URL failed: its server answered {answer.status}."
                        raise InvalidRequest(message, code="failed_to_download_image", param=param)
                    return await self._read(answer, param), answer.content_type
            except (aiohttp.ClientError, OSError) as error:
                if isinstance(error.__cause__, _Refused) or isinstance(error, _Refused):
                    raise self._refusal(param) from None
                message = f"Downloading the URL failed: {type(error).__name__}."
                raise InvalidRequest(message, code="failed_to_download_image", param=param) from None
        raise InvalidRequest(
            f"The URL redirects more than {REDIRECTS_MAX} times.", code="failed_to_download_image", param=param
        )

    async def _read(self, answer: aiohttp.ClientResponse, param: str) -> bytes:
        content = bytearray()
        async for chunk in answer.content.iter_chunked(65536):
            content += chunk
            if len(content) > self._bytes_max:
                message = f"The content behind the URL is larger than {self._bytes_max} bytes."
                raise InvalidRequest(message, code="image_file_too_large", param=param)
        return bytes(content)

    async def _check(self, url: str, param: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidRequest("The URL must be http or https.", code="invalid_image_url", param=param)
        if parts.username is not None or parts.password is not None:
            raise InvalidRequest("The URL must not carry credentials.", code="invalid_image_url", param=param)
        try:
            addresses = [ipaddress.ip_address(parts.hostname)]
        except ValueError:
            return  # a name: checked when it is resolved for the connection
        if not all(self.permits(str(address)) for address in addresses):
            raise self._refusal(param)

    def permits(self, address: str) -> bool:
        """Whether the server may connect to this address on a user's behalf."""
        if self._allow_private:
            return True
        parsed = ipaddress.ip_address(address.split("%", 1)[0])
        mapped = getattr(parsed, "ipv4_mapped", None) or getattr(parsed, "sixtofour", None)
        checked = mapped or parsed
        return checked.is_global and not checked.is_multicast

    def _refusal(self, param: str) -> InvalidRequest:
        return InvalidRequest(
            "The URL points to a private, loopback or link-local address, which this server does not fetch. "
            "Send the content as a data URL, or have the operator set `allow_private_addresses`.",
            code="private_address_refused",
            param=param,
        )


class _Refused(OSError):
    """A name resolved to an address that is not permitted."""


class _CheckedResolver(AbstractResolver):
    """aiohttp's resolver seam: only permitted addresses come out of it."""

    def __init__(self, guard: OutboundGuard) -> None:
        self._guard = guard

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        hosts: list[ResolveResult] = []
        for each_family, _, protocol, _, address in found:
            if not self._guard.permits(str(address[0])):
                raise _Refused(f"{host} resolves to an address that is not permitted")
            hosts.append(
                {
                    "hostname": host,
                    "host": str(address[0]),
                    "port": port,
                    "family": each_family,
                    "proto": protocol,
                    "flags": socket.AI_NUMERICHOST,
                }
            )
        return hosts

    async def close(self) -> None:
        return None
