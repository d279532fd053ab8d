"""`python -m lra_tasks`: the command `lra`, where scripts are not on the PATH."""

from lra_tasks.cli.main import main

if __name__ == "__main__":
    main()
