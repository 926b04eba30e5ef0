"""Where a webhook may go: the addresses by table and by law, the URLs by every way around them."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.notices.targets import check_webhook, parse_target, public_address

PUBLIC = """
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 52.94.236.248 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0
169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 192.169.0.0 198.17.255.255
198.20.0.0 223.255.255.255
2606:4700:4700::1111 2a00:1450:4001::200e 2001:4860:4860::8888 2001:200:: 2003:: 2600:1f18::1
::ffff:8.8.8.8 64:ff9b::8.8.8.8
"""

NOT_PUBLIC = """
0.0.0.0 0.1.2.3 10.0.0.0 10.255.255.255 100.64.0.0 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.255
168.63.129.16 169.254.0.0 169.254.169.254 169.254.170.2 172.16.0.0 172.31.255.255 192.0.0.1 192.0.0.192
192.0.2.1 192.88.99.1 192.168.0.0 192.168.255.255 198.18.0.0 198.19.255.255 198.51.100.1 203.0.113.1
224.0.0.1 239.255.255.255 240.0.0.0 255.255.255.255
:: ::1 ::2 fc00::1 fd00:ec2::254 fdff::1 fe80::1 fec0::1 ff02::1 ff0e::1 100::1 4000::1 5f00::1
2001:2::1 2001:10::1 2001:20::1 2001:db8::1 3fff::1 3fff:fff::1 2620:4f:8000::1
::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 ::8.8.8.8 ::ffff:0:127.0.0.1
64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b::1:808:808 ::fffe:808:808
64:ff9b:1::8.8.8.8 64:ff9b:1:a00:0:100::
2002:7f00:1:: 2002:a00:1::1 2002:a9fe:a9fe:: 2002:808:808::
2001:0:a00:1:8000:0:f7f7:f7f7 2001:0:808:808:8000:0:80ff:fffe
2606:4700::5efe:10.0.0.1 2606:4700::200:5efe:127.0.0.1 2606:4700::5efe:8.8.8.8
"""

IPV4 = st.ip_addresses(v=4)


@pytest.mark.parametrize("text", PUBLIC.split())
def test_public(text: str) -> None:
    assert public_address(ip_address(text))


@pytest.mark.parametrize("text", NOT_PUBLIC.split())
def test_not_public(text: str) -> None:
    assert not public_address(ip_address(text))


@given(st.ip_addresses())
def test_what_python_knows_as_special_is_not_public(ip: IPv4Address | IPv6Address) -> None:
    # Two that carry IPv4 have a law of their own, below.
    carrier = ip in IPv6Network("::ffff:0:0/96") or ip in IPv6Network("64:ff9b::/96")
    if not carrier and (not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_link_local):
        assert not public_address(ip)


@given(IPV4)
def test_an_address_that_is_carried_is_as_public_as_itself(ip: IPv4Address) -> None:
    number = int(ip)
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        assert public_address(IPv6Address(int(IPv6Address(prefix)) | number)) == public_address(ip)


@given(IPV4, IPV4, st.integers(0, 2**64 - 1), st.integers(0, 2**16 - 1))
def test_an_obsolete_way_to_carry_an_address_is_never_public(
    ip: IPv4Address, other: IPv4Address, prefix: int, flags: int
) -> None:
    number, rest = int(ip), prefix & 0xFFFFFFFF
    forms = {
        "compatible": number,
        "translated": 0xFFFF << 48 | number,
        "6to4": 0x2002 << 112 | number << 80 | prefix,
        "teredo server": 0x20010000 << 96 | number << 64 | flags << 32 | int(other) ^ 0xFFFFFFFF,
        "teredo client": 0x20010000 << 96 | int(other) << 64 | flags << 32 | number ^ 0xFFFFFFFF,
        "local NAT64, /96": 0x0064FF9B0001 << 80 | rest << 32 | number,
        "local NAT64, /48": 0x0064FF9B0001 << 80 | number >> 16 << 64 | (number & 0xFFFF) << 40,
        "ISATAP": prefix << 64 | 0x5EFE << 32 | number,
        "ISATAP, u bit": prefix << 64 | 0x02005EFE << 32 | number,
    }
    assert {name for name, value in forms.items() if public_address(IPv6Address(value))} == set()


ACCEPTED = {
    "https://hooks.example.com": ("hooks.example.com", 443, "/", "hooks.example.com"),
    "HTTPS://Hooks.Example.com:443/a?b=c": ("hooks.example.com", 443, "/a?b=c", "hooks.example.com"),
    "https://hooks.example.com:8443?x=/@": ("hooks.example.com", 8443, "/?x=/@", "hooks.example.com:8443"),
    "https://xn--bcher-kva.example/": ("xn--bcher-kva.example", 443, "/", "xn--bcher-kva.example"),
    "https://8.8.8.8:1024/": ("8.8.8.8", 1024, "/", "8.8.8.8:1024"),
    "https://[2606:4700::1111]:65535/": ("2606:4700::1111", 65535, "/", "[2606:4700::1111]:65535"),
    "https://1.2.3.4.example.com/": ("1.2.3.4.example.com", 443, "/", "1.2.3.4.example.com"),
}


@pytest.mark.parametrize("url", ACCEPTED)
def test_accepts(url: str) -> None:
    assert check_webhook(url) == url
    target = parse_target(url)
    assert (target.host, target.port, target.path, target.authority) == ACCEPTED[url]


REFUSED = {
    "": "https://",
    "http://hooks.example.com/": "https://",
    "ftp://hooks.example.com/": "https://",
    "//hooks.example.com/": "https://",
    "https:/hooks.example.com/": "https://",
    "https://": "host",
    "https:///path": "host",
    "https://:8443/": "host",
    "https://user@hooks.example.com/": "user name",
    "https://user:word@hooks.example.com/": "user name",
    "https://8.8.8.8@127.0.0.1/": "user name",
    "https://hooks.example.com/#here": "fragment",
    "https://hooks.example.com#@127.0.0.1/": "fragment",
    "https://hooks.example.com\\@127.0.0.1/": "backslash",
    "https://hooks.example.com/a b": "space",
    "https://hooks.example.com/\n": "space",
    " https://hooks.example.com/": "space",
    "https://bücher.example/": "ASCII",
    "https://①②⑦.⓪.⓪.①/": "ASCII",
    "https://127。0。0。1/": "ASCII",
    "https://hooks.example.com:0/": "port",
    "https://hooks.example.com:22/": "port",
    "https://hooks.example.com:80/": "port",
    "https://hooks.example.com:1023/": "port",
    "https://hooks.example.com:65536/": "port",
    "https://hooks.example.com:/": "port",
    "https://hooks.example.com:8443:1/": "port",
    "https://hooks.example.com:+443/": "port",
    "https://localhost/": "domain name",
    "https://redis:6379/": "domain name",
    "https://hooks.example.com./": "domain name",
    "https://hooks..example.com/": "domain name",
    "https://-hooks.example.com/": "domain name",
    "https://%31%32%37.0.0.1/": "IPv4",
    "https://hooks%2eexample.com/": "domain name",
    f"https://{'a.' * 127}com/": "domain name",
    "https://127.0.0.1/": "public",
    "https://169.254.169.254/latest/meta-data": "public",
    "https://[::1]/": "public",
    "https://[::ffff:127.0.0.1]/": "public",
    "https://[fd00:ec2::254]/": "public",
    "https://[64:ff9b::7f00:1]/": "public",
    "https://[::1%25eth0]/": "host",
    "https://[::1]x/": "host",
    "https://[127.0.0.1]/": "IPv6",
    "https://[]/": "IPv6",
    "https://2130706433/": "IPv4",
    "https://0x7f000001/": "IPv4",
    "https://0x7f.1/": "IPv4",
    "https://017700000001/": "IPv4",
    "https://0177.0.0.1/": "IPv4",
    "https://0x7f.0x0.0x0.0x1/": "IPv4",
    "https://127.1/": "IPv4",
    "https://8.8.8.010/": "IPv4",
    "https://256.1.1.1/": "IPv4",
    "https://8.8.8.8./": "domain name",
    "https://0/": "IPv4",
    f"https://hooks.example.com/{'a' * 2048}": "2048",
}


@pytest.mark.parametrize("url", REFUSED, ids=lambda url: url[:60])
def test_refuses(url: str) -> None:
    with pytest.raises(ValueError, match=f"^the webhook's URL .*({REFUSED[url]})"):
        check_webhook(url)


@given(IPV4, st.integers(0, 3), st.data())
def test_however_an_ipv4_address_is_written_it_is_refused_or_read_as_that_address(
    ip: IPv4Address, dots: int, data: st.DataObject
) -> None:
    """inet_aton of C reads all of these."""
    octets = list(ip.packed)
    numbers = [*octets[:dots], int.from_bytes(bytes(octets[dots:]))]
    text = ".".join(data.draw(st.sampled_from([str, hex, lambda n: f"0{n:o}"]))(number) for number in numbers)
    assert socket.inet_aton(text) == ip.packed
    try:
        target = parse_target(f"https://{text}/", lambda _: True)
    except ValueError:
        return
    assert target.address == ip


@given(
    st.from_regex(r"https://[a-z0-9.:@\[\]%-]{1,40}[!-~]{0,40}", fullmatch=True)
    | st.from_regex(r"https://([a-z0-9-]{1,4}[.:@%]){1,4}[a-z0-9]{1,4}[/?][!-~]{0,40}", fullmatch=True)
)
def test_what_is_accepted_is_what_another_parser_reads(url: str) -> None:
    try:
        target = parse_target(url, lambda _: True)
    except ValueError:
        return
    other = httpx.URL(url)
    assert (other.scheme, other.port or 443, other.userinfo) == ("https", target.port, b"")
    assert (ip_address(other.host) == target.address) if target.address else (other.host == target.host)
    pinned = httpx.URL(scheme="https", host="192.0.2.1", port=target.port, raw_path=target.path.encode())
    assert pinned.host == "192.0.2.1"
