"""Hands settings.ini to setuptools; the version comes from slowconv/__init__.py through pyproject.toml.

The puzzles' notebooks go into the package, without their outputs: slowconv-course reads them there.
"""

import json
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
cfg = ConfigParser(delimiters=["="])
cfg.read(here / "settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]


class BuildWithPuzzles(build_py):
    def run(self):
        super().run()
        for path in () if self.editable_mode else (here / "nbs" / "exercises").glob("*.ipynb"):
            nb = json.loads(path.read_text(encoding="utf-8"))
            for cell in nb["cells"]:
                cell |= {"outputs": []} if cell["cell_type"] == "code" else {}
            out = Path(self.build_lib, cfg["lib_name"], "exercises", path.name)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(nb, indent=1, ensure_ascii=False), encoding="utf-8")


setup(
    cmdclass={"build_py": BuildWithPuzzles},
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    keywords=cfg["keywords"].split(),
    license=cfg["license"],
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={
        name.removesuffix("_requirements"): value.split()
        for name, value in cfg.items()
        if name.endswith("_requirements")
    },
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    packages=[cfg["lib_name"], f"{cfg['lib_name']}.sample"],
    package_data={cfg["lib_name"]: ["py.typed", "*.pyi", "*.html", "*.safetensors", "sample/*"]},
)
