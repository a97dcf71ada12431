"""The authority of the installation: made once, kept to its owner, renewed in time."""

from __future__ import annotations

import ssl
import threading
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from stateroom.workspaces.egress.authority import BUNDLE, Authority
from tests.unit.workspaces.egress.stage import Roots

DAY = 86400.0


class Clock:
    def __init__(self) -> None:
        self.time = datetime(2030, 1, 1, tzinfo=UTC).timestamp()

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


def served(authority: Authority, host: str) -> x509.Certificate:
    """The certificate that a client is shown."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname=host)
    serving = authority.context_for(host).wrap_bio(to_server, to_client, server_side=True)
    for side in (asking, serving, asking):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    shown = asking.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown)


def bundle(authority: Authority) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates((authority.trust / BUNDLE).read_bytes())


def test_its_key_is_for_its_owner_alone_and_is_kept(tmp_path: Path) -> None:
    roots = Roots(tmp_path)
    first = Authority(tmp_path / "a", roots=roots.path)
    first.prepare()
    key = tmp_path / "a" / "authority.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert (first.trust / BUNDLE).stat().st_mode & 0o777 == 0o644
    before = key.read_bytes()
    again = Authority(tmp_path / "a", roots=roots.path)
    again.prepare()
    assert key.read_bytes() == before
    assert [path.name for path in first.trust.iterdir()] == [BUNDLE]
    assert b"PRIVATE" not in (first.trust / BUNDLE).read_bytes()
    assert len(bundle(first)) == 2


def test_it_signs_for_one_host_at_a_time_and_keeps_what_it_signed(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "a", roots=Roots(tmp_path).path)
    shown = served(authority, "a.test")
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.test"]
    shown.verify_directly_issued_by(bundle(authority)[-1])
    assert served(authority, "a.test") == shown
    assert served(authority, "b.test") != shown
    address = served(authority, "1.2.3.4").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in address.get_values_for_type(x509.IPAddress)] == ["1.2.3.4"]
    assert not list((tmp_path / "a").glob("leaf-*"))


def test_it_is_renewed_in_time_and_its_predecessor_is_believed_until_it_ends(tmp_path: Path) -> None:
    clock = Clock()
    authority = Authority(tmp_path / "a", roots=Roots(tmp_path).path, clock=clock)
    first = served(authority, "a.test")
    (made,) = bundle(authority)[1:]
    clock.time += 4 * DAY
    assert served(authority, "a.test") != first
    assert bundle(authority)[1:] == [made]
    clock.time += 365 * DAY
    second = served(authority, "a.test")
    assert second.issuer != made.subject
    assert bundle(authority)[2:] == [made]
    clock.time += 366 * DAY
    served(authority, "a.test")
    assert made not in bundle(authority)
    assert Authority(tmp_path / "a", roots=Roots(tmp_path).path, clock=clock).context_for("b.test")


def test_damaged_files_are_replaced(tmp_path: Path) -> None:
    roots = Roots(tmp_path)
    Authority(tmp_path / "a", roots=roots.path).prepare()
    (tmp_path / "a" / "authority.key").write_bytes(b"damaged")
    assert served(Authority(tmp_path / "a", roots=roots.path), "a.test")


def test_whoever_asks_first_at_the_same_time_gets_the_same_one(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "a", roots=Roots(tmp_path).path)
    threads = [threading.Thread(target=authority.prepare) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bundle(authority)) == 2
    served(authority, "a.test").verify_directly_issued_by(bundle(authority)[-1])
