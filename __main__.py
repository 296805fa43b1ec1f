"""`python -m longroute`."""

from .router.cli import main

main()
