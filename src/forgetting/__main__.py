"""`python -m forgetting`: the command line, also for `accelerate launch -m forgetting`."""

from forgetting.cli import entry

if __name__ == "__main__":
    entry()
