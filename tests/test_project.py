"The project itself: what is generated is up to date, what is promised is there."

import filecmp
import inspect
import json
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
notebooks = sorted(p for p in (root / "nbs").rglob("*.ipynb") if "checkpoint" not in str(p))
bin = Path(sys.executable).parent


def test_readme_is_up_to_date():
    for path, content in runpy.run_path(root / "docs" / "readme.py")["render"]().items():
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


contract = {
    "apply_kernel": "row, col, img, kernel",
    "conv": "ni, nf, ks=3, stride=2, act=True",
    "to_device": "x, device='cpu'",
    "get_model": "",
    "get_dls_from_dataset_dict": "dsd, collate_fn=default_collate, bs=32",
    "fashion_collate": "examples",
    "fashion_mnist": "bs=256",
    "mnist": "bs=256",
    "accuracy": "y, y_pred",
    "fit": "epochs, model, loss_func, opt, train_dl, valid_dl, tqdm_=False",
}


@pytest.mark.parametrize("name", contract)
def test_positions_names_and_defaults_are_the_contract(name):
    def written(p):
        default = getattr(p.default, "__name__", repr(p.default))
        return p.name if p.default is p.empty else f"{p.name}={default}"

    params = inspect.signature(getattr(slowconv, name)).parameters.values()
    positional = ", ".join(written(p) for p in params if p.kind is not p.KEYWORD_ONLY)
    assert positional == contract[name].replace("'cpu'", repr(slowconv.def_device))


def test_star_import_dir_and_help_need_no_extra():
    code = """
import sys
sys.modules |= {"numba": None, "accelerate": None}  # an import of either raises ImportError
import slowconv
from slowconv import *
fit, fashion_mnist, ConvExplorer, get_best_model
assert set(slowconv.__all__) <= set(dir(slowconv))
help(slowconv)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "fit" in done.stdout, done.stderr


def test_links_lead_somewhere_from_where_the_notebook_lies():
    n = 0
    for path in notebooks:
        cells = json.loads(path.read_text())["cells"]
        texts = [c["source"] for c in cells if c["cell_type"] == "markdown"]
        texts += [
            o.get("data", {}).get("text/markdown", []) for c in cells for o in c.get("outputs", [])
        ]
        for link in re.findall(r"\]\((?!\w+:)([^)#\s]+)[^)]*\)", "\n".join(map("".join, texts))):
            target = (path.parent / link).resolve()
            # JupyterLab shows no file outside the folder that it was opened on
            assert target.exists() and root / "nbs" in target.parents, f"{path.name}: {link}"
            n += 1
    assert n > 20


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (root / "README.md").read_text())
    assert len(links) > 15 and all((root / link).exists() for link in links)


def test_no_module_imports_from_one_below_it():
    order = "show kernels convs data training explore inside better best".split()
    order += "fast backward puzzles command course".split()
    modules = {p.stem for p in (root / "slowconv").glob("[!_]*.py")}
    assert modules == set(order)
    for i, module in enumerate(order):
        text = (root / "slowconv" / f"{module}.py").read_text()
        imported = set(re.findall(r"from (?:slowconv)?\.(\w+) import", text))
        assert imported <= set(order[:i]), module


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
    shutil.copytree(root / "nbs" / "exercises", tmp_path / "nbs" / "exercises")
    command = [sys.executable, "setup.py", "-q", "build", "-b", "out"]
    subprocess.run(command, cwd=tmp_path, check=True)
    built = {p.name for p in (tmp_path / "out" / "lib" / "slowconv").iterdir()}
    assert {"explorer.html", "__init__.pyi", "sample", "explore.py"} <= built
    code = (
        "from pathlib import Path; from slowconv.course import write_course as w; w(Path('course'))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "out" / "lib", check=True)
    written = {p.name for p in (tmp_path / "out" / "lib" / "course" / "key").iterdir()}
    assert written == {p.name for p in (root / "nbs" / "exercises").glob("[01]*.ipynb")}


@pytest.mark.parametrize("path", notebooks, ids=lambda p: p.name)
def test_notebooks_name_no_folder_of_a_machine(path):
    text = path.read_text()
    assert not re.search(r"/(home|root|work|Users|tmp)/", text)
