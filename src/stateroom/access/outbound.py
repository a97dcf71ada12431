"""The one guard for URLs that come from users: where the server may connect on their behalf.

A name is resolved here, every address of it is checked, and the connection is made to the checked address, so that a
name cannot resolve to something else in between. Whatever way an address came about, it is checked once more where the
socket is made. Redirects are followed by hand, each through the same guard. No proxy of the environment is used.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from stateroom.addresses import is_address, is_public
from stateroom.errors import InvalidRequest

REDIRECTS_MAX: Final = 3
POST_SECONDS: Final = 10.0
"""How long whoever is told something may take to answer."""
_LOOKUPS: Final = 8
"""Look-ups of names at the same time, in threads of their own: whoever runs a name server can make one take long."""


class FetchCodes(NamedTuple):
    """The codes of errors, which say what was to be fetched."""

    invalid_url: str
    failed: str
    too_large: str
    setting: str
    """What bounds its size."""


IMAGE_CODES: Final = FetchCodes(
    "invalid_image_url", "failed_to_download_image", "image_file_too_large", "limits.image_bytes"
)
FILE_CODES: Final = FetchCodes(
    "invalid_file_url", "failed_to_download_file", "file_too_large", "limits.file_input_bytes"
)


class Fetched(NamedTuple):
    """What was behind a URL."""

    data: bytes
    media_type: str
    charset: str
    """What its server says of its encoding."""


class OutboundGuard:
    """Fetches users' URLs within bounds."""

    def __init__(
        self, *, allow_private: bool, bytes_max: int, timeout_seconds: float, codes: FetchCodes = IMAGE_CODES
    ) -> None:
        self._allow_private = allow_private
        self._codes = codes
        self._bytes_max = bytes_max
        self._timeout_seconds = timeout_seconds
        self._lookups = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="stateroom-names")

    async def fetch(self, url: str, *, param: str, accept: str) -> tuple[bytes, str]:
        """The content behind a URL and its media type. Raises InvalidRequest for whatever goes wrong."""
        fetched = await self.fetch_whole(url, param=param, accept=accept)
        return fetched.data, fetched.media_type

    async def fetch_whole(self, url: str, *, param: str, accept: str) -> Fetched:
        """The same with everything that is known of it."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._follow(url, param, accept)
        except TimeoutError:
            message = f"Downloading the URL took longer than {self._timeout_seconds:g} seconds."
            raise InvalidRequest(message, code=self._codes.failed, param=param) from None

    def check(self, url: str, *, param: str, https: bool = False) -> None:
        """Refuse a URL that could never be reached from here, as far as can be said without asking for its name.

        `https`: nothing else, unless private addresses are allowed. Raises InvalidRequest.
        """
        checked = self._checked(url, None, param)
        if https and checked.scheme != "https" and not self._allow_private:
            raise InvalidRequest("The URL must be https.", code="invalid_value", param=param)

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        """Post JSON to a user's URL; the HTTP status of the answer, which is not followed if it leads elsewhere.

        Raises OutboundRefused when there was no answer.
        """
        connector = aiohttp.TCPConnector(resolver=_CheckedResolver(self), socket_factory=self._socket, limit=1)
        try:
            async with (
                asyncio.timeout(POST_SECONDS),
                aiohttp.ClientSession(connector=connector, auto_decompress=False, trust_env=False) as session,
                session.post(
                    self._checked(url, None, "url"),
                    data=body,
                    allow_redirects=False,
                    headers={**headers, "content-type": "application/json", "user-agent": "Stateroom"},
                ) as answer,
            ):
                return answer.status
        except TimeoutError:
            raise OutboundRefused(f"no answer within {POST_SECONDS:g} seconds") from None
        except InvalidRequest as refusal:
            raise OutboundRefused(refusal.message) from None
        except (aiohttp.ClientError, OSError, UnicodeError) as error:  # UnicodeError: no name server takes the name
            if isinstance(error.__cause__, _Refused) or isinstance(error, _Refused):
                raise OutboundRefused("a private address, which this server does not call") from None
            raise OutboundRefused(type(error).__name__) from None

    def connector(self, limit: int, *, keepalive_seconds: float = 3.0) -> aiohttp.TCPConnector:
        """Connections that lead to permitted addresses only, for clients that follow no redirects by themselves."""
        return aiohttp.TCPConnector(
            resolver=_CheckedResolver(self),
            socket_factory=self._socket,
            limit=limit,
            keepalive_timeout=keepalive_seconds,
        )

    def is_refusal(self, error: BaseException) -> bool:
        """Whether a connection failed because its address is not permitted."""
        return isinstance(error.__cause__, _Refused) or isinstance(error, _Refused)

    async def _follow(self, text: str, param: str, accept: str) -> Fetched:
        headers = {"accept": accept, "accept-encoding": "identity"}
        url = self._checked(text, None, param)
        for _ in range(REDIRECTS_MAX + 1):
            connector = aiohttp.TCPConnector(resolver=_CheckedResolver(self), socket_factory=self._socket, limit=1)
            try:
                async with (
                    aiohttp.ClientSession(connector=connector, auto_decompress=False, trust_env=False) as session,
                    session.get(url, allow_redirects=False, headers=headers) as answer,
                ):
                    if answer.status in (301, 302, 303, 307, 308) and "location" in answer.headers:
                        url = self._checked(answer.headers["location"], url, param)
                        continue
                    if answer.status != 200:
                        message = f"Downloading the URL failed: its server answered {answer.status}."
                        raise InvalidRequest(message, code=self._codes.failed, param=param)
                    if answer.headers.get("content-encoding", "identity").lower() != "identity":
                        message = "Downloading the URL failed: its server insists on compressing the content."
                        raise InvalidRequest(message, code=self._codes.failed, param=param)
                    return Fetched(await self._read(answer, param), answer.content_type, answer.charset or "")
            except (aiohttp.ClientError, OSError, UnicodeError) as error:  # UnicodeError: no name server takes the name
                if isinstance(error.__cause__, _Refused) or isinstance(error, _Refused):
                    raise self._refusal(param) from None
                message = f"Downloading the URL failed: {type(error).__name__}."
                raise InvalidRequest(message, code=self._codes.failed, param=param) from None
        raise InvalidRequest(
            f"The URL redirects more than {REDIRECTS_MAX} times.", code=self._codes.failed, param=param
        )

    async def _read(self, answer: aiohttp.ClientResponse, param: str) -> bytes:
        content = bytearray()
        async for chunk in answer.content.iter_chunked(65536):
            content += chunk
            if len(content) > self._bytes_max:
                setting = self._codes.setting
                message = f"The content behind the URL is larger than {self._bytes_max} bytes (`{setting}`)."
                raise InvalidRequest(message, code=self._codes.too_large, param=param)
        return bytes(content)

    def _checked(self, text: str, base: URL | None, param: str) -> URL:
        """The URL as the client library reads it: two readers of one text could take two hosts out of it."""
        try:
            url = URL(text) if base is None else base.join(URL(text))
            host = url.host
        except (ValueError, UnicodeError):
            raise InvalidRequest("The URL is not valid.", code=self._codes.invalid_url, param=param) from None
        if url.scheme not in ("http", "https") or not host:
            raise InvalidRequest("The URL must be http or https.", code=self._codes.invalid_url, param=param)
        if url.user is not None or url.password is not None:
            raise InvalidRequest("The URL must not carry credentials.", code=self._codes.invalid_url, param=param)
        if is_address(host) and not self.permits(host):
            raise self._refusal(param)
        return url

    def permits(self, address: str) -> bool:
        """Whether the server may connect to this address on a user's behalf."""
        return self._allow_private or is_public(address)

    async def look_up(self, host: str, port: int, family: socket.AddressFamily) -> list[Any]:
        """All addresses of a name, as `getaddrinfo` gives them. Raises _Refused when one of them is not permitted."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._lookups, lambda: socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        )
        for *_, address in found:
            if not self.permits(str(address[0])):
                raise _Refused(f"{host} resolves to an address that is not permitted")
        return found

    def _socket(self, address: tuple[Any, ...]) -> socket.socket:
        """The client library's seam for making sockets: the last look at where a connection goes."""
        family, kind, protocol, _, place = address
        if not self.permits(str(place[0])):
            raise _Refused("an address that is not permitted")
        return socket.socket(family, kind, protocol)

    def _refusal(self, param: str) -> InvalidRequest:
        return InvalidRequest(
            "The URL points to a private, loopback or link-local address, which this server does not fetch. "
            "Send the content as a data URL, or have the operator set `allow_private_addresses`.",
            code="private_address_refused",
            param=param,
        )


class OutboundRefused(Exception):
    """Nobody answered at a user's URL, or it may not be called."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    @property
    def message(self) -> str:
        return f"The URL could not be called: {self.reason}."


class _Refused(OSError):
    """Something led to an address that is not permitted."""


class _CheckedResolver(AbstractResolver):
    """aiohttp's resolver seam: only permitted addresses come out of it."""

    def __init__(self, guard: OutboundGuard) -> None:
        self._guard = guard

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            {
                "hostname": host,
                "host": str(address[0]),
                "port": port,
                "family": each_family,
                "proto": protocol,
                "flags": socket.AI_NUMERICHOST,
            }
            for each_family, _, protocol, _, address in await self._guard.look_up(host, port, family)
        ]

    async def close(self) -> None:
        return None
