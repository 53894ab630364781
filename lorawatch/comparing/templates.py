"""The templates of `assets/templates`, filled in: every value is escaped, and a value that is missing is an error.

jinja2 takes 40 ms to load, so only what writes a page imports it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(name: str, **values: Any) -> str:
    """A template of that file name, filled in with these values; without the newline that ends the file."""
    return _environment().get_template(name).render(values).removesuffix("\n")


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lorawatch.assets", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    environment.filters["px"] = _px
    return environment


def _px(length: float) -> str:
    """A length or position of an SVG, to a tenth of its unit."""
    return f"{length:.1f}"
