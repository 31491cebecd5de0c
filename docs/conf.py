"How Sphinx makes the pages; docs/build.py prepares what it reads."

import re
import tomllib
from configparser import ConfigParser
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.transforms.post_transforms import SphinxPostTransform

root = Path(__file__).parents[1]
settings = ConfigParser(delimiters=["="])
settings.read(root / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]
pyproject = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
stub = (root / "slowconv" / "__init__.pyi").read_text(encoding="utf-8")

project = html_title = settings["lib_name"]
author = settings["author"]
html_show_copyright = html_show_sphinx = False
language = "en"

extensions = ["myst_nb", "sphinx_copybutton"]
copybutton_selector = "div.cell_input pre, div.highlight-python pre, div.highlight-sh pre"
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
nb_output_stderr = "remove"  # progress bars
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}  # no widgets, and nothing from the network
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
toc_object_entries = False

html_theme = "furo"
html_static_path = ["static"]
templates_path = ["templates"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_logo = html_favicon = "static/logo.svg"
html_use_index = html_domain_indices = html_copy_source = False
html_theme_options = {
    "top_of_page_buttons": ["view"],  # downloads the notebook: see templates
    "light_css_variables": {
        "color-brand-primary": "#1a6aa5",
        "color-brand-content": "#1a6aa5",
        "color-brand-visited": "#134e7a",
        "color-foreground-primary": "#23292f",
        "color-foreground-secondary": "#57636e",
        "color-foreground-muted": "#57636e",
        "color-background-secondary": "#f4f6f8",
        "color-background-border": "#dde2e7",
        "color-highlight-on-target": "#fff3c4",
        "color-code-background": "#f4f6f8",
        "color-api-name": "#23292f",
        "figure-padding": "0px",
        "figure-background": "none",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7cb8e4",
        "color-brand-content": "#7cb8e4",
        "color-brand-visited": "#a9d2f2",
        "color-foreground-primary": "#d5dce3",
        "color-foreground-secondary": "#9aa6b2",
        "color-foreground-muted": "#9aa6b2",
        "color-background-primary": "#14181d",
        "color-background-secondary": "#1e252d",
        "color-background-border": "#333d48",
        "color-highlight-on-target": "#4a4210",
        "color-code-background": "#1e252d",
        "color-api-name": "#d5dce3",
        "figure-padding": "0.75rem",
        "figure-background": "white",
    },
}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "github-dark"

# with an address in [project.urls]: a social card, a sitemap, a 404 page for every folder, a button for Colab
urls = pyproject["project"].get("urls", {})
html_baseurl = urls.get("Documentation", "")
github = re.compile(r"https://github\.com/([^/]+/[^/]+)$")
repository = next((m[1] for u in urls.values() if (m := github.match(u))), None)
html_context = {"repository": repository, "licence": settings["license"]}


def in_link(node):
    "Is it part of a link or of a heading?"
    while node and not isinstance(node, (nodes.reference, nodes.title, nodes.literal_block)):
        node = node.parent
    return node is not None


class Links(SphinxPostTransform):
    'A public name in backticks leads to its place in the API, "lesson 06" to that lesson.'

    default_priority = 600
    places = {
        name: f"slowconv.{m}.{name}" for m, name in re.findall(r"from \.(\w+) import (\w+)", stub)
    }

    def link(self, child, page, anchor=""):
        uri = self.app.builder.get_relative_uri(self.env.docname, page) + anchor
        return nodes.reference("", "", child, internal=True, refuri=uri)

    def run(self, **kwargs):
        for literal in list(self.document.findall(nodes.literal)):
            name = re.match(r"(\w+)(\(.*\))?$", literal.astext())
            if name and name[1] in self.places and not in_link(literal):
                link = self.link(literal.deepcopy(), "api", f"#{self.places[name[1]]}")
                literal.replace_self(link)
        lessons = {d[4:6]: d for d in self.env.found_docs - {self.env.docname} if d[4:6].isdigit()}
        for text in list(self.document.findall(nodes.Text)):
            parts = re.split(r"((?:[Ll]essons? |(?<=[Ll]essons \d\d and ))\d\d\b)", text)
            if len(parts) > 1 and not in_link(text):
                parts = [nodes.Text(p) for p in parts]
                for i in range(1, len(parts), 2):
                    if page := lessons.get(parts[i][-2:]):
                        parts[i] = self.link(parts[i], page)
                text.parent.replace(text, parts)
        for image in self.document.findall(nodes.image):
            image["loading"] = "lazy"
            if int(image.get("width", 0)) > 450:
                image["classes"].append("wide")


def visit_math(translator, node):
    block = isinstance(node, nodes.math_block)
    math = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="math">{math}</div>' if block else math)
    raise nodes.SkipNode


def finish(app, pagename, templatename, context, doctree):
    "What Furo and myst-nb leave out of a page for screen readers, and what needs the site's address."
    for key, old, new in (
        ("furo_navigation_tree", 'role="heading"', 'role="heading" aria-level="2"'),
        ("body", ' aria-label="Toggle hidden content"', ""),
    ):
        context[key] = context.get(key, "").replace(old, new)
    if base := app.config.html_baseurl:
        tags = f'<meta property="og:image" content="{base}_static/card.png">'
        tags += f'<base href="{base}">' if pagename == "404" else ""
        context["metatags"] = context.get("metatags", "") + tags


def write_sitemap(app, error):
    if (base := app.config.html_baseurl) and not error:
        pages = sorted(app.env.found_docs - {"404"})
        places = "".join(f"<url><loc>{base}{page}.html</loc></url>\n" for page in pages)
        head = '<?xml version="1.0" encoding="UTF-8"?>\n'
        head += '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
        (Path(app.outdir) / "sitemap.xml").write_text(f"{head}{places}</urlset>\n", "utf-8")


def setup(app):
    app.add_post_transform(Links)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("html-page-context", finish, priority=900)
    app.connect("build-finished", write_sitemap)
