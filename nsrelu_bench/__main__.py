"""``python -m nsrelu_bench``."""

from nsrelu_bench.cli.app import main

if __name__ == "__main__":
    main()
