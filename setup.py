"Hands settings.ini to setuptools; the version comes from slowconv/__init__.py through pyproject.toml."

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=["="])
cfg.read(here / "settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]

setup(
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
    packages=[cfg["lib_name"]],
    package_data={cfg["lib_name"]: ["py.typed", "*.pyi", "*.html", "*.safetensors", "sample/*"]},
)
