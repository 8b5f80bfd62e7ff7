"""The command ``python -m tools.demo_data``."""

from tools.demo_data import main

main()
