"""Several nodes: an agent each, in network namespaces of its own where they are permitted, else on loopback."""

import contextlib
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass

import numpy as np
import pytest

from depthgauge.parallel import ending, launching

pytestmark = [pytest.mark.alone, pytest.mark.slow]
RATE = 80e6 / 8  # bytes a second of the shaped link
SIZES = (4, 1 << 17, 1 << 19, 1 << 21)  # bytes
PORT = 29400  # torch's own: in a namespace nobody else has it


@dataclass(frozen=True)
class Node:
    """Where an agent runs: the words before its command, its interface."""

    before: tuple[str, ...]
    interface: str


@dataclass(frozen=True)
class Nodes:
    """Two nodes; why they are not in namespaces, and why their link is not shaped, where it is so."""

    places: tuple[Node, ...]
    address: str
    port: int
    unlinked: str = ""
    unshaped: str = ""


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def linked():
    """Two network namespaces and the link between them, with a bandwidth that is known where the kernel shapes it."""
    names = [f"dg{os.getpid()}{end}" for end in "ab"]
    with contextlib.ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        unshaped = ""
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.213.7.{number}/30", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            shaping = ("tbf", "rate", f"{8 * RATE:.0f}bit", "burst", "16kb", "latency", "200ms")
            words = ["tc", "-n", name, "qdisc", "add", "dev", name, "root", *shaping]
            done = subprocess.run(words, check=False, capture_output=True, text=True) if shutil.which("tc") else None
            if done is None or done.returncode:
                unshaped = f"tc shapes no link here: {done.stderr.strip() if done else 'it is not installed'}"
        places = tuple(Node(("ip", "netns", "exec", name), name) for name in names)
        yield Nodes(places, "10.213.7.1", PORT, unshaped=unshaped)


@contextlib.contextmanager
def looped(why):
    """Two nodes on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))
    yield Nodes((Node((), name),) * 2, "127.0.0.1", port, why, why)


@pytest.fixture(scope="module")
def nodes():
    """Two nodes in namespaces, or on loopback where those are not permitted."""
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(linked())
        except (OSError, subprocess.CalledProcessError) as error:
            why = f"no network namespaces here: {getattr(error, 'stderr', None) or error}"
            made = stack.enter_context(looped(why.strip()))
        yield made


@pytest.fixture(scope="module")
def answered(nodes, tmp_path_factory):
    """What the ranks answered, one on each of two nodes."""
    folder = tmp_path_factory.mktemp("nodes")
    launching.prepare(folder, "steps_of_users:time_reductions", (SIZES, 3), limit=60)
    agents = []
    try:
        for number, node in enumerate(nodes.places):
            words = launching.command(folder, 1, nodes=2, node=number, address=nodes.address, port=nodes.port)
            environment = {**launching.environment(1), "GLOO_SOCKET_IFNAME": node.interface}
            agents.append(subprocess.Popen([*node.before, *words], env=environment))
        codes = [agent.wait(120) for agent in agents]
    finally:
        for agent in agents:
            agent.terminate()
            agent.wait(20)
    ends = ending.read(folder, 2, 60)
    assert [end.status for end in ends] == ["ok", "ok"], ending.why(ends)
    assert codes == [0, 0]
    return launching.answers(folder, ends)


def test_a_rank_on_each_of_two_nodes_reduces_with_the_other(nodes, answered):
    assert [answer["sum"] for answer in answered] == [3.0, 3.0]
    assert {answer["address"] for answer in answered} == {nodes.address}
    assert [answer["local"] for answer in answered] == [0, 0]
    assert (answered[0]["network"] == answered[1]["network"]) is bool(nodes.unlinked)


def test_the_time_of_an_all_reduce_has_the_bandwidth_of_the_link(nodes, answered):
    """Each of two ranks sends and receives n bytes."""
    if nodes.unshaped:
        pytest.skip(nodes.unshaped)
    seconds = np.maximum(*(np.median(answer["seconds"], axis=1) for answer in answered))
    slope = (seconds[-1] - seconds[-2]) / (SIZES[-1] - SIZES[-2])
    assert slope * RATE == pytest.approx(1.0, abs=0.25), seconds
