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

extensions = ["myst_nb"]
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
maximum_signature_line_length = 60
toc_object_entries = False

html_theme = "sphinx_book_theme"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_favicon = "static/logo.svg"
html_use_index = html_domain_indices = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"image_light": "static/logo.svg", "image_dark": "static/logo.svg", "text": project},
    "navbar_persistent": [],  # the search is in the sidebar, and on small screens above the page
    "use_fullscreen_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "github-dark",
}
urls = pyproject["project"].get("urls", {})
repository = next(
    (u for u in urls.values() if re.match(r"https://github\.com/[^/]+/[^/]+$", u)), None
)
if repository:
    html_theme_options |= {
        "repository_url": repository,
        "repository_branch": "main",
        "use_repository_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }


class LinkNames(SphinxPostTransform):
    "A public name in backticks leads to its place in the API."

    default_priority = 600
    places = {
        name: f"slowconv.{m}.{name}" for m, name in re.findall(r"from \.(\w+) import (\w+)", stub)
    }

    def run(self, **kwargs):
        for literal in list(self.document.findall(nodes.literal)):
            name = re.match(r"(\w+)(\(.*\))?$", literal.astext())
            if name is None or name[1] not in self.places or "code" in literal["classes"]:
                continue
            parent = literal.parent
            while parent and not isinstance(parent, (nodes.reference, nodes.title)):
                parent = parent.parent
            if parent is None:
                uri = self.app.builder.get_relative_uri(self.env.docname, "api")
                link = nodes.reference(
                    "", "", internal=True, refuri=f"{uri}#{self.places[name[1]]}"
                )
                literal.replace_self(link)
                link += literal


def visit_math(translator, node):
    block = isinstance(node, nodes.math_block)
    math = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="math">{math}</div>' if block else math)
    raise nodes.SkipNode


def no_button_to_run_the_front_page(app, pagename, templatename, context, doctree):
    if pagename == "index":
        context["header_buttons"] = [
            b for b in context["header_buttons"] if b.get("label") != "launch-buttons"
        ]


def setup(app):
    app.add_post_transform(LinkNames)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("html-page-context", no_button_to_run_the_front_page, priority=900)
