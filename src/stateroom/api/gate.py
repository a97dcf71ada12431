"""May this request pass: whose key is it, what may it do, and has it asked too often.

Says yes, with a principal, or raises. What it may do goes by method alone: GET, HEAD and OPTIONS need `read`, all else
`write`, but for a few paths that are named where the server is put together.
"""

from __future__ import annotations

from typing import Final

from stateroom.access.keys import KeyRing
from stateroom.access.principal import SCOPES, Principal
from stateroom.access.rates import Rates
from stateroom.errors import Forbidden, StateroomError, TooMany, Unauthorized

_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_EVERYTHING: Final = Principal()
_NOTHING: Final = Principal(scopes=frozenset())
_BEARER: Final = b"bearer "


class Gate:
    """Asked before every request."""

    def __init__(
        self,
        ring: KeyRing,
        rates: Rates,
        *,
        demands_key: bool,
        public: frozenset[str] = frozenset(),
        reading: frozenset[str] = frozenset(),
        admin: tuple[str, ...] = (),
    ) -> None:
        """`demands_key`: even while there are no keys. `public`: paths that need none. `reading`: paths on which a POST
        only looks something up. `admin`: beginnings of paths that are about the whole server.
        """
        self._ring = ring
        self._rates = rates
        self._demands_key = demands_key
        self._public = public
        self._reading = reading
        self._admin = admin

    @property
    def is_open(self) -> bool:
        """Whether whoever reaches the server may use everything, as of the latest refresh."""
        return not self._demands_key and self._ring.is_empty

    def demand_keys(self) -> None:
        """Ask for a key from now on, even while there is none. Raises StateroomError when nobody could have one."""
        self._demands_key = True
        if not self._ring.is_usable:
            raise StateroomError(
                "Other machines reach the address that this server listens on, and there is no access key. "
                "Make one with `stateroom keys create`.",
                code="access_key_required",
            )

    def refresh(self) -> None:
        """See what keys there are now. Raises StorageError."""
        self._ring.refresh()

    def admit(self, method: str, path: str, authorization: bytes) -> Principal:
        """Who is asking. Raises Unauthorized, Forbidden."""
        if path in self._public:
            return _NOTHING
        if self.is_open:
            return _EVERYTHING
        principal = self._holder(authorization)
        if self._admin and path.startswith(self._admin):
            needed = "admin"
        elif method in _READING or path in self._reading:
            needed = "read"
        else:
            needed = "write"
        if needed not in principal.scopes:
            has = " and ".join(f"`{scope}`" for scope in SCOPES if scope in principal.scopes) or "nothing"
            message = f"This request needs a key with the scope `{needed}`; this one has {has}."
            raise Forbidden(message, code="insufficient_scope")
        return principal

    def count(self, principal: Principal) -> tuple[dict[str, str], TooMany | None]:
        """Count the request: headers that say how it stands with its limits, and a refusal when it is too much."""
        if principal is _NOTHING:
            return {}, None
        return self._rates.ask(principal.project, principal.key_id)

    def _holder(self, authorization: bytes) -> Principal:
        if not authorization:
            raise Unauthorized(
                "You did not provide an access key. Send it as `Authorization: Bearer sk-stateroom-…`; the operator "
                "of this server makes keys with `stateroom keys create`.",
                code="missing_api_key",
            )
        shown = authorization[len(_BEARER) :].strip() if authorization[: len(_BEARER)].lower() == _BEARER else b""
        found = self._ring.find(shown) if shown else None
        if found is None:
            raise Unauthorized("The access key is not one of this server's. Is it whole, and for this server?")
        key, principal = found
        if key.revoked_at:
            raise Unauthorized("This access key was revoked. Ask the server's operator for another.")
        if key.expires_at and key.expires_at <= self._ring.now():
            raise Unauthorized("This access key has expired. Ask the server's operator for another.")
        return principal
