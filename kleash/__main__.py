"""`python -m kleash` is the `kleash` command."""

from kleash.cli import main

main()
