"""The units of ``packaging/systemd`` under a systemd that is process 1, installed as the documentation says.

A guest with this host's systemd is booted once, and once again in the end: what is told below happens to one
host, and each part begins with what the one before has left.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ringway.testing.guest import Job, Output
from ringway.testing.service_host import ServiceHost

from . import guests

ROOT: Final = Path(__file__).parents[3]
PAGE: Final = ROOT / "docs" / "how-to" / "run-the-daemon.md"
DAEMON, SPAWNER = "ringwayd.service", "ringway-spawner.service"
SOCKETS: Final = "ringway.socket ringway-ro.socket"
DISK: Final = "/srv/disk.img"
#: Bits of capability.h that the daemon has and that it lacks.
CAP_SYS_MODULE, CAP_NET_ADMIN = 1 << 16, 1 << 12
_SECTION: Final = re.compile(r"^## As a service\n.*?^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def documented() -> list[str]:
    """The commands that install the units and, last, the one that starts and enables them."""
    found = _SECTION.search(PAGE.read_text())
    assert found is not None
    *lines, last = found[1].strip().splitlines()
    assert last.startswith("systemctl enable --now ")
    return [*lines, last]


def ringway(host: ServiceHost, *words: str, user: str = "root") -> Output:
    """Run the command as somebody."""
    return host.try_run(f"runuser -u {user} -- ringway {shlex.join(words)}")


def endpoints(host: ServiceHost) -> dict[str, Any]:
    """What the daemon tells, by name."""
    output = ringway(host, "endpoint", "list", "-o", "json")
    assert output.status == 0, output.text
    return {info["name"]: info for info in json.loads(output.text)}


def create(host: ServiceHost, *words: str, user: str = "root") -> None:
    """Create an endpoint. It is an error if that fails."""
    output = ringway(host, "endpoint", "create", *words, user=user)
    assert output.status == 0, output.text


def prop(host: ServiceHost, unit: str, name: str) -> str:
    """A property of a unit's."""
    return host.run(f"systemctl show -P {name} {unit}").strip()


def processes(host: ServiceHost, unit: str) -> dict[str, str]:
    """Process ids and names in a unit's cgroup, whether the unit is active or not."""
    group = f"/sys/fs/cgroup/system.slice/{unit}/cgroup.procs"
    listing = host.run(f"for p in $(cat {group}); do echo $p $(cat /proc/$p/comm); done")
    return dict(line.split(maxsplit=1) for line in listing.splitlines())


def targets(host: ServiceHost) -> list[str]:
    """The process ids of targets, which are the spawner's, and what the kernel has."""
    found = [pid for pid, name in processes(host, SPAWNER).items() if name == "ringway-target"]
    return found + host.run("stat -c '%n %i' /sys/kernel/config/target/vhost/naa.*").splitlines()


def changes(host: ServiceHost) -> Iterator[tuple[str, str, int]]:
    """What the journal has of changes: object, result, who."""
    text = host.run(f"journalctl --sync && journalctl _SYSTEMD_UNIT={DAEMON} -o cat")
    for entry in map(json.loads, text.splitlines()):
        if entry.get("event") == "change":
            yield entry["object"], entry["result"], entry["uid"]


# The parts


def install(host: ServiceHost) -> None:
    """The programs, then the units, groups and folders; and some people."""
    host.install_programs()
    *lines, _ = documented()
    host.run("set -e\n" + "\n".join([f"cd {shlex.quote(str(ROOT))}", *lines]))
    for name, group in (("alice", "ringway-admin"), ("monitoring", "ringway"), ("nobodys", "kvm")):
        host.run(f"useradd --system {name} && usermod -a -G {group} {name}")


def the_first_client_starts_it(host: ServiceHost) -> None:
    """Socket activation, Type=notify, and who may come by which socket."""
    host.run(f"systemctl start {SOCKETS}")
    modes = host.run("stat -c '%a %U %G' /run/ringway/api.sock /run/ringway/ro.sock").splitlines()
    assert modes == ["660 root ringway-admin", "660 root ringway"]
    assert prop(host, DAEMON, "ActiveState") == prop(host, SPAWNER, "ActiveState") == "inactive"
    ringway(host, "endpoint", "list")  # which gives up after 30 s, on a machine that is busy
    host.run(f"until systemctl -q is-active {DAEMON}; do sleep 0.5; done")
    assert prop(host, SPAWNER, "ActiveState") == "active"
    assert endpoints(host) == {}
    assert prop(host, DAEMON, "StatusText") == "0 endpoints, 0 degraded"
    assert host.run("stat -c '%a %U %G' /run/ringway/api.sock").strip() == modes[0]


def groups_say_who_may_what(host: ServiceHost) -> None:
    """Look, change, neither."""
    assert ringway(host, "endpoint", "list", user="monitoring").status == 0
    for user in ("monitoring", "nobodys"):
        refused = ringway(host, "endpoint", "create", "no", "--lun", "0=ram:1M", user=user)
        assert (refused.status, "hint: " in refused.text) == (4, True), refused.text
    assert ringway(host, "endpoint", "list", user="nobodys").status == 4


def both_engines_serve_in_spite_of_the_hardening(host: ServiceHost) -> Job:
    """Endpoints whose targets are the spawner's and nobody else's. :returns: their guests."""
    host.run(f"truncate -s 8M {DISK}")
    create(host, "user0", "--lun", "0=ram:1M", user="alice")
    create(host, "lio0", "--engine", "lio", "--lun", f"0={DISK}")
    found = endpoints(host)
    assert {name: info["state"] for name, info in found.items()} == {"user0": "ready", "lio0": "ready"}
    assert targets(host)[0] == str(found["user0"]["pid"])
    assert list(processes(host, DAEMON)) == [prop(host, DAEMON, "MainPID")]
    assert host.run("stat -c '%a %G' /run/ringway/endpoint/user0.sock").strip() == "660 kvm"
    return attach(host, found)


def attach(host: ServiceHost, found: dict[str, Any]) -> Job:
    """Begin with I/O on both."""
    words = (guests.__file__, found["user0"]["socket"], found["lio0"]["wwpn"])
    sources = ROOT / "src"
    job = host.start(f"PYTHONPATH={sources}:{ROOT} exec {sys.executable} {shlex.join(words)}")
    host.run(f"until [ -e {guests.ATTACHED} ] || [ -e {job.place} ]; do sleep 0.5; done")
    assert job.running(), job.wait()
    return job


def the_hardening_is_there(host: ServiceHost) -> None:
    """Of what the unit says, what the kernel shows."""
    status = host.run(f"cat /proc/{prop(host, DAEMON, 'MainPID')}/status")
    shown = dict(re.findall(r"^(\w+):\s+(\S+)$", status, re.MULTILINE))
    assert (shown["Seccomp"], shown["NoNewPrivs"]) == ("2", "1")
    bounding = int(shown["CapBnd"], 16)
    assert (bounding & CAP_SYS_MODULE, bounding & CAP_NET_ADMIN) == (CAP_SYS_MODULE, 0)


def the_journal_says_who_did_what(host: ServiceHost) -> None:
    """Also of who was refused. What takes longer than who asked would wait is told as it runs."""
    alice, monitoring = (int(host.run(f"id -u {name}")) for name in ("alice", "monitoring"))
    refused, *done = changes(host)
    assert refused == ("/1.0/endpoints", "permission-denied", monitoring)
    assert [(what, who) for what, _, who in done] == [("endpoint/user0", alice), ("endpoint/lio0", 0)]
    assert {result for _, result, _ in done} <= {"done", "running"}


def a_reload_reads_the_configuration(host: ServiceHost) -> None:
    """And changes no process."""
    before = prop(host, DAEMON, "MainPID")
    host.run("mkdir -p /etc/ringway/conf.d && echo '[daemon]\nreconcile_s = 5' >/etc/ringway/conf.d/a.toml")
    host.run("systemctl reload ringwayd")
    host.run(
        f"until journalctl -u {DAEMON} -o cat | grep -q 'message.*daemon.reconcile_s'; do sleep 0.5; done"
    )
    assert prop(host, DAEMON, "MainPID") == before


def the_daemon_is_another(host: ServiceHost, command: str) -> None:
    """After a command there is another daemon, which has adopted the same targets."""
    daemon, there = prop(host, DAEMON, "MainPID"), targets(host)
    host.run(command)
    another = f"! systemctl show -P MainPID {DAEMON} | grep -qx -e 0 -e {daemon}"
    host.run(f"until {another} && systemctl -q is-active {DAEMON}; do sleep 0.5; done")
    found = endpoints(host)
    assert {name: info["state"] for name, info in found.items()} == {"user0": "ready", "lio0": "ready"}
    assert (str(found["user0"]["pid"]), found["user0"]["restarts"]) == (there[0], 0)
    assert targets(host) == there


def what_kept_it_from_starting_goes_away(host: ServiceHost) -> None:
    """Killed, it cannot start for more than the five times that systemd tries by itself; then it can."""
    folder = f"/run/systemd/system/{DAEMON}.d"
    drop_in = f"{folder}/broken.conf"
    the_daemon_is_another(
        host,
        f"mkdir {folder} && printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\n' >{drop_in}"
        f" && systemctl daemon-reload && systemctl kill -s SIGKILL {DAEMON}"
        f" && until [ $(systemctl show -P NRestarts {DAEMON}) -gt 6 ]; do sleep 0.5; done"
        f" && rm {drop_in} && systemctl daemon-reload",
    )


def the_spawner_is_another(host: ServiceHost) -> None:
    """It takes no target along, and starts others."""
    before, there = prop(host, SPAWNER, "MainPID"), targets(host)
    host.run(f"systemctl restart {SPAWNER}")
    assert prop(host, SPAWNER, "MainPID") != before
    create(host, "more", "--lun", "0=ram:1M")
    assert set(targets(host)) > set(there)
    assert ringway(host, "endpoint", "delete", "more").status == 0
    assert targets(host) == there


def a_daemon_that_hangs_is_ended(host: ServiceHost) -> None:
    """By the watchdog, which is hasty here alone: the daemon is stopped, and tells nothing any more."""
    hasty = f"/run/systemd/system/{DAEMON}.d/hasty.conf"
    host.run(f"echo '[Service]\nWatchdogSec=10' >{hasty} && systemctl daemon-reload")
    the_daemon_is_another(host, "systemctl restart ringwayd")
    the_daemon_is_another(host, f"systemctl kill -s SIGSTOP {DAEMON}")
    assert "Watchdog timeout" in host.run(f"journalctl --sync && journalctl -u {DAEMON} -o cat")
    host.run(f"rm {hasty} && systemctl daemon-reload")


def all_is_stopped_and_goes_on(host: ServiceHost) -> None:
    """Nobody is there but the targets; who starts again adopts them."""
    there = targets(host)
    host.run(f"systemctl stop {DAEMON} {SOCKETS} {SPAWNER}")
    assert ringway(host, "endpoint", "list").status == 4
    assert targets(host) == there
    the_daemon_is_another(host, documented()[-1])


def guests_noticed_nothing(host: ServiceHost, job: Job) -> None:
    """Not one command failed, all the time."""
    assert job.running(), job.wait()
    host.run(f"pkill -f {guests.__file__}")
    job.wait()


def all_comes_back_after_a_reboot(host: ServiceHost) -> None:
    """By itself, as it was; and nobody held up the shutdown."""
    before, disk = endpoints(host), host.run(f"sha256sum {DISK}")
    host.reboot()
    assert host.try_run("systemctl is-system-running --wait").text == "running\n"
    assert "SIGKILL" not in host.qemu.console.collected().decode("utf-8", "replace")
    after = endpoints(host)
    assert {name: info["state"] for name, info in after.items()} == {"user0": "ready", "lio0": "ready"}
    assert {name: info["spec"] for name, info in after.items()} == {
        name: info["spec"] for name, info in before.items()
    }
    assert host.run(f"sha256sum {DISK}") == disk
    guests_noticed_nothing(host, attach(host, after))


def nothing_is_left(host: ServiceHost) -> None:
    """Of endpoints that are deleted."""
    for name in ("user0", "lio0"):
        assert ringway(host, "endpoint", "delete", name).status == 0
    assert host.run("find /run/ringway/endpoint /run/ringway/lio -mindepth 1") == ""
    assert host.run("find /sys/kernel/config/target/vhost -name 'naa.*'") == ""
    assert host.run("systemctl --failed --plain --no-legend") == ""


@pytest.mark.timeout(1200)
def test_a_host_with_systemd(tmp_path: Path) -> None:
    with ServiceHost(tmp_path / "disk.img") as host:
        install(host)
        the_first_client_starts_it(host)
        groups_say_who_may_what(host)
        load = both_engines_serve_in_spite_of_the_hardening(host)
        the_hardening_is_there(host)
        the_journal_says_who_did_what(host)
        a_reload_reads_the_configuration(host)
        the_daemon_is_another(host, "systemctl restart ringwayd")
        what_kept_it_from_starting_goes_away(host)
        the_spawner_is_another(host)
        a_daemon_that_hangs_is_ended(host)
        all_is_stopped_and_goes_on(host)
        guests_noticed_nothing(host, load)
        all_comes_back_after_a_reboot(host)
        nothing_is_left(host)
