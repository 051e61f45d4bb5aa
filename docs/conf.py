"""Settings of Sphinx for `make docs`.

The source folder is the root of the repository: README.md and
CONTRIBUTING.md are pages as they lie, and links between pages are the same
here and on a git host.
"""

project = 'mmgfp'
copyright = 'the mmgfp authors'
root_doc = 'docs/index'
html_theme = 'furo'
extensions = [
    'myst_parser',
    'sphinx.ext.apidoc',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
]
include_patterns = [
    'README.md',
    'C*.md',
    'docs/*.md',
    'docs/accuracy/*.md',
    'docs/methods/*.md',
    'docs/zoo/*.md',
    'docs/api/mmgfp*.rst',
]

# anchors of headings, as a git host makes them
myst_heading_anchors = 4

# the reference: a page for each room, made from its docstrings
apidoc_modules = [
    {'path': '../mmgfp', 'destination': 'docs/api', 'module_first': True}
]
autodoc_default_options = {'members': True, 'ignore-module-all': True}
autodoc_use_type_comments = False
autodoc_member_order = 'bysource'
default_role = 'code'
napoleon_use_ivar = True
