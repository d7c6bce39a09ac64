"""How Sphinx makes the book.  build.py gives it a copy of the repository; nothing is fetched."""

project = "GRPO is secretly a process reward model"
author = "the maintainers of minigrpo"
copyright = "the maintainers of minigrpo; text CC BY 4.0, code Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.mathjax"]
root_doc = "tutorials/book/index"
include_patterns = [
    "tutorials/book/index.md",
    "tutorials/0*.ipynb",
    "tutorials/*.md",
    "tutorials/*/*.md",
    "minigrpo/README.md",
    "minigrpo/models/README.md",
    "results/*.md",
    "tests/wrong_answers/README.md",
    "benchmarks/*.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "README.md",
    "**/*.py.md",  # the Python files that a page links: build.py writes them
]
exclude_patterns = ["tutorials/slides/*.md", "tutorials/autograder/*.md"]

myst_enable_extensions = ["dollarmath"]
myst_dmath_double_inline = True  # a formula of its own may stand inside a list
myst_heading_anchors = 4  # so that links such as README.md#commands work
suppress_warnings = ["myst.header"]  # a page may begin with a second-level heading
nb_execution_mode = "off"  # the notebooks are stored with their outputs
nb_merge_streams = True
nb_render_markdown_format = "myst"  # else a table that a cell displays stays text
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
mathjax_path = "tex-svg.js"  # one file, which draws formulas as SVG: from sphinx-mathjax-offline
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"scale": 0.95}}

html_theme = "furo"
html_title = "minigrpo, the course"
html_static_path = ["static"]
html_extra_path = ["extra"]
html_css_files = ["book.css"]
html_show_sphinx = False
html_copy_source = False
html_favicon = "static/favicon.svg"
html_use_index = False  # there are no index entries
html_js_files = ["book.js"]
