"The site: built once from the notebooks, then read as files, and in a browser that has no network."

import ast
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
from fastcore.nbio import read_nb
from selenium.webdriver import Keys
from test_explore import Page as Explorer

import slowconv

root = Path(__file__).parents[1]
nbs = root / "nbs"
notebooks = sorted(p for p in nbs.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def order(path):
    "Lessons, then exercises, then appendices, each in the order of their names."
    lesson = path.parent == nbs and path.name[0].isdigit()
    return (2 if path.name.startswith("9") else 0) if lesson else 1, path


# `nbs/01_kernels.html` and so on, as the reader comes to them
lessons = [
    str(p.relative_to(root).with_suffix(".html"))
    for p in sorted(notebooks, key=order)
    if p != nbs / "index.ipynb"
]


class Page(HTMLParser):
    "What a page has: ids, links, what it loads, the text of its article, and of that what's no link."

    nested = ("article", "a", "h1", "h2", "h3", "pre", "code", "summary", "table")

    def __init__(self, html):
        super().__init__()
        self.ids, self.links, self.loads, self.meta, self.words = set(), [], [], {}, []
        self.prose, self.inside = [], []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[k] for k in ("id", "name") if k in attrs and tag != "meta"}
        self.inside += [tag] * (tag in self.nested)
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        elif tag == "link":
            self.loads.append(attrs["href"])
        elif tag == "meta" and "content" in attrs:
            self.meta[attrs.get("name") or attrs.get("property")] = attrs["content"]
        if "src" in attrs:
            self.loads.append(attrs["src"])

    def handle_endtag(self, tag):
        if tag in self.nested:
            self.inside.pop()

    def handle_data(self, data):
        if "article" in self.inside:
            self.words.append(data)
        if self.inside == ["article"]:
            self.prose.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The folder of the built site."
    for module in ("sphinx", "myst_nb", "furo", "sphinx_copybutton"):
        pytest.importorskip(module, reason="the site needs what `make docs` installs")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, root / "docs" / "build.py", out], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


@pytest.fixture(scope="module")
def pages(site):
    "dict from `nbs/01_kernels.html` and so on to `Page`"
    paths = [p for p in site.rglob("*.html") if "_static" not in p.parts]
    return {str(p.relative_to(site)): Page(p.read_text(encoding="utf-8")) for p in paths}


# --- as files ---


def test_every_notebook_is_a_page_in_its_order(site, pages):
    sidebar = [link for link in pages["index.html"].links if link in lessons]
    assert list(dict.fromkeys(sidebar)) == lessons
    for path in notebooks:
        at = "index.html" if path.parent == nbs and path.stem == "index" else path.relative_to(root)
        title = re.match(r"# (.+)", read_nb(path).cells[0].source)[1]
        page = pages[str(Path(at).with_suffix(".html"))]
        number = re.match(r"\d\d ", path.stem.replace("_", " "))
        title = (number[0] if number else "") + title.replace("`", "")
        assert page.meta["og:title"] == title and title in page.text
        assert page.meta["description"] == page.meta["og:description"]


def test_a_lesson_that_is_named_is_linked(pages):
    for name in lessons:
        named = re.findall(r"[Ll]essons? (\d\d)", " ".join(pages[name].prose))
        assert set(named) <= {Path(name).name[:2]}, name


def test_pages_are_light(site, pages):
    "What a browser must read before it shows a page: a second's worth of a slow line, at most."
    for name, page in pages.items():
        loads = {urljoin(name, urlsplit(u).path) for u in page.loads if not u.startswith("data:")}
        heavy = [site / u for u in loads if u.endswith((".css", ".js"))]
        assert sum(f.stat().st_size for f in heavy) < 200_000 or name == "search.html", name
    assert not [*site.rglob("*.map")]


def test_no_link_is_dead(site, pages):
    dead = []
    for name, page in pages.items():
        for link in page.links + page.loads:
            url = urlsplit(link)
            if url.scheme in ("http", "https", "mailto", "data"):
                continue
            target, anchor = urldefrag(urljoin(name, unquote(url._replace(query="").geturl())))
            there = (site / target).is_file()
            if not there or anchor and target in pages and anchor not in pages[target].ids:
                dead.append((name, link))
    assert not dead


def test_each_page_leads_to_the_licence_and_the_sitemap_to_each_page(pages, tmp_path):
    for name, page in pages.items():
        at = name.count("/") * "../" + "LICENSE.txt"
        assert at in page.links, name
    conf = spec_from_file_location("conf", root / "docs" / "conf.py")
    conf.loader.exec_module(module := module_from_spec(conf))
    config = SimpleNamespace(html_baseurl="https://example.org/")
    env = SimpleNamespace(found_docs={"index", "nbs/01_kernels", "404"})
    app = SimpleNamespace(config=config, env=env, outdir=tmp_path)
    module.write_sitemap(app, None)
    found = re.findall("<loc>(.*?)</loc>", (tmp_path / "sitemap.xml").read_text())
    assert found == [f"https://example.org/{d}.html" for d in ("index", "nbs/01_kernels")]


def test_nothing_is_loaded_from_outside(site, pages):
    outside = [(n, u) for n, p in pages.items() for u in p.loads if re.match(r"(https?:)?//", u)]
    for css in site.rglob("*.css"):
        text = css.read_text(encoding="utf-8")
        outside += [
            (css.name, u)
            for u in re.findall(r"(?:url\(|@import )[\"']?((?:https?:)?//[^)\"']+)", text)
        ]
    assert not outside


def test_exported_cells_are_shown_and_hidden_ones_and_directives_are_not(pages):
    seen = set()
    for path in notebooks:
        page = pages.get(str(path.relative_to(root).with_suffix(".html")), pages["index.html"])
        assert "#|" not in page.text
        for cell in read_nb(path).cells:
            directive, _, code = cell.source.partition("\n")
            if directive in ("#| hide", "#| export"):
                seen.add(directive)
                code = re.sub(r"\s+", " ", code).strip()
                assert (code in page.text) == (directive == "#| export"), path.name
    assert len(seen) == 2


def test_downloads_are_the_notebooks_themselves(site):
    for path in notebooks:
        at = path.relative_to(root)
        assert (site / at).read_bytes() == path.read_bytes()


def module_names():
    for path in sorted((root / "slowconv").glob("[!_]*.py")):
        for name in import_module(f"slowconv.{path.stem}").__all__:
            yield path.stem, name


def test_the_api_has_every_public_name_and_what_is_said_of_it(pages):
    page = pages["api.html"]
    plain = (
        page.text.translate(str.maketrans("’‘“”–", "''\"\"-")).replace("`", "").replace("…", "...")
    )
    public = set(module_names())
    for module, name in public:
        assert f"slowconv.{module}.{name}" in page.ids
    for path in (root / "slowconv").glob("[!_]*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (path.stem, getattr(node, "name", "")) in public:
                said = (ast.get_docstring(node) or "").replace("`", "")
                assert re.sub(r"\s+", " ", said) in plain, node.name
    for comment in ("kernel size, height and width; odd", "tensor [H-h+1,W-w+1]"):
        assert comment in page.text  # an argument's, and what a function returns


def test_names_in_prose_lead_to_the_api(pages):
    places = {name: f"../api.html#slowconv.{m}.{name}" for m, name in module_names()}
    missing, there = [], 0
    for path in notebooks:
        at = str(path.relative_to(root).with_suffix(".html"))
        prose = [c.source for c in read_nb(path).cells if c.cell_type == "markdown"]
        prose = "\n".join(p for p in prose if not p.startswith("#"))
        for name in set(re.findall(r"(?<!`)`(\w+)`(?!`)", prose)) & set(slowconv.__all__):
            if at in pages:
                there += 1
                missing += [(at, name)] * (places[name] not in pages[at].links)
    assert there and not missing


def test_the_api_leads_to_the_lessons(pages):
    links = {urldefrag(link)[0] for link in pages["api.html"].links}
    exporting = [p for p in notebooks if "#| default_exp" in p.read_text(encoding="utf-8")]
    assert {str(p.relative_to(root).with_suffix(".html")) for p in exporting} <= links
    assert "nbs/01_kernels.html#source-kernels-apply-kernel" in pages["api.html"].links


# --- in a browser ---


@pytest.mark.parametrize("width", [360, 1440])
def test_pages_open_without_complaint_and_fit(browser, site, pages, width):
    "A phone shows figures at 70 % at least, so that none of their text is below 7 pixels."
    wrong, address = [], site.as_uri() + "/"
    for name in sorted(pages):
        browser.open(address + name, width)
        loaded, broken = browser.run("""return [
            performance.getEntriesByType('resource').map(e => e.name),
            [...document.images].filter(i => i.complete && !i.naturalWidth
                || innerWidth < 600 && i.getBoundingClientRect().width < 0.69 * i.getAttribute('width')
            ).map(i => i.src)]""")
        loaded = [u for u in loaded if not u.startswith((address, "data:", "blob:"))]
        severe = [e for e in browser.driver.get_log("browser") if e["level"] == "SEVERE"]
        found = browser.overflow(), loaded, broken, severe
        wrong += [(name, what) for what in found if what]
    assert not wrong


@pytest.mark.parametrize("width", [360, 1440])
def test_pages_have_no_barriers(browser, site, pages, width):
    "WCAG 2.1, levels A and AA, as far as axe-core can tell, in light and dark."
    axe = root / "node_modules" / "axe-core" / "axe.min.js"
    if not axe.is_file():
        pytest.skip("needs axe-core, which .ci/run installs with npm")
    wrong = []
    browser.driver.set_script_timeout(300)  # a busy machine is no barrier
    for name in sorted(pages):
        for scheme in ("light", "dark"):
            browser.open(f"{site.as_uri()}/{name}", width, scheme)
            browser.run(axe.read_text(encoding="utf-8"))
            wrong += browser.run(
                """const seen = new Set();  // a colour of code is looked at once a page: they're thousands
                for (const s of document.querySelectorAll('pre span')) {
                    const kind = s.className + !s.closest('.cell_output');
                    seen.has(kind) ? s.replaceWith(s.textContent) : seen.add(kind);
                }
                return axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']}).then(r =>
                    r.violations.flatMap(v => v.nodes.map(n => [...arguments, v.id, n.html])))""",
                name,
                scheme,
            )
    assert not wrong


def test_the_contents_close_when_one_is_chosen(browser, site):
    browser.open(site.as_uri() + "/" + lessons[0], 360)
    chosen = """const toc = document.getElementById('__toc');
        toc.click();
        const open = toc.checked;
        document.querySelector('.toc-drawer a[href="#summary"]').click();
        return [open, toc.checked, location.hash];"""
    assert browser.run(chosen) == [True, False, "#summary"]


def test_the_explorer_answers_the_keyboard(browser, site):
    "On the page of lesson 01, at a phone's width: arrow keys move the window, and the sum is the right one."
    browser.open(site.as_uri() + "/" + lessons[0], 400)
    page = Explorer(browser)
    page.keys("map", Keys.HOME, Keys.PAGE_UP, Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    state = page.check()
    assert (state["row"], state["col"]) == (1, 1)
