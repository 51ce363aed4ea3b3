"""`make bench`: every benchmark, on the bundled pipeline."""

from benchmarks.l2p_speed import main

if __name__ == "__main__":
    main()
