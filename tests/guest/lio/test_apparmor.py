"""libvirt's guests under AppArmor: what libvirt's profiles let QEMU reach, and what only our rules do.

Profiles are Debian's, loaded as a boot loads them, and the kernel enforces them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ringway.errors import ConflictError, GuestError
from ringway.guest.base import Wish
from ringway.guest.libvirt import LibvirtHypervisor
from ringway.guest.libvirt.confinement import (
    FEATURES,
    RULES,
    Profile,
    check_hot_plug,
    looks_at_sockets,
    may_use,
)
from ringway.model import EndpointSpec, Face, PortMode, PortSpec
from ringway.testing.bootsector import LetGo, Load, install
from ringway.testing.daemon import Daemon
from ringway.testing.libvirtd import Libvirtd
from ringway.testing.waiting import wait_until

from .engine import MIB, driver, endpoint, image, lun
from .nested import SLOW_S, NestedGuest

WORK: Final = Load(blocks=4)
OURS: Final = Path(__file__).parents[3] / "packaging" / "apparmor" / "ringway"
PROFILES: Final = ("usr.sbin.libvirtd", "usr.lib.libvirt.virt-aa-helper")
INSTALL: Final = f"install packaging/apparmor/ringway as {RULES}"
#: The kernel that Debian compiles profiles for.
PINNED: Final = Path("/usr/share/apparmor-features/features")
#: The folder that the daemon of a host has, and that our rules name.
RUN: Final = Path("/run/ringway")
PORTS: Final = RUN / "port"
KERNELS: Final = Path("/dev/vhost-scsi")
CONFIG: Final = """\
[lio]
enabled = false
[guests]
enabled = true
uri = "{uri}"
"""


@pytest.fixture(scope="module", autouse=True)
def profiles() -> Iterator[None]:
    """libvirt's daemon and its helper are confined while these tests run."""
    subprocess.run(["mount", "-t", "securityfs", "securityfs", FEATURES.parents[1]], check=True)
    paths = [f"/etc/apparmor.d/{name}" for name in PROFILES]
    subprocess.run(["apparmor_parser", "-r", *paths], check=True, timeout=SLOW_S)
    yield
    subprocess.run(["apparmor_parser", "-R", *paths], check=True, timeout=SLOW_S)
    subprocess.run(["umount", FEATURES.parents[1]], check=True)


@pytest.fixture(scope="module")
def libvirtd(
    profiles: None, tmp_path_factory: pytest.TempPathFactory, capabilities: Path
) -> Iterator[Libvirtd]:
    settings = {"security_driver": "apparmor"}
    with Libvirtd(tmp_path_factory.mktemp("libvirt"), cache=capabilities, qemu=settings) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def hypervisor(libvirtd: Libvirtd) -> Iterator[LibvirtHypervisor]:
    with contextlib.closing(LibvirtHypervisor(libvirtd.uri)) as found:
        yield found


@pytest.fixture(scope="module")
def daemon(libvirtd: Libvirtd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One with its sockets where a host has them, and endpoints 's0', 's1', 'b0' and 'b1' of a MiB."""
    folder = tmp_path_factory.mktemp("d")
    RUN.mkdir()
    (folder / "run").symlink_to(RUN)
    with Daemon(folder) as found:
        found.configure(CONFIG.format(uri=libvirtd.uri))
        found.start()
        for name in ("s0", "s1", "b0", "b1"):
            image = folder / f"{name}.img"
            image.write_bytes(bytes(MIB))
            install(image, WORK)
            device = "scsi" if name.startswith("s") else "blk"
            disk = {"target": 0, "lun": 0, "backstore": {"kind": "path", "path": str(image)}}
            found.ask("POST", "/1.0/endpoints", {"name": name, "device": device, "luns": [disk]})
        yield found
        for name in ("s0", "s1", "b0", "b1"):
            found.ask("DELETE", f"/1.0/endpoints/{name}?force=1")
    shutil.rmtree(RUN)


@pytest.fixture(scope="module")
def guest(
    libvirtd: Libvirtd, hypervisor: LibvirtHypervisor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NestedGuest]:
    """One that runs, and started before there were rules of ours."""
    folder = tmp_path_factory.mktemp("web0")
    boot = folder / "boot.img"
    boot.write_bytes(bytes(MIB))
    install(boot, LetGo())
    with NestedGuest(libvirtd, "web0", folder, f"id={boot},source=volume", shared_memory=True) as found:
        found.start()
        found.wait_dots(1)
        yield found


@pytest.fixture(autouse=True)
def without_rules() -> Iterator[None]:
    """Each test begins without ours."""
    yield
    RULES.unlink(missing_ok=True)


def install_rules() -> None:
    """As the documentation says."""
    subprocess.run(["install", "-D", "-m", "0644", OURS, RULES], check=True)


@pytest.fixture
def strict_host(tmp_path: Path) -> Iterator[None]:
    """A host that says that profiles are asked about sockets, if this one does not."""
    features, compiled_for = tmp_path / "features", tmp_path / "compiled-for"
    shutil.copytree(FEATURES, features)
    (features / "network_v9").mkdir(exist_ok=True)
    (features / "network_v9" / "af_unix").write_text("yes\n")
    compiled_for.write_text(f"{PINNED.read_text()}network_v9 {{af_unix {{yes\n}}\n}}\n")
    for source, place in ((features, FEATURES), (compiled_for, PINNED)):
        subprocess.run(["mount", "--bind", source, place], check=True)
    yield
    subprocess.run(["umount", FEATURES, PINNED], check=True)


def profile(libvirtd: Libvirtd, guest: NestedGuest) -> str:
    """The name of the profile that the kernel enforces for a guest's QEMU: one of its own."""
    current = Path(f"/proc/{libvirtd.guest_pid(guest.name)}/attr/current").read_text().strip()
    found = re.fullmatch(r"(libvirt-[0-9a-f-]{36}) \(enforce\)", current)
    assert found is not None, current
    return found[1]


@contextlib.contextmanager
def starting(libvirtd: Libvirtd, name: str) -> Iterator[None]:
    """Somebody starts a guest, and waits for that; it is ended here."""

    def start() -> None:
        with contextlib.suppress(GuestError):
            libvirtd.virsh("start", name, timeout_s=SLOW_S)

    thread = threading.Thread(target=start)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(GuestError):
            libvirtd.virsh("destroy", name, timeout_s=SLOW_S)
        thread.join()


def attach_refused(
    hypervisor: LibvirtHypervisor, guest: NestedGuest, wish: Wish, *, live: bool = True
) -> str:
    """Give a guest an endpoint, which is refused. :returns: what it says is to be done."""
    with pytest.raises(ConflictError, match=f"AppArmor does not let QEMU use .*'{wish.endpoint}'") as refused:
        hypervisor.attach(guest.name, wish, live=live, persistent=not live)
    assert refused.value.hint is not None
    return refused.value.hint


def opening(profile: str, path: str | Path) -> int:
    """Open a file to read and write it, confined as QEMU is. :returns: the error; 0 if there was none."""
    script = f"exec 3<>{shlex.quote(str(path))}"
    command = ["aa-exec", "-p", profile, "--", "/bin/dash", "-c", script]
    said = subprocess.run(command, capture_output=True, text=True, timeout=SLOW_S, check=False).stderr
    if not said:
        return 0
    (found,) = (number for number in errno.errorcode if said.rstrip().endswith(f": {os.strerror(number)}"))
    return found


def reload(profile: str, *options: str) -> None:
    """Let a guest that runs have rules that were not there at its start."""
    path = f"/etc/apparmor.d/libvirt/{profile}"
    subprocess.run(["apparmor_parser", "-r", *options, path], check=True)


def ask_qemu(libvirtd: Libvirtd, guest: NestedGuest, command: str, **arguments: Any) -> str:
    """What QEMU's monitor answers, past everything that is tested."""
    request = json.dumps({"execute": command, "arguments": arguments})
    return libvirtd.virsh("qemu-monitor-command", guest.name, request, timeout_s=SLOW_S)


def wish(name: str, **more: Any) -> Wish:
    """An endpoint of the daemon's, as a guest's device."""
    face = Face.VHOST_USER_SCSI if name.startswith("s") else Face.VHOST_USER_BLK
    return Wish(endpoint=name, face=face, socket=str(RUN / "endpoint" / f"{name}.sock"), **more)


def kernels_wish(spec: EndpointSpec, **more: Any) -> Wish:
    """An endpoint of the kernel's, as a guest's device."""
    return Wish(endpoint=spec.name, face=Face.VHOST_SCSI, wwpn=spec.wwpn, **more)


# Before our rules are there


def test_what_is_in_a_guests_profile(libvirtd: Libvirtd, daemon: Daemon, guest: NestedGuest) -> None:
    """Endpoints, with our rules; never what the daemon is asked by. The kernel says the same when asked."""
    name, socket = profile(libvirtd, guest), RUN / "endpoint" / "s0.sock"
    for path in (socket, KERNELS):
        assert (opening(name, path), may_use(name, str(path))) == (errno.EACCES, False)
    install_rules()
    try:
        reload(name)
        assert (opening(name, socket), may_use(name, str(socket))) == (errno.ENXIO, True)
        assert (opening(name, KERNELS), may_use(name, str(KERNELS))) == (0, True)
        for path in (daemon.api, RUN / "ro.sock", RUN / "spawner.sock", Path(f"{socket}.ctl")):
            assert (opening(name, path.resolve()), may_use(name, str(path))) == (errno.EACCES, False)
    finally:
        RULES.unlink()
        reload(name)
    assert may_use(name, str(socket)) is False
    assert may_use("libvirt-of-nobody", str(socket)) is None


def test_a_profile_that_only_complains_holds_nobody_up(libvirtd: Libvirtd, guest: NestedGuest) -> None:
    found = Profile(profile(libvirtd, guest))
    with pytest.raises(ConflictError, match=f"AppArmor does not let QEMU use {KERNELS}"):
        check_hot_plug("ua-ringway-k0", found)
    reload(found.name, "--Complain")
    try:
        check_hot_plug("ua-ringway-k0", found)
    finally:
        reload(found.name)


def test_this_host_looks_at_sockets_if_it_says_so(libvirtd: Libvirtd, guest: NestedGuest) -> None:
    RUN.mkdir(exist_ok=True)
    path = str(RUN / "other.sock")
    backend = {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": path}}, "server": False}}
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen(1)
        answer = ask_qemu(libvirtd, guest, "chardev-add", id="other", backend=backend)
    os.unlink(path)
    assert ("Permission denied" in answer) == looks_at_sockets()
    if not looks_at_sockets():
        assert "error" not in ask_qemu(libvirtd, guest, "chardev-remove", id="other")


def test_ports_need_no_rule(libvirtd: Libvirtd, hypervisor: LibvirtHypervisor, tmp_path: Path) -> None:
    """QEMU connects to a switch's socket, and makes the one that a switch connects to."""
    PORTS.mkdir(parents=True, exist_ok=True)
    with (
        NestedGuest(libvirtd, "net0", tmp_path, shared_memory=True) as guest,
        contextlib.ExitStack() as stack,
    ):
        switch = stack.enter_context(socket.socket(socket.AF_UNIX))
        switch.settimeout(SLOW_S)
        for number, mode in enumerate((PortMode.CLIENT, PortMode.SERVER)):
            place = str(PORTS / f"p{number}.sock")
            if mode is PortMode.CLIENT:
                switch.bind(place)
                switch.listen(1)
            port = PortSpec(name=f"p{number}", mac=f"52:54:00:00:00:0{number}", socket=place, mode=mode)
            hypervisor.plug(guest.name, port, live=False, persistent=True)
        with starting(libvirtd, guest.name):
            switch.accept()[0].close()
            wait_until((PORTS / "p1.sock").exists, "QEMU's socket", SLOW_S)
            assert profile(libvirtd, guest)


# With them


def test_endpoints_come_to_a_guest_that_runs(
    strict_host: None, daemon: Daemon, hypervisor: LibvirtHypervisor, guest: NestedGuest, tmp_path: Path
) -> None:
    """Of both engines; refused before QEMU would wait for ever, with all that it takes."""
    engine = driver(tmp_path)
    kernels = kernels_wish(endpoint(engine, "k0", lun(image(tmp_path))))
    assert hypervisor.probe()[-1].hint == INSTALL
    for each in (wish("s0"), wish("b0"), kernels):
        assert attach_refused(hypervisor, guest, each).startswith(f"{INSTALL}, then apparmor_parser -r /etc/")
    install_rules()
    assert hypervisor.probe()[-1].ok
    refused = attach_refused(hypervisor, guest, kernels)
    assert refused.startswith(f"see that {RULES} has {KERNELS}, then ")
    subprocess.run(shlex.split(refused.split(", then ")[1]), check=True, timeout=SLOW_S)
    place = f"/1.0/guests/{guest.name}/endpoints"
    for name in ("s0", "b0"):
        daemon.ask("POST", place, {"endpoint": name})
        assert daemon.ask("GET", f"/1.0/endpoints/{name}")["connected"]
    assert hypervisor.attach(guest.name, kernels, live=True, persistent=False).live
    hypervisor.detach(guest.name, "k0", live=True, persistent=False, timeout_s=SLOW_S)
    for name in ("s0", "b0"):
        daemon.ask("DELETE", f"{place}/{name}?timeout={SLOW_S:g}")


def test_a_guest_starts_with_endpoints(
    strict_host: None, libvirtd: Libvirtd, daemon: Daemon, hypervisor: LibvirtHypervisor, tmp_path: Path
) -> None:
    """Of both engines, and boots from one; and is not started where it would wait for ever."""
    engine = driver(tmp_path)
    kernels = kernels_wish(endpoint(engine, "k1", lun(image(tmp_path))), boot_order=2)
    with NestedGuest(libvirtd, "db0", tmp_path, shared_memory=True) as guest:
        assert attach_refused(hypervisor, guest, wish("s1"), live=False) == INSTALL
        install_rules()
        for each in (wish("s1", boot_order=1), wish("b1"), kernels):
            hypervisor.attach(guest.name, each, live=False, persistent=True)
        RULES.unlink()
        with pytest.raises(ConflictError, match=r"AppArmor does not let QEMU use .*'s1'") as refused:
            hypervisor.start(guest.name)
        assert refused.value.hint == INSTALL
        install_rules()
        guest.start()
        guest.wait_dots(2)
        assert profile(libvirtd, guest)
        assert all(daemon.ask("GET", f"/1.0/endpoints/{name}")["connected"] for name in ("s1", "b1"))
        assert engine.show("k1").connected
