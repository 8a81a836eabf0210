"""What a processor is called and what it can do, from the texts that systems keep about it.

On ARM a Linux kernel gives numbers only: who designed the core and which of theirs it is (the register MIDR_EL1). Their
names are those of ``lscpu`` (util-linux, ``sys-utils/lscpu-arm.c``), of LLVM's ``Host.cpp`` and of Arm's manuals.
"""

from collections.abc import Iterator

_IMPLEMENTERS = {
    0x00: "emulated",  # "reserved for software use": QEMU's `max`
    0x41: "Arm",
    0x42: "Broadcom",
    0x43: "Cavium",
    0x46: "Fujitsu",
    0x48: "HiSilicon",
    0x4E: "NVIDIA",
    0x50: "APM",
    0x51: "Qualcomm",
    0x53: "Samsung",
    0x56: "Marvell",
    0x61: "Apple",
    0x6D: "Microsoft",
    0x70: "Phytium",
    0xC0: "Ampere",
}
_ARM = {
    0xD01: "Cortex-A32",
    0xD02: "Cortex-A34",
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD06: "Cortex-A65",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD0E: "Cortex-A76AE",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2",
    0xD4A: "Neoverse-E1",
    0xD4B: "Cortex-A78C",
    0xD4C: "Cortex-X1C",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
    0xD83: "Neoverse-V3AE",
    0xD84: "Neoverse-V3",
    0xD85: "Cortex-X925",
    0xD87: "Cortex-A725",
    0xD8E: "Neoverse-N3",
    0xD8F: "Cortex-A320",
}
_PARTS = {
    **{(0x41, part): name for part, name in _ARM.items()},
    (0x43, 0x0A1): "ThunderX",
    (0x43, 0x0AF): "ThunderX2",
    (0x46, 0x001): "A64FX",
    (0x48, 0xD01): "Kunpeng-920",
    (0x4E, 0x004): "Carmel",
    (0x51, 0x001): "Oryon",
    (0x51, 0x002): "Oryon, third generation",
    (0x51, 0x800): "Kryo 2xx Gold",
    (0x51, 0x801): "Kryo 2xx Silver",
    (0x51, 0x802): "Kryo 3xx Gold",
    (0x51, 0x803): "Kryo 3xx Silver",
    (0x51, 0x804): "Kryo 4xx Gold",
    (0x51, 0x805): "Kryo 4xx Silver",
    (0x61, 0x022): "M1 Icestorm",
    (0x61, 0x023): "M1 Firestorm",
    (0x61, 0x024): "M1 Pro Icestorm",
    (0x61, 0x025): "M1 Pro Firestorm",
    (0x61, 0x028): "M1 Max Icestorm",
    (0x61, 0x029): "M1 Max Firestorm",
    (0x61, 0x032): "M2 Blizzard",
    (0x61, 0x033): "M2 Avalanche",
    (0x61, 0x034): "M2 Pro Blizzard",
    (0x61, 0x035): "M2 Pro Avalanche",
    (0x61, 0x038): "M2 Max Blizzard",
    (0x61, 0x039): "M2 Max Avalanche",
    (0x6D, 0xD49): "Cobalt 100",
    (0xC0, 0xAC3): "AmpereOne",
    (0xC0, 0xAC4): "AmpereOne A",
}
_OF_MACOS = {
    "hw.optional.neon": "asimd",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_SME": "sme",
    "hw.optional.arm.FEAT_SME2": "sme2",
    "hw.optional.avx1_0": "avx",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.fma": "fma",
    "hw.optional.f16c": "f16c",
    "hw.optional.bmi2": "bmi2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512bw": "avx512bw",
}
"""Names that ``sysctl`` has for what is named otherwise in Linux, and here."""


def from_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """The processor's name and its features, sorted, in Linux's ``/proc/cpuinfo``; '' and () where it doesn't say.

    Cores that differ are named in the order of their numbers, a board's name follows in brackets.
    """
    first: dict[str, str] = {}
    for key, value in _fields(text):
        first.setdefault(key, value)
    features = first.get("flags") or first.get("Features") or ""  # x86, ARM
    # An ARM kernel may call itself "ARMv8 Processor rev 3 (v8l)" there, which all are.
    name = _cores(text) or first.get("model name", "")
    board = first.get("Model", "")  # with a capital: x86's `model` is a number
    return f"{name} ({board})" if name and board else name or board, tuple(sorted(set(features.split())))


def _fields(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        yield key.strip(), value.strip()


def _cores(text: str) -> str:
    """The kinds of cores that an ARM kernel lists: ``Arm Cortex-A55 + Cortex-A76``; '' elsewhere."""
    kinds: dict[tuple[int, int], None] = {}  # in order, each once
    implementer = None
    for key, value in _fields(text):
        if key == "CPU implementer":
            implementer = _number(value)
        elif key == "CPU part" and implementer is not None and (part := _number(value)) is not None:
            kinds[implementer, part] = None
    named: list[str] = []
    last = None
    for designer, part in kinds:
        core = _PARTS.get((designer, part), f"part 0x{part:03x}")
        maker = _IMPLEMENTERS.get(designer, f"implementer 0x{designer:02x}")
        named.append(core if designer == last else f"{maker} {core}")
        last = designer
    return " + ".join(named)


def _number(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None


def from_sysctl(text: str) -> tuple[str, tuple[str, ...]]:
    """The same of what macOS's ``sysctl machdep.cpu.brand_string hw.optional`` prints; features by Linux's names."""
    fields = dict(_fields(text))
    features = {feature for key, feature in _OF_MACOS.items() if fields.get(key) == "1"}
    return fields.get("machdep.cpu.brand_string", ""), tuple(sorted(features))
