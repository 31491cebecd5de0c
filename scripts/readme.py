"""Makes README.md and its pictures from nbs/index.ipynb, with nbconvert:

python scripts/readme.py
"""

from pathlib import Path

from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExtractOutputPreprocessor
from nbformat import read

root = Path(__file__).parents[1]


def render():  # dict from path below the repository to the bytes that belong there
    "README.md and its pictures; a cell with `#| hide` is left out, `#| echo: false` keeps its output only."
    nb = read(root / "nbs" / "index.ipynb", as_version=4)
    nb.cells = [c for c in nb.cells if not c.source.startswith("#| hide")]
    for cell in nb.cells:
        lines = cell.source.splitlines(keepends=True)
        if cell.source.startswith("#| echo: false"):
            cell.metadata["transient"] = {"remove_source": True}
        cell.source = "".join(line for line in lines if not line.startswith("#| "))
    extract = ExtractOutputPreprocessor(
        enabled=True, output_filename_template="docs/images/readme-{cell_index}{extension}"
    )
    exporter = MarkdownExporter(preprocessors=[extract])
    text, resources = exporter.from_notebook_node(nb)
    text = "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"
    return {"README.md": text.encode(), **resources["outputs"]}


if __name__ == "__main__":
    for path, content in render().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
        print(path)
