"""``python -m legrad.cli``."""

from legrad.cli.main import main

main()
