"""Processors by the texts of their systems: as kernels and `sysctl` print them on machines that people have."""

from edge_llama.host.processors import from_cpuinfo, from_sysctl

CORE = """processor\t: {number}
BogoMIPS\t: 108.00
Features\t: {features}
CPU implementer\t: {implementer}
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: {part}
CPU revision\t: 1

"""
ARMV8_2 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


def cpuinfo(*cores: tuple[str, str], features: str = ARMV8_2, end: str = "") -> str:
    """Of a machine with a core for each implementer and part."""
    texts = [
        CORE.format(number=number, features=features, implementer=implementer, part=part)
        for number, (implementer, part) in enumerate(cores)
    ]
    return "".join(texts) + end


PI = "Revision\t: c04170\nSerial\t\t: 0123456789abcdef\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
PHONE = "fp asimd aes crc32 atomics asimdhp asimddp i8mm bf16"


def test_a_board_is_named_by_its_cores_and_its_model() -> None:
    name, features = from_cpuinfo(cpuinfo(*[("0x41", "0xd0b")] * 4, end=PI))
    assert name == "Arm Cortex-A76 (Raspberry Pi 5 Model B Rev 1.0)"
    assert {"asimd", "asimddp"} <= set(features)
    assert features == tuple(sorted(features))


def test_cores_of_several_kinds_are_all_named() -> None:
    rockchip = [("0x41", "0xd05")] * 4 + [("0x41", "0xd0b")] * 4
    assert from_cpuinfo(cpuinfo(*rockchip))[0] == "Arm Cortex-A55 + Cortex-A76"
    snapdragon = [("0x41", "0xd80")] * 2 + [("0x41", "0xd81")] * 5 + [("0x41", "0xd82")]
    assert from_cpuinfo(cpuinfo(*snapdragon, features=PHONE)) == (
        "Arm Cortex-A520 + Cortex-A720 + Cortex-X4",
        ("aes", "asimd", "asimddp", "asimdhp", "atomics", "bf16", "crc32", "fp", "i8mm"),
    )
    of_two = [("0x41", "0xd03"), ("0x51", "0x802")]
    assert from_cpuinfo(cpuinfo(*of_two))[0] == "Arm Cortex-A53 + Qualcomm Kryo 3xx Gold"


def test_servers_and_laptops() -> None:
    for implementer, part, name in (
        ("0x41", "0xd0c", "Arm Neoverse-N1"),
        ("0x41", "0xd4f", "Arm Neoverse-V2"),
        ("0xc0", "0xac3", "Ampere AmpereOne"),
        ("0x51", "0x001", "Qualcomm Oryon"),
        ("0x61", "0x023", "Apple M1 Firestorm"),
        ("0x6d", "0xd49", "Microsoft Cobalt 100"),
    ):
        assert from_cpuinfo(cpuinfo((implementer, part)))[0] == name


def test_what_no_table_has_is_named_by_its_numbers() -> None:
    assert from_cpuinfo(cpuinfo(("0x41", "0xdff")))[0] == "Arm part 0xdff"
    assert from_cpuinfo(cpuinfo(("0x99", "0x001")))[0] == "implementer 0x99 part 0x001"
    assert from_cpuinfo(cpuinfo(("0x00", "0x051")))[0] == "emulated part 0x051"  # QEMU's `max`
    assert from_cpuinfo(cpuinfo(("none", "0xd0b")))[0] == ""


def test_a_name_that_all_arm_kernels_give_themselves_says_less_than_the_part() -> None:
    android = "processor\t: 0\nmodel name\t: ARMv8 Processor rev 3 (v8l)\n" + cpuinfo(("0x41", "0xd08"))
    assert from_cpuinfo(android)[0] == "Arm Cortex-A72"


def test_x86_names_itself() -> None:
    text = "processor\t: 0\nmodel\t\t: 143\nmodel name\t: Intel(R) Xeon(R) 8481C\nflags\t\t: fpu avx2 amx_int8\n\n"
    assert from_cpuinfo(text * 2) == ("Intel(R) Xeon(R) 8481C", ("amx_int8", "avx2", "fpu"))


def test_a_text_that_says_nothing_gives_no_name() -> None:
    assert from_cpuinfo("") == ("", ())
    assert from_cpuinfo("Hardware\t: BCM2835\n\x00 : :") == ("", ())
    assert from_sysctl("sysctl: unknown oid 'hw.optional'") == ("", ())


def test_macos_names_the_chip_and_features_get_linuxs_names() -> None:
    text = """machdep.cpu.brand_string: Apple M2 Pro
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_FP16: 1
hw.optional.arm.FEAT_SME: 0
hw.optional.floatingpoint: 1
hw.optional.neon: 1
"""
    assert from_sysctl(text) == ("Apple M2 Pro", ("asimd", "asimddp", "asimdhp", "bf16", "i8mm"))
