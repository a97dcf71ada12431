"""What a container may reach: its list of domains, and the secrets that are put in on the way to some of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Final, Protocol

import msgspec

from stateroom import ids
from stateroom.errors import InvalidRequest
from stateroom.workspaces.egress.domains import Entry, Target, read_entry

DOMAINS_MAX: Final = 200
SECRETS_MAX: Final = 50
SECRET_MAX: Final = 8192
"""Bytes of a secret: it goes into a header, and servers take little more than this."""
SECRETS_BYTES_MAX: Final = 64 * 1024
"""Of all of them together: each is looked for in whatever comes back."""

# fmt: off
_RESERVED: Final = frozenset({
    "PATH", "HOME", "USER", "SHELL", "PWD", "TMPDIR", "LANG", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS",
    "NODE_USE_ENV_PROXY", "GIT_SSL_CAINFO", "PIP_CERT", "AWS_CA_BUNDLE", "CARGO_HTTP_CAINFO", "BASH_ENV", "ENV",
    "IFS", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP",
})
# fmt: on
_RESERVED_STARTS: Final = ("LD_",)
_LETTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ_")


class GivenSecret(Protocol):
    """A secret as a request names it."""

    @property
    def domain(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> str: ...


class Secret(msgspec.Struct, frozen=True):
    """A secret of a container. The value is for the proxy alone; inside, the placeholder stands for it."""

    domain: str
    name: str
    value: str
    placeholder: str

    def __repr__(self) -> str:
        return f"Secret(domain={self.domain!r}, name={self.name!r})"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("domain", self.domain), ("name", self.name)]


class NetworkPolicy(msgspec.Struct, frozen=True, dict=True):
    """An allow-list. Holds the secrets in clear: whoever stores it seals it."""

    allowed_domains: tuple[str, ...]
    secrets: tuple[Secret, ...] = ()

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(read_entry(text) for text in self.allowed_domains)

    @cached_property
    def _secret_entries(self) -> tuple[tuple[Entry, Secret], ...]:
        return tuple((read_entry(secret.domain), secret) for secret in self.secrets)

    def lists(self, target: Target) -> Entry | None:
        """The entry that lets this target through."""
        return next((e for e in self.entries if e.means(target.host) and e.means_port(target.port)), None)

    def lists_host(self, host: str) -> bool:
        """Whether the host is listed, on whatever port."""
        return any(entry.means(host) for entry in self.entries)

    def secrets_for(self, target: Target) -> tuple[Secret, ...]:
        """The secrets that are put into requests to this target."""
        return tuple(
            secret
            for entry, secret in self._secret_entries
            if entry.means(target.host) and (entry.port is None or entry.port == target.port)
        )


def make_policy(
    allowed_domains: Sequence[str],
    domain_secrets: Sequence[GivenSecret] = (),
    *,
    egress_domains: Sequence[str] = ("*",),
    param: str = "network_policy",
) -> NetworkPolicy:
    """The policy that a request asks for, with a fresh placeholder for each name of a secret.

    `egress_domains`: what the operator allows policies to name. Raises InvalidRequest.
    """
    domains = f"{param}.allowed_domains"
    if not allowed_domains or len(allowed_domains) > DOMAINS_MAX:
        raise InvalidRequest(f"Name 1 to {DOMAINS_MAX} domains.", code="invalid_allowed_domain", param=domains)
    bounds = tuple(read_entry(text) for text in egress_domains)
    entries = [_entry(text, bounds, f"{domains}[{at}]") for at, text in enumerate(allowed_domains)]
    if len(domain_secrets) > SECRETS_MAX:
        message = f"There are more than {SECRETS_MAX} secrets."
        raise InvalidRequest(message, code="invalid_domain_secret", param=f"{param}.domain_secrets")
    if sum(len(given.value.encode(errors="replace")) for given in domain_secrets) > SECRETS_BYTES_MAX:
        message = f"The secrets have more than {SECRETS_BYTES_MAX} bytes together."
        raise InvalidRequest(message, code="invalid_domain_secret", param=f"{param}.domain_secrets")
    placeholders: dict[str, tuple[str, str]] = {}
    secrets: list[Secret] = []
    for at, given in enumerate(domain_secrets):
        secrets.append(_secret(given, entries, placeholders, f"{param}.domain_secrets[{at}]"))
    return NetworkPolicy(tuple(dict.fromkeys(entry.text for entry in entries)), tuple(dict.fromkeys(secrets)))


def refusal_of(policy: NetworkPolicy, egress_domains: Sequence[Entry], target: Target) -> str:
    """Why a target may not be reached, in one word; empty: it may, as far as its name says."""
    if policy.lists(target) is None:
        return "port_not_listed" if policy.lists_host(target.host) else "not_listed"
    bounded = any(e.means(target.host) and (e.port is None or e.port == target.port) for e in egress_domains)
    return "" if bounded else "operator_forbids"


def _entry(text: str, bounds: Sequence[Entry], param: str) -> Entry:
    try:
        entry = read_entry(text)
    except ValueError as error:
        message = f"{text[:260]!r} is not a domain: {error}."
        raise InvalidRequest(message, code="invalid_allowed_domain", param=param) from None
    if not entry.host:
        message = "`*` lists nothing. Name the domains, such as `example.com` or `*.example.com`."
        raise InvalidRequest(message, code="invalid_allowed_domain", param=param)
    if not any(bound.covers(entry) for bound in bounds):
        message = f"{entry.text!r} is not among the domains that this server's operator permits (`egress_domains`)."
        raise InvalidRequest(message, code="domain_not_permitted", param=param)
    return entry


def _secret(
    given: GivenSecret, entries: Sequence[Entry], placeholders: dict[str, tuple[str, str]], param: str
) -> Secret:
    _check_name(given.name, f"{param}.name")
    _check_value(given.value, f"{param}.value")
    try:
        entry = read_entry(given.domain)
    except ValueError as error:
        message = f"{given.domain[:260]!r} is not a domain: {error}."
        raise InvalidRequest(message, code="invalid_domain_secret", param=f"{param}.domain") from None
    if not any(_within(entry, listed) for listed in entries):
        message = f"The domain {entry.text!r} of a secret is not in `allowed_domains`."
        raise InvalidRequest(message, code="domain_secret_not_allowed", param=f"{param}.domain")
    placeholder, value = placeholders.setdefault(given.name, (f"placeholder_{ids.new_secret()}", given.value))
    if value != given.value:
        message = f"The secret {given.name!r} has two values. Give each value a name of its own."
        raise InvalidRequest(message, code="duplicate_domain_secret", param=f"{param}.name")
    return Secret(entry.text, given.name, given.value, placeholder)


def _within(secret: Entry, listed: Entry) -> bool:
    """Whether a secret's hosts are all listed, and its port is, if it names one."""
    if secret.port is not None and not listed.means_port(secret.port):
        return False
    return Entry(listed.host, listed.below).covers(secret)


def _check_name(name: str, param: str) -> None:
    """It becomes the name of a variable of the environment inside."""
    upper = name.upper()
    plain = 0 < len(name) <= 128 and name.isascii() and name.replace("_", "a").isalnum() and upper[0] in _LETTERS
    if not plain:
        message = "A secret's name is that of an environment variable: letters, digits and `_`, 128 at most."
        raise InvalidRequest(message, code="invalid_domain_secret", param=param)
    if upper in _RESERVED or upper.startswith(_RESERVED_STARTS):
        message = f"The environment variable {name!r} has a meaning of its own inside. Choose another name."
        raise InvalidRequest(message, code="invalid_domain_secret", param=param)


def _check_value(value: str, param: str) -> None:
    """It is put into headers."""
    raw = value.encode(errors="replace")
    if not raw or len(raw) > SECRET_MAX:
        message = f"A secret has 1 to {SECRET_MAX} bytes: it is put into a header."
        raise InvalidRequest(message, code="invalid_domain_secret", param=param)
    is_text = raw.decode() == value  # a lone surrogate is no character
    if not is_text or any(byte < 32 or byte == 127 for byte in raw) or raw.strip() != raw:
        message = "A secret is put into headers: no line ends or other control characters, no space at its ends."
        raise InvalidRequest(message, code="invalid_domain_secret", param=param)
