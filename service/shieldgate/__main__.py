"""`python -m shieldgate`: the command line of this interpreter, wherever its script is."""

from shieldgate.cli import main

main()
