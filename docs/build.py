"""Builds the site from the notebooks and their committed outputs, offline: python docs/build.py [FOLDER]

Beside the notebooks, the pages have the same places as in the repository, so that a link which
holds there holds on the site. Signatures and comments are read from the notebooks' source: nothing
is imported, nothing is run.
"""

import ast
import io
import json
import re
import shutil
import sys
import tokenize
from pathlib import Path

from nbdev.serve import proc_nbs
from PIL import Image, ImageOps
from readme import from_root
from sphinx.cmd.build import build_main

docs = Path(__file__).parent.resolve()
root = docs.parent
nbs = root / "nbs"
groups = ("Lessons", "Exercises", "Appendices")


def group(path):  # number of its heading in the table of contents
    if path.parent != nbs or not path.name[:2].isdigit():
        return 1
    return 2 if path.name.startswith("9") else 0


def notebooks():  # in the order in which they are read; the front page apart
    found = [p for p in nbs.rglob("*.ipynb") if not re.search(r"/[._]", f"/{p.relative_to(nbs)}")]
    return sorted(set(found) - {nbs / "index.ipynb"}, key=lambda p: (group(p), p))


def read(path):  # notebook, with each cell's source as one string
    nb = json.loads(path.read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        cell["source"] = "".join(cell["source"])
    return nb


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def heading(nb):  # (title, subtitle)
    return re.match(r"# (.+)\n*(?:> (.+))?", nb["cells"][0]["source"]).groups()


def label(path, nb):  # its entry there: the title, after the number if there is one
    number = re.match(r"\d+(?=_)", path.name)
    return f"{number[0]} {heading(nb)[0]}" if number else heading(nb)[0]


def anchor(module, name):  # targets know no capitals
    return f"source-{module}-{name}" + ("" if name.islower() else "-capital")


def definitions(text):  # dict from name to `ast` node: what a cell defines
    found = {}
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        targets = [e for t in targets for e in getattr(t, "elts", [t])]
        found |= {getattr(t, "id", getattr(t, "name", "_")): node for t in targets}
    return {name: node for name, node in found.items() if not name.startswith("_")}


def maker(node):  # the function whose arguments a call of it takes
    if isinstance(node, ast.ClassDef):
        return next(
            (n for n in node.body if getattr(n, "name", "") in ("__init__", "__new__")), None
        )
    return node if isinstance(node, ast.FunctionDef) else None


def signature(node):  # as it was written: a default by its name, not by its value
    return re.sub(r"^(self|cls)(, )?", "", ast.unparse(node.args)) if node else ""


def table(node, text):  # markdown: the arguments and the comments beside them, or nothing
    if node is None:
        return ""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {t.start[0]: t.string[2:] for t in tokens if t.type == tokenize.COMMENT}
    a = node.args
    args = a.posonlyargs + a.args
    args = list(zip(args, [None] * (len(args) - len(a.defaults)) + a.defaults, strict=True))
    args += [(a.vararg, None), *zip(a.kwonlyargs, a.kw_defaults, strict=True), (a.kwarg, None)]
    stars = {a.vararg: "*", a.kwarg: "**"}
    rows = []
    for arg, default in args:
        comment = arg and comments.get((default or arg).end_lineno)
        if comment and node.lineno != arg.lineno:
            name = stars.get(arg, "") + arg.arg + (f"={ast.unparse(default)}" if default else "")
            rows.append((f"`{name}`", comment))
    if gives := comments.get(node.body[0].lineno - 1):
        context = any("contextmanager" in ast.unparse(d) for d in node.decorator_list)
        rows.append(("*in a* `with`" if context else "*returns*", gives))
    rows = [f"| {name} | {comment.replace('|', chr(92) + '|')} |" for name, comment in rows]
    return "\n".join(["| argument | what it is |", "| --- | --- |", *rows]) if rows else ""


def entry(name, node, text, kind=None):  # markdown: one name of the API
    made_by = maker(node)
    if made_by is None and not isinstance(node, ast.ClassDef):
        code = ast.get_source_segment(text, node)
        code = f"```python\n{code}\n```" if code.count("\n") < 8 else ""
        return f"`````{{py:data}} {name}\n\n{code}\n"
    kind = kind or ("class" if isinstance(node, ast.ClassDef) else "function")
    parts = [
        f"`````{{py:{kind}}} {name}({signature(made_by)})",
        ast.get_docstring(node) or "",
        table(made_by, text),
    ]
    for n in node.body if kind == "class" else ():
        if isinstance(n, ast.FunctionDef) and not n.name.startswith("_"):
            parts.append(entry(n.name, n, text, "method").replace("`````", "````") + "````")
    return "\n\n".join(parts)


def markdown(text, id):
    return {"cell_type": "markdown", "id": id, "metadata": {}, "source": text}


def alt(cell):
    "What the pictures of a cell say about themselves."
    images = [o.get("metadata", {}).get("image/png", {}) for o in cell["outputs"]]
    return " ".join(i["alt"] for i in images if "alt" in i) or "What the code above draws"


def is_folded(text, aside):
    "Imports and what sets something up, long cells, and those of middle length that draw or stand aside?"
    kinds = ast.Import, ast.ImportFrom, ast.Expr
    if text.count("\n") >= (12 if aside or re.search(r"^alt\(", text, re.M) else 30):
        return True
    start = re.match("(import|from) ", text)
    return start and all(isinstance(n, kinds) for n in ast.parse(text).body)


def translate(nb, title):  # (module it exports to or None, dict from name to (`ast` node, source))
    "A notebook as `proc_nbs` left it, for myst-nb: Quarto's options become its own, `show_doc` a table."
    sources = "\n".join(c["source"] for c in nb["cells"])
    module = re.search(r"^#\| default_exp:? (\S+)", sources, re.M)
    module = module and module[1]
    cells, exported, after, aside = [], {}, 0, title.startswith("9")  # an appendix
    for cell in nb["cells"]:
        aside = aside or cell["source"].startswith("## The rest of the code")
        options = dict(re.findall(r"^#\| ([\w-]+): *(.*)$", cell["source"], re.M))
        cell["source"] = text = re.sub(r"^#\| .*\n?", "", cell["source"], flags=re.M).strip("\n")
        shown = re.match(r"show_doc\((\w+)\)$", text)
        if cell["cell_type"] != "code":
            cells.append(cell)
        elif shown:
            node, text = exported[shown[1]]
            if arguments := table(maker(node), text):
                summary = f"<summary>Arguments of <code>{shown[1]}</code></summary>"
                text = f'<details class="arguments">{summary}\n\n{arguments}\n\n</details>'
                cells.insert(after, markdown(text, f"arguments-{shown[1]}"))
        elif text:
            tags = ["remove-input"] if options.get("echo") == "false" else []
            if options.get("code-fold") == "true" or is_folded(text, aside):
                tags.append("hide-input")
            cell["metadata"] = {"tags": tags, "mystnb": {"image": {"alt": alt(cell)}}}
            if module and {"export", "exports"} & options.keys():
                new = definitions(text)
                exported |= {name: (node, text) for name, node in new.items()}
                anchors = "\n".join(f"({anchor(module, name)})=" for name in new)
                cells.append(markdown(anchors, f"anchors-{cell['id']}"))
            cells.append(cell)
            after = len(cells)
    nb["cells"] = [c for c in cells if c["source"]]
    first = nb["cells"][0]
    first["source"] = re.sub("# .+", lambda m: f"# {title}", first["source"], count=1)
    meta = {"property=og:title": title, "description": heading(nb)[1] or title}
    meta["property=og:description"] = meta["description"]
    nb["metadata"]["myst"] = {"html_meta": {k: v.replace("`", "") for k, v in meta.items()}}
    return module, exported


def api(modules):  # markdown; from dict: module name to (path of the notebook, title, exported)
    parts = ["# The API", "> Everything that the lessons build, to be used elsewhere"]
    for module, (path, title, exported) in modules.items():
        parts += [f"## {title}", f"`slowconv.{module}`, built in [{title}]({path})"]
        parts.append(f"```{{py:currentmodule}} slowconv.{module}\n```")
        for name, (node, text) in exported.items():
            parts += [
                entry(name, node, text),
                f"[how {name} is built](#{anchor(module, name)})\n`````",
            ]
    return "\n\n".join(parts)


def contents(caption, entries):
    entries = "\n".join(entries)
    return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```"


def copy_linked(nb, at, folder):
    "Files of the repository that a page leads to are copied, to be downloaded."
    for link in re.findall(r"\]\(([^):#]+)\)", json.dumps(nb)):
        file = (root / at.parent / link).resolve()
        if file.is_file() and file.suffix not in (".ipynb", ".md"):
            target = folder / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)


def stage(folder):
    "Write the sources of all pages to `folder`."
    processed = proc_nbs(nbs, n_workers=0, force=True)
    toc, modules = {g: [] for g in (*groups, "Reference")}, {}
    for path in notebooks():
        nb, at = read(processed / path.relative_to(nbs)), path.relative_to(root)
        title = label(path, nb)
        module, exported = translate(nb, title)
        if module:
            modules[module] = at, title, exported
        copy_linked(nb, at, folder)
        write(folder / at, json.dumps(nb))
        toc[groups[group(path)]].append(str(at.with_suffix("")))

    lost = "There's nothing here. [Begin at the front page](index.ipynb), or search for it."
    write(folder / "404.md", f"---\norphan: true\n---\n# Page not found\n\n{lost}")
    write(folder / "api.md", api(modules))
    toc["Reference"].append("api")
    for name in ("benchmarks/README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text, at = (root / name).read_text(encoding="utf-8"), Path(name)
        copy_linked(text, at, folder)
        write(folder / at, text)
        toc["Reference"].append(str(at.with_suffix("")))

    front = read(processed / "index.ipynb")
    translate(front, heading(front)[0])
    for cell in front["cells"]:  # it stands where README.md does
        cell["source"] = (
            from_root(cell["source"]) if cell["cell_type"] == "markdown" else cell["source"]
        )
        for data in [
            o["data"] for o in cell.get("outputs", []) if "text/markdown" in o.get("data", {})
        ]:
            data["text/markdown"] = from_root("".join(data["text/markdown"]))
    copy_linked(front, Path("index.ipynb"), folder)
    toctrees = "\n\n".join(contents(*g) for g in toc.items() if g[1])
    front["cells"].append(markdown(toctrees, "contents"))
    write(folder / "index.ipynb", json.dumps(front))


def build(out):
    "Build the site in `out`/html. SystemExit for a folder in use, and for anything that Sphinx warns of."
    if out != docs / "_build" and out.is_dir() and any(out.iterdir()):
        sys.exit(f"{out} is not empty: name a new folder")
    shutil.rmtree(out, ignore_errors=True)
    source, html = out / "source", out / "html"
    stage(source)
    args = ["-q", "-W", "--keep-going", "-c", docs, "-d", out / "doctrees", source, html]
    if status := build_main([str(a) for a in args]):
        sys.exit(status)
    # a download is the notebook itself, with what the page hides, and lies beside its page
    for path in [nbs / "index.ipynb", *notebooks()]:
        shutil.copy(path, html / path.relative_to(root))
    shutil.copy(root / "LICENSE", html / "LICENSE.txt")  # each page leads to it
    for source_map in (html / "_static").rglob("*.map"):
        source_map.unlink()
    picture = Image.open(next((docs / "images").glob("*.png"))).convert("RGB")
    ImageOps.pad(picture, (1200, 630), color="white").save(html / "_static" / "card.png")


if __name__ == "__main__":
    out = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else docs / "_build"
    build(out)
    print(out / "html" / "index.html")
