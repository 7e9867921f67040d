"""``ringway host``: the daemon, and what its host can do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import click

from ringway.cli.doctor import doctor
from ringway.cli.format import Column, View, coloured, printable
from ringway.cli.remote import NounGroup, as_output, connect, output, remote
from ringway.model import Check, EngineReport, HostInfo
from ringway.units import format_duration

VIEW: Final = View[HostInfo](
    {
        "hostname": Column(lambda found: found.hostname),
        "kernel": Column(lambda found: found.kernel),
        "ringway": Column(lambda found: found.ringway),
        "api": Column(lambda found: found.api),
        "pid": Column(lambda found: found.pid, right=True),
        "uptime": Column(lambda found: found.uptime_s, format_duration, right=True),
        "endpoints": Column(lambda found: found.endpoints, right=True),
        "degraded": Column(lambda found: found.degraded, right=True),
    },
    ("hostname", "kernel", "ringway", "uptime", "endpoints", "degraded"),
    lambda found: found.hostname,
)


def describe(found: HostInfo) -> Iterator[str]:
    """The host, and engine by engine what it can do."""
    access = ", this socket is read-only" if found.read_only else ""
    yield f"{printable(found.hostname)}, Linux {printable(found.kernel)}"
    yield (
        f"ringwayd {found.ringway} (API {found.api}), pid {found.pid}, "
        f"up for {format_duration(found.uptime_s)}{access}"
    )
    degraded = coloured(f", {found.degraded} degraded", "red") if found.degraded else ""
    yield f"{found.endpoints} endpoint{'' if found.endpoints == 1 else 's'}{degraded}"
    for report in found.engines:
        yield ""
        yield from describe_engine(report)
    if found.checks:
        yield ""
        yield "guests and ports"
        for check in found.checks:
            yield from _describe_check(check)


def describe_engine(report: EngineReport) -> Iterator[str]:
    """What an engine can do, and what it lacks."""
    word = coloured("usable", "green") if report.usable else coloured("not usable", "red")
    yield f"engine {report.engine} ({printable(report.version)}): {word}"
    able = {"limits": report.limits, "resize": report.resize, "migration": report.migration}
    abilities = [name for name, there in able.items() if there]
    yield f"  devices     {', '.join(map(str, report.devices)) or '-'}"
    yield f"  backstores  {', '.join(report.backstores) or '-'}"
    yield f"  can do      {', '.join(abilities) or '-'}"
    for check in report.checks:
        yield from _describe_check(check)


def _describe_check(check: Check) -> Iterator[str]:
    mark = coloured("ok", "green") if check.ok else coloured("no", "red")
    yield f"  {mark}  {printable(check.name)}: {printable(check.detail)}"
    if check.hint and not check.ok:
        yield f"      hint: {printable(check.hint)}"


@click.group(cls=NounGroup, short_help="Look at the daemon, and at what its host can do.")
def host() -> None:
    """Look at the daemon, and at what its host can do."""


@host.command()
@remote
@output
def info(remote: str | None, **options: Any) -> None:
    """Show the daemon, its host, and what each engine can do and lacks."""
    as_output(options).show_one(connect(remote).host.info(), VIEW, describe)


host.add_command(doctor)
