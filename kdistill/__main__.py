"""``python -m kdistill``."""

from kdistill.cli import main

main()
