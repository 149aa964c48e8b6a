"""Strings that lead out of a folder if something on the way decodes, joins or follows them without care."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

DOTS = [
    *(
        "..",
        "%2e%2e",
        "%2E%2E",
        "%252e%252e",
        "%25252e%25252e",
        ".%2e",
        "%2e.",
        "..;",
        "...",
        "....",
        ". .",
        ".. ",
    ),
    *(
        "..%00",
        "..\u200b",
        "\u2025",
        "\uff0e\uff0e",
        "\u3002\u3002",
        "..\u0301",
        "%c0%ae%c0%ae",
        "%e0%80%ae%e0%80%ae",
    ),
    *(
        "%uff0e%uff0e",
        "%u002e%u002e",
        "\x2e\x2e",
        "..%0a",
        "..%09",
        "..\\..",
        "$..",
        "~",
        "*",
        "{..}",
        "${HOME}",
    ),
]
SLASHES = [
    *(
        "/",
        "//",
        "///",
        "/./",
        "\\",
        "\\\\",
        "%2f",
        "%2F",
        "%252f",
        "%5c",
        "%255c",
        "%c0%af",
        "%e0%80%af",
        "\u2215",
    ),
    *("\u2044", "\uff0f", "\uff3c", "/\\", "\\/", "%2f%2f", ";/", "%00/"),
]
DEVICES = [
    *(
        "CON",
        "NUL",
        "AUX",
        "PRN",
        "COM1",
        "LPT1",
        "nul.txt",
        "con/../..",
        "CONIN$",
        "\\\\.\\C:",
        "C:",
        "C:\\",
        "c:/",
    ),
    *(
        "/dev/stdin",
        "/dev/fd/0",
        "/dev/zero",
        "/dev/tty",
        "/proc/self/environ",
        "/proc/self/cwd",
        "/proc/1/root/etc",
    ),
]
SCHEMES = [
    *(
        "file:",
        "file://",
        "file:///",
        "FILE://localhost/",
        "file://evil/",
        "http://127.0.0.1/",
        "ftp://x/",
        "data:,",
    ),
    *(
        "hf://",
        "s3://x/",
        "gs://x/",
        "memory://",
        "zip://",
        "jar:file:",
        "\\\\evil\\share\\",
        "//evil/share/",
        "smb://",
    ),
    *(
        "git+ssh://",
        "~/",
        "~root/",
        "$HOME/",
        "%HOME%/",
        "`id`",
        "$(id)",
        "|id",
        ";id",
        "\n",
        "\r\n",
        "-rf ",
        "--help",
    ),
]


def place_links(root: Path, outside: Path) -> list[str]:
    """Links of all kinds in a root that lead out of it, by name."""
    (root / "link-to-folder").symlink_to(outside)
    (root / "link-to-file").symlink_to(outside / "config.json")
    (root / "link-to-link").symlink_to(root / "link-to-folder")
    (root / "link-up").symlink_to("..")
    (root / "link-to-root").symlink_to("/")
    (root / "link-to-proc").symlink_to("/proc/self/root")
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to(outside / "nothing")
    model = root / "linked-config"
    model.mkdir()
    (model / "config.json").symlink_to(outside / "config.json")
    adapter = root / "linked-adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").symlink_to(outside / "adapter_config.json")
    os.mkfifo(root / "pipe")
    names = [
        "link-to-folder",
        "link-to-file",
        "link-to-link",
        "link-up",
        "link-to-root",
        "link-to-proc",
        "loop",
    ]
    return [*names, "dangling", "linked-config", "linked-adapter", "pipe"]


def hostile_paths(root: Path, outside: Path) -> list[str]:
    """More than 400 of them; `root` holds links and `plain`, a model folder, of which none is meant."""
    links = place_links(root, outside)
    return list(dict.fromkeys(path for path in _all(root, outside, links) if path))


def _all(root: Path, outside: Path, links: list[str]) -> Iterator[str]:
    target = outside.name
    for dots in DOTS:
        for slash in SLASHES[:8]:
            yield f"plain{slash}{dots}{slash}{dots}{slash}{target}"
    for slash in SLASHES:
        yield f".{slash}..{slash}{target}"
        yield f"..{slash}{target}{slash}secret.jsonl"
    for up in range(1, 30):
        yield "../" * up + "etc/passwd"
    for name in links:
        yield from (f"./{name}", f"{name}/", f"{root}/{name}", f"plain/../{name}", f"{name}/{target}")
        yield from (f"{name}/secret.jsonl", f"{name}/etc/passwd", f"{name}/.", f"{name}/../{target}")
    for scheme in SCHEMES:
        yield from (f"{scheme}{outside}", f"{scheme}etc/passwd")
    yield from DEVICES
    whole = str(outside)
    yield from (
        whole,
        whole + "/",
        whole + "/secret.jsonl",
        whole.upper(),
        f"/{whole}",
        f"{whole}\0",
        f"{whole}\0.json",
    )
    yield from (
        f"{root}-evil",
        f"{root}/../{target}",
        f"{root}/plain\0",
        f"{root}/./../{target}",
        "/",
        "//",
        "/..",
        "..",
    )
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        yield unicodedata.normalize(form, f"../\u00e9\ufb01/../{target}")
    yield from (
        "a" * 4097,
        "a/" * 2050,
        "../" * 1366,
        "/" * 4096,
        "\u00e9" * 4096,
        "a" * 255 + "/" + "b" * 256,
    )
    yield from (
        "plain.",
        "plain ",
        "plain...",
        " plain",
        "plain\t",
        "plain:stream",
        "plain::$DATA",
        "PLAIN",
        "./PLAIN",
    )
    yield from (
        "job_" + "a" * 32 + "@../../x",
        "job_" + "0" * 32 + "@final/../..",
        "job_@final",
        "job_" + "a" * 32 + "@",
    )
