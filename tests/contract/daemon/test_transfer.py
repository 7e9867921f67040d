"""Whole hosts as files: exported, applied, imported from targetcli, and taken over in place."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ringway.client import Client
from ringway.errors import BusyError, UsageError
from ringway.testing.daemon import Daemon
from ringway.testing.fake_kernel import FakeKernel
from ringway.testing.processes import kill
from ringway.testing.waiting import wait_until

from .plants import MIB, Plant, end_user_plant
from .test_trouble import wait_for

WWPN, NEXUS = "naa.5001405000000abc", "naa.5001405000000def"


@pytest.fixture
def daemon(plant: Plant) -> Iterator[Daemon]:
    """One of each engine, ready."""
    with plant.daemon() as daemon:
        daemon.start()
        yield daemon


@pytest.fixture
def kernels(lio: Plant) -> Iterator[Daemon]:
    """One with the kernel engine, ready."""
    with lio.daemon() as daemon:
        daemon.start()
        yield daemon


def test_what_was_exported_makes_the_same_host_again(plant: Plant, daemon: Daemon) -> None:
    for name in ("a", "b"):
        daemon.ask("POST", "/1.0/endpoints", plant.spec(name, luns=2))
    exported = daemon.ask("GET", "/1.0/config/export")
    assert [spec["name"] for spec in exported["endpoint"]] == ["a", "b"]
    plan = daemon.ask("POST", "/1.0/apply?prune=1", {"endpoint": []})
    assert [change["action"] for change in plan["changes"]] == ["delete", "delete"]
    assert plant.left() == []
    plan = daemon.ask("POST", "/1.0/apply", exported)
    assert [change["action"] for change in plan["changes"]] == ["create", "create"]
    assert daemon.ask("GET", "/1.0/config/export") == exported
    assert daemon.ask("POST", "/1.0/plan?prune=1", exported)["changes"][0]["action"] == "keep"
    daemon.ask("POST", "/1.0/apply?prune=1", {"endpoint": []})
    assert plant.left() == []


#: In the manner of the LIO wiki, with the module's first name.
_WIKI_SPEC = b"""\
# The fabric module feature set
features = nexus, tpgts

# Use naa WWNs.
wwn_type = naa

# Non-standard module naming scheme
kernel_module = tcm_vhost

# The configfs group
configfs_group = vhost
"""


def test_the_fabrics_own_file_is_written_and_compared(lio: Plant, kernels: Daemon) -> None:
    text = kernels.ask("GET", "/1.0/config/export?format=fabric-spec")["fabric_spec"]
    assert "configfs_group = vhost\n" in text
    for spec in (text.encode(), _WIKI_SPEC, _WIKI_SPEC.replace(b"nexus,", b"acls, nexus,")):
        plan = Client(kernels.api).config.import_(spec)
        assert plan.changes == ()
        assert "nothing has to be changed" in plan.notes[0]
    assert plan.notes[1].startswith("'acls' is not of this fabric")
    with pytest.raises(UsageError, match="another fabric: configfs_group = iscsi"):
        Client(kernels.api).config.import_(b"configfs_group = iscsi\n")


def test_targetclis_file_is_written_and_read(lio: Plant, kernels: Daemon) -> None:
    kernels.ask("POST", "/1.0/endpoints", lio.spec("a", wwpn=WWPN))
    saved = kernels.ask("GET", "/1.0/config/export?format=targetcli")
    assert [target["wwn"] for target in saved["targets"]] == [WWPN]
    kernels.ask("DELETE", "/1.0/endpoints/a")
    planned = kernels.ask("POST", "/1.0/config/import?dry_run=1", saved)
    assert [(change["action"], change["object"]) for change in planned["changes"]] == [
        ("create", f"endpoint/{WWPN}")
    ]
    assert kernels.names() == {}
    assert kernels.ask("POST", "/1.0/config/import", saved) == planned
    assert kernels.names() == {WWPN: "ready"}
    for body, words in (([], "saveconfig"), ({"targets": 1}, "saveconfig")):
        with pytest.raises(UsageError, match=words):
            kernels.ask("POST", "/1.0/config/import", body)
    with pytest.raises(UsageError, match="no file"):
        kernels.ask("POST", "/1.0/config/import")
    with pytest.raises(UsageError, match="format"):
        kernels.ask("GET", "/1.0/config/export?format=xml")
    kernels.ask("DELETE", f"/1.0/endpoints/{WWPN}")


def _made_by_another(kernel: Path) -> None:
    """An endpoint as rtslib lays one out."""
    store, group = kernel / "core/rd_mcp_7/r0", kernel / f"vhost/{WWPN}/tpgt_1"
    store.mkdir(parents=True)
    for path, text in (("control", "rd_pages=256"), ("wwn/vpd_unit_serial", "theirs"), ("enable", "1")):
        (store / path).write_text(text)
    group.mkdir(parents=True)
    (group / "nexus").write_text(NEXUS)
    (group / "lun/lun_0").mkdir()
    os.symlink(store, group / "lun/lun_0/e15c7251b0")


@pytest.mark.parametrize("with_file", [True, False])
def test_what_is_live_is_taken_over_under_its_guest(
    lio: Plant, kernels: Daemon, fake_kernel: FakeKernel, with_file: bool
) -> None:
    _made_by_another(fake_kernel.configfs)
    fake_kernel.attach(WWPN)
    wait_until(lambda: kernels.names() == {WWPN: "foreign"}, "a look at the kernel")
    saved = _saveconfig() if with_file else None
    plan = kernels.ask("POST", "/1.0/config/import?adopt=1", saved)
    assert [change["action"] for change in plan["changes"]] == ["create"]
    info = kernels.ask("GET", f"/1.0/endpoints/{WWPN}")
    assert (info["state"], info["nexus"], info["connected"]) == ("ready", NEXUS, True)
    assert info["spec"]["luns"][0]["backstore"]["serial"] == "theirs"
    kernels.kill()
    kernels.start()
    assert kernels.ask("GET", f"/1.0/endpoints/{WWPN}")["spec"] == info["spec"]
    fake_kernel.detach(WWPN)
    kernels.ask("DELETE", f"/1.0/endpoints/{WWPN}")
    assert lio.left() == []


def _serve_elsewhere(kernel: FakeKernel, image: Path) -> Path:
    """As another tool does. :returns: its backstore."""
    store = kernel.configfs / "core/fileio_7/theirs"
    store.mkdir(parents=True)
    (store / "control").write_text(f"fd_dev_name={image},fd_dev_size={MIB}")
    (store / "enable").write_text("1")
    return store


@pytest.fixture(params=["lio", "user", "user alone"])
def any_plant(request: pytest.FixtureRequest, lio: Plant) -> Iterator[tuple[Plant, str]]:
    """A daemon on the kernel's target, and an engine: the user engine also where no other is run."""
    config = lio.config.replace("[user]\nenabled = false", "")
    if request.param == "user alone":
        config = config.replace("enabled = true", "enabled = false")
    found = replace(lio, config=config)
    yield found, request.param.partition(" ")[0]
    end_user_plant(found)


def test_a_disk_that_others_serve_is_no_new_endpoints(
    any_plant: tuple[Plant, str], fake_kernel: FakeKernel
) -> None:
    plant, engine = any_plant
    image = plant.folder.parent / "a.img"
    image.write_bytes(bytes(MIB))
    store = _serve_elsewhere(fake_kernel, image)
    disk = {"target": 0, "lun": 0, "backstore": {"kind": "path", "path": str(image)}}
    with plant.daemon() as daemon:
        daemon.start()
        wanted = {"name": "b", "engine": engine, "luns": [disk]}
        with pytest.raises(BusyError, match="fileio_7/theirs"):
            daemon.ask("POST", "/1.0/endpoints", wanted)
        with pytest.raises(BusyError, match="fileio_7/theirs"):
            daemon.ask("POST", "/1.0/endpoints?dry_run=1", wanted)
        assert daemon.names() == {}
        store.rmdir()
        daemon.ask("POST", "/1.0/endpoints", wanted)
        daemon.kill()
        daemon.start()
        assert daemon.names() == {"b": "ready"}
        daemon.ask("DELETE", "/1.0/endpoints/b")


def test_a_disk_that_others_serve_is_not_served_again_at_a_restore(
    any_plant: tuple[Plant, str], fake_kernel: FakeKernel
) -> None:
    """After a boot, targetcli's restore came before ours."""
    plant, engine = any_plant
    image = plant.folder.parent / "a.img"
    image.write_bytes(bytes(MIB))
    disk = {"target": 0, "lun": 0, "backstore": {"kind": "path", "path": str(image)}}
    with plant.daemon() as daemon:
        daemon.start()
        made = daemon.ask("POST", "/1.0/endpoints", {"name": "b", "engine": engine, "luns": [disk]})
        daemon.kill()
        if engine == "lio":
            plant.break_off("b")
        else:
            kill(made["pid"])
        store = _serve_elsewhere(fake_kernel, image)
        daemon.start()
        info = daemon.ask("GET", "/1.0/endpoints/b")
        assert info["state"] == "degraded"
        assert "fileio_7/theirs" in info["message"]
        assert [path for path in fake_kernel.configfs.glob("core/*_*/*") if path.is_dir()] == [store]
        assert info["pid"] is None
        store.rmdir()
        wait_for(daemon, "endpoint.restarted")
        assert plant.folder.joinpath("run", "endpoint", "b.json").exists() == (engine == "user")
        daemon.ask("DELETE", "/1.0/endpoints/b")


@pytest.mark.parametrize("guest", [True, False])
@pytest.mark.parametrize("point", ["create.committed:1", "create.made:1"])
def test_a_takeover_that_is_cut_short_leaves_what_is_there_to_its_maker(
    lio: Plant, fake_kernel: FakeKernel, point: str, guest: bool
) -> None:
    _made_by_another(fake_kernel.configfs)
    if guest:
        fake_kernel.attach(WWPN)
    before = _tree(fake_kernel)
    with lio.daemon(point) as daemon:
        daemon.start()
        with pytest.raises((OSError, http.client.HTTPException)):
            daemon.ask("POST", "/1.0/config/import?adopt=1")
        daemon.wait_dead()
        daemon.fault = ""
        daemon.start()
        assert _tree(fake_kernel) == before
        if guest:
            fake_kernel.detach(WWPN)
            daemon.kill()
            daemon.start()
        wait_until(lambda: daemon.names() == {WWPN: "foreign"}, "a look at the kernel")
        assert _tree(fake_kernel) == before
        daemon.ask("POST", "/1.0/config/import?adopt=1")
        daemon.ask("DELETE", f"/1.0/endpoints/{WWPN}")
    assert lio.left() == []


def _tree(kernel: FakeKernel) -> list[Path]:
    """Ports and backstores, and all that is in them."""
    return sorted(path for root in ("vhost", "core") for path in (kernel.configfs / root).rglob("*"))


def _saveconfig() -> Any:
    store = {"plugin": "ramdisk", "name": "r0", "size": MIB, "wwn": "theirs"}
    lun = {"index": 0, "storage_object": "/backstores/ramdisk/r0"}
    target = {"fabric": "vhost", "wwn": WWPN, "tpgs": [{"tag": 1, "luns": [lun]}]}
    return json.loads(json.dumps({"storage_objects": [store], "targets": [target]}))
