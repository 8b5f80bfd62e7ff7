"""`python -m fedsdr`: the command line."""

from fedsdr.cli import main

main()
