"""`python -m scratchlm`: the same as the `scratchlm` command."""

from scratchlm.cli import command

if __name__ == "__main__":
    command()
