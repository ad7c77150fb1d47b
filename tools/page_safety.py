"""A Sphinx extension: no text in a widget's state can end the script element that holds it.

MyST-NB escapes only a lower-case `</script>`. In JSON, `\\u003c` is the same character as `<`, and ends nothing.
"""


def escape_state(app, pagename, templatename, context, doctree) -> None:
    """Escape every `<` of the states that this page's widgets are stored in."""
    scripts = app.env.nb_metadata.get(pagename, {}).get("js_files", {})
    if "ipywidgets_state" in scripts:
        address, options = scripts["ipywidgets_state"]
        scripts["ipywidgets_state"] = (address, options | {"body": options["body"].replace("<", "\\u003c")})


def setup(app) -> dict:
    """Run before MyST-NB puts the states into the page (it does so at Sphinx's default priority of 500)."""
    app.connect("html-page-context", escape_state, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
