"""Sphinx's settings for the site. scripts/make_site.py lays the pages out and runs it."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util.docutils import SphinxDirective

project = "madad_lite"
html_title = "madad_lite"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
nb_execution_mode = "off"  # the outputs are those that are stored
myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = True
html_math_renderer = "mathml"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
exclude_patterns = ["notebooks.md", "decks.md"]
suppress_warnings = ["mystnb.mime_priority"]


class Doors(SphinxDirective):
    """The front page's three doors, side by side."""

    has_content = True

    def run(self):
        box = nodes.container(classes=["doors"])
        self.state.nested_parse(self.content, self.content_offset, box)
        return [box]


class Door(SphinxDirective):
    has_content, required_arguments = True, 1

    def run(self):
        box = nodes.container(classes=["door"])
        box += nodes.paragraph("", "", nodes.strong(text=self.arguments[0]))
        self.state.nested_parse(self.content, self.content_offset, box)
        return [box]


def plain_docstring(app, what, name, thing, options, lines):
    """Docstrings are plain English with `code`, not reStructuredText: tables and indented lines stay as they stand,
    and nothing else in them is markup.
    """
    out = []
    for block in re.split(r"\n\s*\n", "\n".join(lines)):
        rows = block.split("\n")
        if any(row.startswith(("|", "    ")) for row in rows):
            out += ["::", "", *(f"    {row}" for row in rows), ""]
            continue
        for row in rows:
            parts = re.split(r"`+([^`]+)`+", row.strip())
            escaped = (re.sub(r"([\\*_|<>`:\[\]])", r"\\\1", text) for text in parts[::2])
            code = (f"\\ ``{text}``\\ " for text in parts[1::2])
            merged = [text for pair in zip(escaped, [*code, ""]) for text in pair]
            out.append(f"| {''.join(merged)}" if row.strip() else "")
        out.append("")
    lines[:] = out


def visit_math(translator, node):
    """Equations as MathML: every browser of today shows it, and no script has to be loaded for it."""
    display = "inline" if isinstance(node, nodes.math) else "block"
    translator.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.add_directive("grid-of-doors", Doors)
    app.add_directive("door", Door)
    app.connect("autodoc-process-docstring", plain_docstring)
