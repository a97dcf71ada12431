"""The installation's own certificate authority, which only its sandboxes trust, for domains that carry secrets.

Made on first need, in a directory of the data directory: `authority.key` (0600), `authority.pem`, and `trust/`, which
sandboxes see: one bundle of the system's roots and this authority. A new one is made after a year, and its predecessor
stays in the bundle until it ends. Removing the two files and starting the server again makes a new one at once.
"""

from __future__ import annotations

import logging
import os
import ssl
import tempfile
import threading
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stateroom import ids
from stateroom.addresses import is_address
from stateroom.clock import Clock, SystemClock

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder

log = logging.getLogger("stateroom.egress")

BUNDLE: Final = "ca-bundle.pem"
_KEY, _CERTIFICATES, _TRUST = "authority.key", "authority.pem", "trust"
_LIFE: Final = timedelta(days=730)
_SIGNS: Final = timedelta(days=365)
_LEAF_LIFE: Final = timedelta(days=7)
_LEAF_SERVES: Final = timedelta(days=3)
_EARLIER: Final = timedelta(hours=1)
"""Clocks differ."""
_LEAVES_MAX: Final = 256
_ROOTS: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


class Authority:
    """Signs the certificates with which the proxy ends TLS. Reads and makes its files when it is first asked."""

    def __init__(self, directory: Path, *, roots: Path | None = None, clock: Clock | None = None) -> None:
        self._directory = directory
        self._roots = roots
        self._clock: Clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._key: EllipticCurvePrivateKey | None = None
        self._certificates: list[Certificate] = []
        self._leaf_key: EllipticCurvePrivateKey | None = None
        self._leaves: OrderedDict[str, tuple[datetime, ssl.SSLContext]] = OrderedDict()
        self._upstream: ssl.SSLContext | None = None

    @property
    def trust(self) -> Path:
        """The directory with the bundle, for the eyes of sandboxes."""
        return self._directory / _TRUST

    def prepare(self) -> None:
        """Have the files there. In any thread. Raises OSError, ValueError."""
        now = self._now()
        with self._lock:
            if self._key is None:
                self._load()
            if self._key is None or now > self._certificates[0].not_valid_before_utc + _SIGNS:
                self._renew(now)
            if not (self.trust / BUNDLE).exists():
                self._write_bundle()

    def upstream(self) -> ssl.SSLContext:
        """With what servers are judged: the system's roots. HTTP/1.1 is all that is spoken."""
        if self._upstream is None:
            self._upstream = ssl.create_default_context(cafile=str(self._roots) if self._roots else None)
            self._upstream.set_alpn_protocols(["http/1.1"])
        return self._upstream

    def context_for(self, host: str) -> ssl.SSLContext:
        """With what the proxy answers a sandbox in the name of this host."""
        now = self._now()
        kept = self._leaves.get(host)
        if kept is not None and now < kept[0]:
            self._leaves.move_to_end(host)
            return kept[1]
        self.prepare()
        context = self._leaf(host, now)
        self._leaves[host] = (now + _LEAF_SERVES, context)
        self._leaves.move_to_end(host)
        if len(self._leaves) > _LEAVES_MAX:
            self._leaves.popitem(last=False)
        return context

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now(), UTC)

    def _load(self) -> None:
        from cryptography import x509  # lazy: few servers have containers with secrets
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey  # lazy: as above
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # lazy: as above

        try:
            key = load_pem_private_key((self._directory / _KEY).read_bytes(), None)
            certificates = x509.load_pem_x509_certificates((self._directory / _CERTIFICATES).read_bytes())
        except FileNotFoundError:
            return
        except ValueError:
            log.warning("egress.authority_replaced reason=%s", "its files are damaged")
            return
        if not isinstance(key, EllipticCurvePrivateKey) or certificates[0].public_key() != key.public_key():
            log.warning("egress.authority_replaced reason=%s", "its files do not belong together")
            return
        self._key, self._certificates = key, certificates
        self._write_bundle()

    def _renew(self, now: datetime) -> None:
        from cryptography import x509  # lazy: few servers have containers with secrets
        from cryptography.hazmat.primitives import hashes, serialization  # lazy: as above
        from cryptography.hazmat.primitives.asymmetric import ec  # lazy: as above

        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"Stateroom egress {now:%Y-%m-%d} {ids.new_key()[-8:]}")
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        certificate = (
            _begun(name, name, now, _LIFE)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        earlier = [each for each in self._certificates if each.not_valid_after_utc > now]
        self._key, self._certificates = key, [certificate, *earlier]
        self._leaves.clear()
        self._directory.mkdir(parents=True, exist_ok=True)
        plain = serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        _write(self._directory / _KEY, pem, 0o600)
        _write(self._directory / _CERTIFICATES, self._pem(), 0o644)
        self._write_bundle()
        log.info("egress.authority_made valid_until=%s", certificate.not_valid_after_utc.date().isoformat())

    def _leaf(self, host: str, now: datetime) -> ssl.SSLContext:
        from cryptography import x509  # lazy: few servers have containers with secrets
        from cryptography.hazmat.primitives import hashes, serialization  # lazy: as above
        from cryptography.hazmat.primitives.asymmetric import ec  # lazy: as above
        from cryptography.x509.oid import ExtendedKeyUsageOID  # lazy: as above

        assert self._key is not None
        if self._leaf_key is None:
            self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        issuer = self._certificates[0]
        named = x509.IPAddress(ip_address(host)) if is_address(host) else x509.DNSName(host)
        public = self._leaf_key.public_key()
        certificate = (
            _begun(_name("Stateroom egress"), issuer.subject, now, _LEAF_LIFE)
            .public_key(public)
            .add_extension(x509.SubjectAlternativeName([named]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        key = self._leaf_key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
        return self._context(key + certificate.public_bytes(encoding))

    def _context(self, pem: bytes) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        with tempfile.NamedTemporaryFile(dir=self._directory, prefix="leaf-") as file:  # 0600; ssl reads only files
            file.write(pem)
            file.flush()
            context.load_cert_chain(file.name)
        return context

    def _pem(self) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding  # lazy: few servers have these containers

        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self._certificates)

    def _write_bundle(self) -> None:
        self.trust.mkdir(parents=True, exist_ok=True)
        self.trust.chmod(0o755)
        _write(self.trust / BUNDLE, self._system_roots() + b"\n" + self._pem(), 0o644)

    def _system_roots(self) -> bytes:
        found = self._roots or ssl.get_default_verify_paths().cafile
        for path in (found, *_ROOTS):
            if path is not None and Path(path).is_file():
                return Path(path).read_bytes()
        log.warning("egress.no_roots reason=%s", "this machine has no file of trusted authorities")
        return b""


def _name(text: str) -> x509.Name:
    from cryptography import x509  # lazy: few servers have containers with secrets
    from cryptography.x509.oid import NameOID  # lazy: as above

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _begun(subject: x509.Name, issuer: x509.Name, now: datetime, life: timedelta) -> CertificateBuilder:
    from cryptography import x509  # lazy: few servers have containers with secrets

    begun = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    begun = begun.serial_number(x509.random_serial_number())
    return begun.not_valid_before(now - _EARLIER).not_valid_after(now + life)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)
