"""`python -m alignkit` is `alignkit`."""

from alignkit.cli import main

main(prog_name="alignkit")
