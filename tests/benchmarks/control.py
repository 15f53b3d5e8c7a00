#!/usr/bin/env python3
"""Control plane: start of a daemon to serving, idle memory, latency of `hkctl node list` over three daemons.

Floors, measured in the same run: a process that starts, loads the same libraries and ends (hyperkerneld --version, hkctl version
--client). Medians.
"""
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time

from figure import emit

BIN = pathlib.Path(os.environ["HK_BIN"])
STARTS, LISTS, SETTLE_S, READY_S = 15, 60, 3, 20
NODES = "abc"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def elapsed_ms(command):
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.monotonic() - start) * 1000


def write_config(state, frames, node):
    peers = "".join(f'peers {{ name: "{peer}" admin: "unix:{state}/{peer}/admin.sock" }}\n' for peer in NODES)
    path = state / f"{node}.textproto"
    path.write_text(f'name: "{node}"\ncluster: "bench"\ndata_directory: "{state}/{node}/data"\n'
                    f'frame_store {{ directory: "{frames}/{node}" budget_mib: 64 }}\n'
                    f'listen {{ admin: "unix:{state}/{node}/admin.sock" data: "127.0.0.1:{free_port()}" metrics: "127.0.0.1:{free_port()}" }}\n{peers}')
    return path


def start(config, log):
    """Starts a daemon; gives it and the milliseconds until it said READY=1 (sd_notify), which is after it serves."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        name = f"\0hk-bench-{os.getpid()}-{time.monotonic_ns()}"
        notify.bind(name)
        notify.settimeout(READY_S)
        begin = time.monotonic()
        daemon = subprocess.Popen([BIN / "hyperkerneld", "--config", config], stdout=log, stderr=log,
                                  env={**os.environ, "NOTIFY_SOCKET": name.replace("\0", "@")})
        assert b"READY=1" in notify.recv(1024)
        return daemon, (time.monotonic() - begin) * 1000


def stop(daemon):
    daemon.send_signal(signal.SIGTERM)
    code = daemon.wait(30)
    assert code == 0, f"the daemon ended with {code}"


def rss_anon_mib(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def node_list(state):
    return [BIN / "hkctl", "--endpoint", f"unix:{state}/a/admin.sock", "node", "list", "-o", "json"]


def all_up(state):
    run = subprocess.run(node_list(state), capture_output=True, text=True)
    return run.returncode == 0 and [m["state"] for m in json.loads(run.stdout)["members"]] == ["MEMBER_STATE_SELF"] + ["MEMBER_STATE_UP"] * 2


def measure(state, frames, log, daemons):
    configs = {node: write_config(state, frames, node) for node in NODES}
    starts = []
    for _ in range(STARTS):
        daemon, ms = start(configs["a"], log)
        daemons.append(daemon)
        starts.append(ms)
        stop(daemons.pop())
    floor = statistics.median(elapsed_ms([BIN / "hyperkerneld", "--version"]) for _ in range(STARTS))
    emit("control.start_to_serving", statistics.median(starts), "ms", floor, 300, worst=round(max(starts), 1))

    daemons.extend(start(configs[node], log)[0] for node in NODES)
    deadline = time.monotonic() + READY_S
    while not all_up(state):
        assert time.monotonic() < deadline, "the daemons did not join"
    lists, floors = [], []
    for _ in range(LISTS):  # alternating: both see the same disturbances
        lists.append(elapsed_ms(node_list(state)))
        floors.append(elapsed_ms([BIN / "hkctl", "version", "--client"]))
    emit("control.node_list", statistics.median(lists), "ms", statistics.median(floors), 50, p95=round(sorted(lists)[int(LISTS * 0.95)], 1))
    time.sleep(SETTLE_S)  # idle is what is measured
    emit("control.idle_rss_anon", max(rss_anon_mib(daemon.pid) for daemon in daemons), "MiB", None, 40)


def main():
    state = pathlib.Path(tempfile.mkdtemp(prefix="hk-bench."))
    frames = pathlib.Path("/dev/shm") / state.name
    daemons = []
    with open(state / "log", "w") as log:
        try:
            measure(state, frames, log, daemons)
        finally:
            for daemon in daemons:
                daemon.kill()
                daemon.wait()
            for node in NODES:
                subprocess.run(["umount", frames / node], stderr=subprocess.DEVNULL)
            shutil.rmtree(frames, ignore_errors=True)
            shutil.rmtree(state, ignore_errors=True)


main()
