"""`python -m pipeline` is the same as `surgery`."""

from pipeline.cli.main import main

if __name__ == "__main__":
    main()
