"""What a program in a sandbox is told when it may not go somewhere: in words that help whoever reads its output."""

from __future__ import annotations

from typing import Final

from stateroom.workspaces.egress.domains import Target
from stateroom.workspaces.egress.policy import NetworkPolicy

_SHOWN_MAX: Final = 20
_DETAIL_MAX: Final = 200
_TEXTS: Final = {
    "not_listed": (403, "{host} is not in the allowed_domains of this container's network_policy"),
    "port_not_listed": (403, "port {port} of {host} is not in the allowed_domains of this container's network_policy"),
    "operator_forbids": (403, "the operator of this server permits no container to reach {host}"),
    "private_address": (403, "{host} is a private, loopback, link-local or metadata address"),
    "host_mismatch": (403, "the Host header names another host than the URL or the CONNECT request"),
    "sni_mismatch": (403, "the TLS server name is another host than the CONNECT request's"),
    "not_tls": (403, "what was sent to {host} on port {port} is not TLS"),
    "unresolved": (502, "{host} could not be found: {detail}"),
    "unreachable": (502, "{host} on port {port} does not answer: {detail}"),
    "broken": (502, "{host} broke off: {detail}"),
    "compressed": (502, "{host} compresses its answer, which cannot be searched for secrets: ask for it uncompressed"),
    "bad_request": (400, "this is not a request that a proxy can pass on: {detail}"),
    "too_many_connections": (503, "this sandbox has too many connections open; close some, then try again"),
}
_REMEDY: Final = (
    "Nothing in the sandbox can change this. Do without it, use what is allowed, or ask the user to add the domain "
    "to the container's network_policy."
)
REASONS: Final = frozenset(_TEXTS)


class Refused(Exception):
    """A request that is not passed on. `reason` is a stable word."""

    def __init__(self, reason: str, target: Target | None = None, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.target = target
        self.detail = detail

    @property
    def status(self) -> int:
        return _TEXTS[self.reason][0]

    @property
    def line(self) -> str:
        """One line; it is the reason phrase too, which is all that most programs show of a refused CONNECT."""
        host, port = (self.target.host, self.target.port) if self.target is not None else ("-", 0)
        line = _TEXTS[self.reason][1].format(host=host, port=port, detail=self.detail[:_DETAIL_MAX])
        return "".join(letter if letter.isprintable() else " " for letter in line)

    def text(self, policy: NetworkPolicy) -> str:
        """The body of the answer."""
        told = f"Refused by the sandbox's egress proxy: {self.line}.\n"
        if self.status != 403:
            return told
        shown = ", ".join(policy.allowed_domains[:_SHOWN_MAX])
        more = ", …" if len(policy.allowed_domains) > _SHOWN_MAX else ""
        return f"{told}Allowed: {shown}{more}\n{_REMEDY}\n"
