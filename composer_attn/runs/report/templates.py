"""The settings of the pages' templates."""

import jinja2


def templates_of(package: str) -> jinja2.Environment:
    """Return the templates in a package; a name that a page does not define is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
