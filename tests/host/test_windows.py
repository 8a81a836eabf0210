"""Windows' rules of files where they decide, imposed on Linux: open files stay, devices' names, 259 letters."""

import mmap
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import windows_rules
from refusals import refusal

import converters
from converters.output import check_inputs
from edge_llama.cli.calibrate import _check_output
from edge_llama.errors import ArtifactError, HistoryError, OutputError
from edge_llama.files.artifact import existing
from edge_llama.history.database import Database
from edge_llama.host import windows
from edge_llama.host.atomic import new_file, new_folder
from edge_llama.host.windows import FileInUseError, why_impossible, why_no_name

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the rules are imposed by Linux's list of open files")


@pytest.fixture
def rules() -> Iterator[None]:
    with windows_rules.imposed():
        yield


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[Path]:
    """A file that is mapped, as a model is that runs."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"old")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        yield path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("CON", "CON is a device's name"),
        ("aux.gguf", "AUX is a device's name"),
        ("nul .tar.gz", "NUL is a device's name"),
        ("com1.json", "COM1 is a device's name"),
        ("lpt².txt", "LPT² is a device's name"),
        ("what?.gguf", "a name on Windows has no '?'"),
        ("a:b", "a name on Windows has no ':'"),
        ("a\tb", r"a name on Windows has no '\t'"),
        ("model.", "leaves out the '.' at the end"),
        ("model ", "leaves out the ' ' at the end"),
        ("console.gguf", ""),
        ("com10.gguf", ""),
        (".gguf", ""),
        ("Späher 🦙.gguf", ""),
    ],
)
def test_names_that_are_no_files(name: str, said: str) -> None:
    assert said in why_no_name(name)
    assert bool(why_no_name(name)) == bool(said)


def test_elsewhere_any_name_will_do(tmp_path: Path) -> None:
    with new_file(tmp_path / "aux.gguf") as file:
        file.write(b"new")
    assert why_impossible(tmp_path / ("x" * 300)) == ""


@pytest.mark.usefixtures("rules")
def test_a_device_is_no_output(tmp_path: Path, llama3: Path) -> None:
    with refusal(OutputError, "AUX is a device's name on Windows, and no file's; give another name"):
        converters.convert(llama3, tmp_path / "aux.gguf")
    with refusal(OutputError, "NUL is a device's name"):
        converters.convert(llama3, tmp_path / "nul" / "model.gguf")
    with refusal(OutputError, "CON is a device's name"):
        _check_output(tmp_path / "con.json", [], force=False)
    with pytest.raises(OSError, match="PRN is a device's name"), new_file(tmp_path / "prn.session") as file:
        file.write(b"new")
    with pytest.raises(OSError, match="COM3 is a device's name"), new_folder(tmp_path / "com3"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("rules")
def test_a_path_beyond_what_windows_takes_is_refused_with_both_numbers(tmp_path: Path, llama3: Path) -> None:
    deep = tmp_path.joinpath(*["x" * 50] * 4) / "model.gguf"
    deep.parent.mkdir(parents=True)
    partial = len(str(deep.with_name(".model.gguf.partial") / "output" / "model.gguf"))
    assert len(str(deep)) < partial > 259, "the output alone would do"
    with refusal(OutputError, rf"{partial} characters .*, where Windows takes 259: .*LongPathsEnabled"):
        converters.convert(llama3, deep)
    assert list(deep.parent.iterdir()) == []
    with refusal(ArtifactError, r"\d+ characters .*, where Windows takes 259"):
        existing(deep.parent / ("y" * 60) / "gone.gguf")
    with refusal(ArtifactError, "no such file or folder"):
        existing(tmp_path / "gone.gguf")


@pytest.mark.usefixtures("rules")
def test_long_paths_that_are_switched_on_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_takes_long_paths", lambda: True)
    assert why_impossible(tmp_path.joinpath(*["x" * 50] * 8)) == ""


@pytest.mark.usefixtures("rules")
def test_a_mapped_file_is_not_replaced_and_the_error_says_what_to_do(mapped: Path) -> None:
    with pytest.raises(FileInUseError) as caught, new_file(mapped) as file:
        file.write(b"new")
    assert "a program has it open, and Windows replaces no open file: close what uses it" in str(caught.value.strerror)
    assert mapped.read_bytes() == b"old"
    assert list(mapped.parent.iterdir()) == [mapped]


@pytest.mark.usefixtures("rules")
def test_a_folder_in_which_a_file_is_open_is_not_replaced(mapped: Path) -> None:
    with pytest.raises(FileInUseError), new_folder(mapped.parent) as folder:
        (folder / "model.gguf").write_bytes(b"new")
    assert mapped.read_bytes() == b"old"
    assert [path.name for path in mapped.parent.parent.iterdir() if path.name.endswith(".partial")] == []


@pytest.mark.usefixtures("rules")
def test_a_virus_scanner_that_soon_closes_it_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    scanner = path.open("rb")
    threading.Timer(0.05, scanner.close).start()
    with new_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.usefixtures("rules")
def test_a_conversion_over_a_model_that_runs_keeps_what_it_did_until_that_is_closed(
    tmp_path: Path, llama3: Path
) -> None:
    output = tmp_path / "model.gguf"
    output.write_bytes(b"old")
    with output.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        with pytest.raises(OutputError) as caught:
            converters.convert(llama3, output, force=True)
        assert "model.gguf: a program has it open" in str(caught.value)
        assert "run the same again then: what was converted is kept" in caught.value.remedy
        assert output.read_bytes() == b"old"
    done = converters.convert(llama3, output, force=True)
    assert done.resumed_bytes == sum(entry.nbytes for entry in done.plan.layout.entries)
    assert output.read_bytes().startswith(b"GGUF")
    assert list(tmp_path.iterdir()) == [output], "the lock too is gone"


@pytest.mark.usefixtures("rules")
def test_a_refused_conversion_leaves_nothing_though_its_lock_was_open(tmp_path: Path, llama3: Path) -> None:
    def fail(_done: int, _total: int) -> None:
        raise OutputError("enough")

    with pytest.raises(OutputError, match="enough"):
        converters.convert(llama3, tmp_path / "model.gguf", on_progress=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("rules")
def test_a_damaged_history_that_another_program_has_open_is_told(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    path.write_bytes(b"no database at all" * 100)
    with path.open("rb"), pytest.raises(HistoryError, match="can't be set aside: a program has it open"):
        Database(path, print).read(lambda db: db.execute("SELECT 1").fetchone())
    Database(path, print).read(lambda db: db.execute("SELECT 1").fetchone())


def test_a_name_in_other_case_is_the_input_where_the_file_system_sees_no_case(tmp_path: Path) -> None:
    """A second name of the same file is what such a file system shows."""
    (tmp_path / "model.gguf").write_bytes(b"x")
    (tmp_path / "Model.GGUF").hardlink_to(tmp_path / "model.gguf")
    with refusal(OutputError, "output and input are the same"):
        check_inputs(tmp_path / "Model.GGUF", [tmp_path / "model.gguf"], [])
    (tmp_path / "MODEL.gguf").write_bytes(b"another file, where case is seen")
    check_inputs(tmp_path / "MODEL.gguf", [tmp_path / "model.gguf"], [])
    check_inputs(tmp_path / "mOdEl.gguf", [tmp_path / "model.gguf"], [])


def test_an_output_whose_names_differ_by_case_alone_is_refused(tmp_path: Path, llama4_scout: Path) -> None:
    import shutil  # noqa: PLC0415

    source = Path(shutil.copytree(llama4_scout, tmp_path / "source"))
    (source / "LICENSE").write_text("Do no harm.\n")
    (source / "license").write_text("Do no harm.\n")
    with refusal(OutputError, "would hold 'LICENSE' and 'license', which are one file on Windows and macOS"):
        converters.convert(source, tmp_path / "bundle")
