"""`pytest` runs the tests, `pytest --benchmark` the benchmarks."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the flag `--benchmark`."""
    parser.addoption(
        "--benchmark",
        action="store_true",
        dest="run_benchmarks",
        help="run the benchmarks of benchmarks/ and nothing else; goes with every option of pytest-benchmark",
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads its own options
def pytest_configure(config: pytest.Config) -> None:
    """Turns the flag into folder and options.

    Raises:
        UsageError: pytest-benchmark is not there.
    """
    if not config.getoption("run_benchmarks"):
        return
    if not config.pluginmanager.has_plugin("benchmark"):
        raise pytest.UsageError("--benchmark needs pytest-benchmark: pip install pytest-benchmark")
    if config.args_source is not pytest.Config.ArgsSource.ARGS:  # files or folders that were named stay
        config.args = [str(config.rootpath / "benchmarks")]
    # Without timing, pytest-benchmark forbids its own --benchmark-only; the folder holds nothing else anyway.
    untimed = config.getoption("benchmark_disable") and not config.getoption("benchmark_enable")
    config.option.benchmark_only = not (untimed or config.getoption("benchmark_skip"))
