"""`make bench`: what a search costs, beside the graphs of others."""

from tests.benchmarks.search import main

if __name__ == "__main__":
    main()
