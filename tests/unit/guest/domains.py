"""Domains for these tests: a plain one, and any that hypothesis thinks of."""

from __future__ import annotations

from hypothesis import strategies as st

_WORD = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
_TEXT = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="<>&'\"\r"), max_size=6)
_VALUE = _TEXT | st.sampled_from(["a &lt; b", "&amp;amp;", "&gt;"])
SHARED = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"


def domain(
    devices: str = "",
    *,
    machine: str = "q35",
    os: str = "",
    extra: str = "",
    memory: str = SHARED,
    kind: str = "qemu",
) -> str:
    """A domain for QEMU without acceleration, indented as libvirt does it."""
    return f"""<domain type='{kind}'>
  <name>first</name>
  <memory unit='MiB'>64</memory>{memory}
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>{os}
  </os>{extra}
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}
  </devices>
</domain>
"""


def _quoted(draw: st.DrawFn, quote: str) -> str:
    attributes = draw(st.dictionaries(_WORD, _VALUE, max_size=3))
    return "".join(f" {name}={quote}{value}{quote}" for name, value in attributes.items())


def _element(draw: st.DrawFn, quote: str, margin: str, step: str, depth: int) -> str:
    """An element of any name; as lxml writes it, so that each byte can be held against what comes back."""
    space = draw(st.sampled_from(["", "", "x"]))
    name = (space and "x:") + draw(_WORD)
    head = f"{name}{space and f' xmlns:x={quote}urn:x{quote}'}{_quoted(draw, quote)}"
    kind = draw(st.sampled_from(["empty", "text", "cdata", "children"])) if depth else "empty"
    match kind:
        case "text":
            return f"<{head}>{draw(_VALUE)} </{name}>"
        case "cdata":
            return f"<{head}>a<![CDATA[<b> & {draw(_TEXT)}]]></{name}>"
        case "children":
            inner = [
                _node(draw, quote, margin + step, step, depth - 1) for _ in range(draw(st.integers(1, 3)))
            ]
            return f"<{head}>{''.join(margin + step + each for each in inner)}{margin}</{name}>"
        case _:
            return f"<{head}/>"


def _node(draw: st.DrawFn, quote: str, margin: str, step: str, depth: int = 2) -> str:
    match draw(st.sampled_from(["element", "element", "element", "comment", "instruction"])):
        case "comment":
            return f"<!-- {draw(_TEXT).replace('-', '')} '=\" -->"
        case "instruction":
            return f"<?{draw(_WORD)}y d{draw(_TEXT).replace('?', '')} ='?>"
        case _:
            return _element(draw, quote, margin, step, depth)


@st.composite
def domains(draw: st.DrawFn) -> str:
    """Domains with unknown elements, comments, instructions, CDATA and namespaces, indented in any way."""
    quote = draw(st.sampled_from("'\""))
    end, step = draw(st.sampled_from([("\n", "  "), ("\n", "    "), ("\n", "\t"), ("\n\n", "  "), ("", "")]))
    margins = [end + step * depth for depth in range(4)]

    def nodes(depth: int, *known: str) -> str:
        unknown = [_node(draw, quote, margins[depth], step) for _ in range(draw(st.integers(0, 3)))]
        return "".join(margins[depth] + each for each in draw(st.permutations([*known, *unknown])))

    disk = f"<disk type={quote}file{quote}><target dev={quote}vda{quote} bus={quote}virtio{quote}/></disk>"
    machine = f"<os>{nodes(2, f'<type machine={quote}q35{quote}>hvm</type>')}{margins[1]}</os>"
    memory = draw(st.sampled_from(["", "<memoryBacking><locked/></memoryBacking>", "<cpu><numa/></cpu>"]))
    devices = f"<devices>{nodes(2, '<emulator/>', disk)}{margins[1]}</devices>"
    q = draw(st.sampled_from(["", f" xmlns:q={quote}http://libvirt.org/schemas/domain/qemu/1.0{quote}"]))
    head = f"<domain  type={quote}kvm{quote}{q} >"
    body = nodes(1, "<name>n</name>", f"<memory unit={quote}MiB{quote}>64</memory>", memory, machine, devices)
    prolog = draw(st.sampled_from(["", "<?xml version='1.0'?>\n", "\n<!-- a -->\n\n<?b c?>  "]))
    epilog = draw(st.sampled_from(["", "\n", "\n<!-- <z/> -->\n <?y z?>\n\n", "<!---->"]))
    return f"{prolog}{head}{body}{margins[0]}</domain>{epilog}"
