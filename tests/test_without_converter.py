"""The runtime stands alone: an installed copy without ``converters`` and ``quant`` still chats."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from engines import CAPITAL

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    names = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"edge_llama", "converters", "quant"}


def test_it_chats_with_the_converter_deleted(wheel: Path, converted: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    shutil.rmtree(site / "converters")
    shutil.rmtree(site / "quant")
    code = (
        "import sys, edge_llama, edge_llama.cli; "
        f"assert edge_llama.__file__.startswith({str(site)!r}), edge_llama.__file__; "
        "import importlib.util as u; "
        f"model = edge_llama.open({str(converted)!r}, n_ctx=512); "
        f"print(model.chat().send({CAPITAL!r}, temperature=0).result().text); "
        "assert not {'converters', 'quant'} & {name.partition('.')[0] for name in sys.modules}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "The capital of Japan is Tokyo.\n"), done.stderr
