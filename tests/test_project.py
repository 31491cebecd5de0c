"The project itself: what is generated is up to date, what is promised is there."

import filecmp
import re
import runpy
import shutil
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest

import slowconv

root = Path(__file__).parents[1]
bin = Path(sys.executable).parent


def test_readme_is_up_to_date():
    for path, content in runpy.run_path(root / "scripts" / "readme.py")["render"]().items():
        assert (root / path).read_bytes() == content, f"{path} is out of date: run make readme"


def test_export_and_clean_leave_no_diff(tmp_path):
    for name in ("nbs", "slowconv", "pyproject.toml", "settings.ini", "setup.py", "README.md"):
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        copy(root / name, tmp_path / name)
    for command in ("nbdev-export", "nbdev-clean"):
        subprocess.run([bin / command], cwd=tmp_path, check=True)
    for path in [*tmp_path.glob("nbs/**/*.ipynb"), *tmp_path.glob("slowconv/**/*.py")]:
        original = root / path.relative_to(tmp_path)
        assert filecmp.cmp(path, original, shallow=False), (
            f"{original.name}: run nbdev-export, nbdev-clean"
        )


def test_public_names_are_the_modules_own():
    stub = (root / "slowconv" / "__init__.pyi").read_text()
    handed_on = re.findall(r"^from \.(\w+) import (\w+) as \2$", stub, re.M)
    assert sorted(name for _, name in handed_on) == sorted(slowconv.__all__)
    for module, name in handed_on:
        assert name in import_module(f"slowconv.{module}").__all__
        assert getattr(slowconv, name) is getattr(import_module(f"slowconv.{module}"), name)


def test_star_import_of_a_module():
    names = {}
    exec("from slowconv.training import *", names)
    assert {"fit", "accuracy", "History", "FitResult"} <= set(names)


def test_no_module_imports_from_one_below_it():
    order = (
        "show kernels explore animate convs cache sources loaders data processes checkpoint training "
        "inside better fast puzzles command"
    ).split()
    for i, module in enumerate(order):
        text = (root / "slowconv" / f"{module}.py").read_text()
        imported = set(re.findall(r"from (?:slowconv)?\.(\w+) import", text))
        assert imported <= set(order[:i]), module
    assert imported, "the last module imports from some of the others"


def test_import_is_light():
    code = "import slowconv, sys; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fit_needs_neither_matplotlib_nor_datasets():
    code = "from slowconv import fit, fashion_mnist; import sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "torch" in loaded
    assert not {"matplotlib", "datasets", "torchvision"} & set(loaded)


def test_version_and_description_reach_the_metadata():
    meta = metadata.metadata("slowconv")
    assert meta["Version"] == slowconv.__version__
    settings = (root / "settings.ini").read_text()
    assert meta["Summary"] in settings and meta["Requires-Python"] in settings.replace(
        "min_python = ", ">="
    )


def test_the_package_holds_what_is_no_python(tmp_path):
    for name in ("slowconv", "pyproject.toml", "settings.ini", "setup.py", "README.md"):
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        copy(root / name, tmp_path / name)
    command = [sys.executable, "setup.py", "-q", "build", "-b", "out"]
    subprocess.run(command, cwd=tmp_path, check=True)
    built = {p.name for p in (tmp_path / "out" / "lib" / "slowconv").iterdir()}
    assert {"explorer.html", "__init__.pyi", "sample", "explore.py"} <= built


@pytest.mark.parametrize("path", sorted((root / "nbs").rglob("*.ipynb")), ids=lambda p: p.name)
def test_notebooks_name_no_folder_of_a_machine(path):
    text = path.read_text()
    assert not re.search(r"/(home|root|work|Users|tmp)/", text)
