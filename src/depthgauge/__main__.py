"""`python -m depthgauge`."""

from depthgauge.cli import main

if __name__ == "__main__":  # a spawned worker imports this module again
    main(prog_name="depthgauge")
