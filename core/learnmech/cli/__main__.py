"""`python -m learnmech.cli` is the `learnmech` command."""

from learnmech.cli.app import main

if __name__ == "__main__":
    main()
