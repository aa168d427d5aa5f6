"""The one module that imports Jinja2 and plotly."""

from __future__ import annotations

from importlib import resources

try:
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs
except ImportError as error:
    raise ImportError("the HTML report needs plotly and Jinja2: pip install 'thermoclaw[html]'") from error

__all__ = ["Markup", "asset", "environment", "get_plotlyjs"]


def asset(name: str) -> str:
    """A file of this package's assets, with line ends as a browser reads them."""
    text = resources.files("thermoclaw.report.html").joinpath("assets", name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


def environment() -> Environment:
    """Templates that escape whatever they are given, and refuse what they are not given."""
    return Environment(
        autoescape=True,
        loader=FunctionLoader(asset),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
