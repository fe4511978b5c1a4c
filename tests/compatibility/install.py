"""Installs each public package of the entries by itself: one that cannot be had leaves the others as they are."""

from __future__ import annotations

import subprocess
import sys

from zoo.catalog import ALONE, PACKAGES

PIP = (sys.executable, "-m", "pip")


def main() -> None:
    for package in PACKAGES:
        options = ["--no-deps"] if package in ALONE else []
        if subprocess.run([*PIP, "install", "--quiet", *options, package], check=False).returncode:
            print(f"{package} cannot be installed; its entries are skipped")  # noqa: T201 # what a person reads
    if subprocess.run([sys.executable, "-c", "import torchvision"], check=False, capture_output=True).returncode:
        # A build for another torch: packages that find it import it, and fail.
        subprocess.run([*PIP, "uninstall", "--quiet", "--yes", "torchvision"], check=False)


if __name__ == "__main__":
    main()
