"""URLs that must not reach a server of our own network. `{port}` is the canary's, which listens on loopback."""

# hosts that parsers take for 127.0.0.1, ::1, or another address that is not public
HOSTS = """
127.0.0.1 127.0.0.2 127.1 127.0.1 127.255.255.254 0 0.0.0.0 2130706433 017700000001 0177.0.0.1 0177.0.0.01
0x7f.0.0.1 0x7f000001 0x7F.1 0x7f.0x0.0x0.0x1 0x 127.0.0.1. 127.0.0.0x1 0x7f.1 127.0x1 4294967295 256.256.256.256
127.0.0.01 127.00.0.1 127.0.0.1.1 00000177.0.0.1 0x000000007f000001 18446744071562067969 127.0.0.1e0 1.0x7f000001
localhost LOCALHOST LocalHost localhost. localhost.localdomain ip6-localhost ip6-loopback a.localhost
[::1] [0:0:0:0:0:0:0:1] [0000::1] [::] [::0] [::ffff:127.0.0.1] [::ffff:7f00:1] [0:0:0:0:0:ffff:127.0.0.1]
[::127.0.0.1] [::7f00:1] [64:ff9b::127.0.0.1] [64:ff9b::7f00:1] [64:ff9b:1::7f00:1] [2002:7f00:1::]
[2002:7f00:0001::1] [2002:a9fe:a9fe::] [2001:0:7f00:1::] [2001:db8::1] [fe80::1] [fe80::1%lo] [fe80::1%25lo]
[::1%lo] [::1%25lo] [::1%250] [fec0::1] [fc00::1] [fd00:ec2::254] [ff02::1] [ff0e::1] [100::1] [3fff::1] [1::]
[::ffff:0:127.0.0.1] [::ffff:169.254.169.254] [::ffff:10.0.0.1] [v1.127.0.0.1] [127.0.0.1] [::1 ::1 ]::1[ [] [::1
10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 192.168.1.254 169.254.169.254 169.254.170.2
100.64.0.1 100.100.100.200 100.127.255.255 192.0.0.192 192.0.0.1 192.88.99.1 198.18.0.1 198.51.100.1 203.0.113.1
192.0.2.1 168.63.129.16 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 0.1.2.3 2852039166 0xa9fea9fe
0251.254.169.254
169.254.43518 169.16689662 0xa9.0xfe.0xa9.0xfe
private.test mixed.test mapped.test sixtofour.test nat64.test zone.test metadata.test cgnat.test
empty.test garbage.test
127.0.0.1%00.example.com 127%2e0%2e0%2e1 %31%32%37.0.0.1 %6c%6f%63alhost localhost%00 127.0.0.1%0d%0a 127.0.0.1%23
①②⑦.⓪.⓪.① １２７.０.０.１ 127。0。0。1 127．0．0．1 127｡0｡0｡1 ⑯⑨。②⑤④。⑯⑨｡②⑤④
ｌｏｃａｌｈｏｓｔ
lo\u00adcalhost local\u200bhost loc\u212alhost
ⓛⓞⓒⓐⓛⓗⓞⓢⓣ 127.0.0.1\u3002 \uff3b::1\uff3d
""".split()  # noqa: SIM905
PLAIN = [f"https://{host}:{{port}}/" for host in HOSTS]
FORMS = [
    "http://127.0.0.1:{port}/",
    "http://public.test:{port}/",
    "HTTPS://127.0.0.1:{port}/",
    "https:/127.0.0.1:{port}/",
    "https:127.0.0.1:{port}/",
    "https:///127.0.0.1:{port}/",
    "https:\\\\127.0.0.1:{port}\\",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}",
    "",
    " ",
    "https://",
    "https://:{port}/",
    "https://public.test@127.0.0.1:{port}/",
    "https://public.test:443@127.0.0.1:{port}/",
    "https://user:pass@public.test:{port}/",
    "https://@127.0.0.1:{port}/",
    "https://public.test\\@127.0.0.1:{port}/",
    "https://127.0.0.1:{port}\\@public.test/",
    "https://127.0.0.1:{port}\\.public.test/",
    "https://public.test#@127.0.0.1:{port}/",
    "https://127.0.0.1:{port}#@public.test/",
    "https://127.0.0.1:{port}?@public.test/",
    "https://127.0.0.1:{port};@public.test/",
    "https://127.0.0.1:{port}/#x",
    "https://public.test:{port}/#127.0.0.1",
    "https://public.test 127.0.0.1:{port}/",
    "https://127.0.0.1\t:{port}/",
    "https://127.0.0.1\n:{port}/",
    "https://127.0.0.1\r\n:{port}/",
    "ht\ntps://127.0.0.1:{port}/",
    " https://127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/ ",
    "https://127.0.0.1:{port}/\n",
    "https://127.0.0.1:{port}/\x00",
    "https://\x00127.0.0.1:{port}/",
    "https://127.0.0.1\u2028:{port}/",
    "https://public.test:{port}/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "https://public.test\r\nHost:127.0.0.1:{port}/",
    "https://public.test:22/",
    "https://public.test:80/",
    "https://public.test:6379/",
    "https://public.test:0/",
    "https://public.test:65536/",
    "https://public.test:99999/",
    "https://public.test:-1/",
    "https://public.test:+{port}/",
    "https://public.test: {port}/",
    "https://public.test:{port}:{port}/",
    "https://127.0.0.1:０{port}/",
    "https://-.-:{port}/é",
    "https://" + "a" * 64 + ".test:{port}/",
    "https://public.test:{port}/" + "a" * 2000,
    "https://.:{port}/",
    "https://..:{port}/",
    "https://public..test:{port}/",
    "https://*.test:{port}/",
    *(
        f"{scheme}://127.0.0.1:{{port}}/"
        for scheme in "ftp file gopher dict ldap ws wss tftp jar netdoc unix https+unix".split()  # noqa: SIM905
    ),
    "file:///etc/passwd",
    "data:text/plain,hello",
    "javascript:alert(1)",
    "unix:/run/kleash.sock",
    "http+unix://%2Frun%2Fkleash.sock/",
]  # fmt: skip
URLS = list(dict.fromkeys(PLAIN + FORMS))
# what a hostile name server says
NAMES = {
    "private.test": ["10.0.0.1"],
    "mixed.test": ["93.184.216.34", "127.0.0.1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "sixtofour.test": ["2002:7f00:1::"],
    "nat64.test": ["64:ff9b::7f00:1"],
    "zone.test": ["fe80::1%lo"],
    "metadata.test": ["169.254.169.254"],
    "cgnat.test": ["100.64.0.1"],
    "empty.test": [],
    "garbage.test": ["127.0.0.1\n93.184.216.34"],
}
