"""Makes README.md and its picture from nbs/index.ipynb, with nbconvert: python docs/readme.py"""

import re
from pathlib import Path

from nbconvert import MarkdownExporter
from nbformat import read
from traitlets.config import Config

root = Path(__file__).parents[1]


def from_root(text):
    "Links of a notebook in `nbs`, for a text one folder higher; a file in backticks becomes a link."
    text = re.sub(r"\]\((?!\w+:|\.\./|#)", "](nbs/", text).replace("](../", "](")
    return re.sub(
        r"(?<!\[)`([\w./]+)`",
        lambda m: f"[{m[0]}]({m[1]})" if (root / m[1]).is_file() else m[0],
        text,
    )


def render():  # dict from path below the repository to the bytes that belong there
    "README.md and its picture, from the committed outputs; obeys `hide`, `echo: false` and alt texts."
    nb = read(root / "nbs" / "index.ipynb", as_version=4)
    nb.metadata["language_info"] = {"name": "python"}
    nb.cells = [c for c in nb.cells if not c.source.startswith("#| hide")]
    outputs = [o for c in nb.cells for o in c.get("outputs", ())]
    alts = [a for o in outputs if (a := o.get("metadata", {}).get("image/png", {}).get("alt"))]
    for cell in nb.cells:
        if "#| echo: false" in cell.source:
            cell.metadata["transient"] = {"remove_source": True}
        cell.source = re.sub(r"^#\| .*\n", "", cell.source, flags=re.M)
    names = {"output_filename_template": "../docs/images/readme-{cell_index}{extension}"}
    exporter = MarkdownExporter(config=Config(ExtractOutputPreprocessor=names))
    text, resources = exporter.from_notebook_node(nb)
    for alt in alts:
        text = text.replace("![png]", f"![{alt}]", 1)
    text = re.sub(r"[ \t]+$", "", from_root(text), flags=re.M)
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    pictures = {path.removeprefix("../"): data for path, data in resources["outputs"].items()}
    return {"README.md": text.encode(), **pictures}


if __name__ == "__main__":
    for path, content in render().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
        print(path)
