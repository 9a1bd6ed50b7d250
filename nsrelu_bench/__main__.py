"""``python -m nsrelu_bench``."""

from nsrelu_bench.cli import main

if __name__ == "__main__":
    main()
