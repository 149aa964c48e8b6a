"""The release of all processes; a test holds it equal to pyproject.toml's."""

VERSION = "0.1.0"
