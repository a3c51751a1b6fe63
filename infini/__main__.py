"""`python -m infini` is the command `infini`."""

from infini.cli import main

if __name__ == "__main__":
    main()
