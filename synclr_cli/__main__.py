"""Run the command line: ``python -m synclr_cli train ...`` (the form torchrun needs)."""

from synclr_cli.cli import main

if __name__ == "__main__":
    main()
