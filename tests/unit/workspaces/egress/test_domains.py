"""Which hosts the entries of an allow-list mean."""

from __future__ import annotations

import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.workspaces.egress.domains import Entry, Target, read_authority, read_entry, read_host

LABELS = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(lambda labels: ".".join([*labels, "test"]))
PORTS = st.integers(1, 65535)


@given(NAMES, NAMES)
def test_a_name_means_itself_and_nothing_else(name: str, other: str) -> None:
    assert read_entry(name).means(name)
    assert read_entry(name).means(other) == (name == other)
    assert not read_entry(name).means(f"x{name}")
    assert not read_entry(name).means(f"x.{name}")


@given(NAMES, LABELS)
def test_a_star_means_what_is_below_and_not_the_name_itself(name: str, label: str) -> None:
    entry = read_entry(f"*.{name}")
    assert entry.means(f"{label}.{name}")
    assert entry.means(f"a.{label}.{name}")
    assert not entry.means(name)
    assert not entry.means(f"{label}{name}")
    assert not entry.means(f"{name}.{label}")


@given(NAMES, PORTS)
def test_the_form_of_a_host_does_not_matter(name: str, port: int) -> None:
    assert read_authority(f"{name.upper()}.:{port}", None) == Target(name, port)
    assert read_host(read_host(name)) == read_host(name)


@given(PORTS)
def test_an_entry_without_a_port_means_the_ports_of_the_web(port: int) -> None:
    assert read_entry("a.test").means_port(port) == (port in (80, 443))
    assert read_entry(f"a.test:{port}").means_port(port)
    assert read_entry("a.test:1").means_port(port) == (port == 1)


@given(st.text(max_size=40))
def test_whatever_is_read_as_a_host_is_compared_in_one_form(text: str) -> None:
    try:
        host = read_host(text)
    except ValueError:
        return
    assert host == host.lower()
    assert host.isascii()
    assert not set(host) & set(" /\\@?#%\r\n\t\0*")
    bracketed = f"[{host}]" if ":" in host else host
    assert read_host(bracketed) == host


@given(st.ip_addresses())
def test_an_address_means_itself(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    text = str(address)
    written = f"[{text}]" if address.version == 6 else text
    assert read_entry(written).means(read_host(written))
    assert read_entry(text) == read_entry(written)
    assert read_authority(f"{written}:80", None) == Target(text, 80)


@pytest.mark.parametrize("port", ["", "0", "65536", "080", "8 0", "-1", "٣", "x"])
def test_a_port_is_a_plain_number(port: str) -> None:
    with pytest.raises(ValueError, match="port"):
        read_authority(f"a.test:{port}", 80)


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "a..b", ".a", "127.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "1.2.3.4.5",
        "256.1.1.1", "a.0x", "exämple.test", "a b", "a/b", "user@a.test", "a\\b", "a%2eb", "-a.test", "a-.test",
        "[::1", "::1]", "[::1%eth0]", "[1.2.3.4]", "a\n.test", "x" * 64 + ".test", "a." * 127 + "test", "\u212a.test",
    ],
)  # fmt: skip
def test_what_two_readers_could_read_in_two_ways_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_host(text)


@pytest.mark.parametrize("text", ["https://a.test", "a.test/x", "*a.test", "a.*.test", "**", "*.1.2.3.4", "*.[::1]"])
def test_what_is_no_entry_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_entry(text)


ENTRIES = st.builds(
    lambda name, star, port: f"{'*.' if star else ''}{name}{'' if port is None else f':{port}'}",
    NAMES,
    st.booleans(),
    st.none() | PORTS,
)


@given(ENTRIES, ENTRIES, NAMES)
def test_what_covers_an_entry_means_all_its_hosts(outer_text: str, inner_text: str, host: str) -> None:
    outer, inner = read_entry(outer_text), read_entry(inner_text)
    if outer.covers(inner):
        for each in (host, f"x.{inner.host}", inner.host):
            assert not inner.means(each) or outer.means(each)
        assert outer.port is None or outer.port == inner.port
    assert read_entry("*").covers(inner)
    assert inner.covers(inner)


@given(ENTRIES)
def test_an_entry_is_written_as_it_is_read(text: str) -> None:
    assert read_entry(read_entry(text).text) == read_entry(text)
    assert read_entry("[2001:DB8::1]:8080").text == "[2001:db8::1]:8080"
    assert read_entry("*:443") == Entry("", True, 443)


def test_the_port_of_the_scheme_is_left_out_of_the_host_header() -> None:
    assert Target("a.test", 443).host_header(tls=True) == "a.test"
    assert Target("a.test", 443).host_header(tls=False) == "a.test:443"
    assert Target("::1", 80).host_header(tls=False) == "[::1]"
