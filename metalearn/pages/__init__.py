"""HTML pages that are one file: no network, no scripts, to be mailed and printed."""

from metalearn.pages.markup import chart, escaped, facts_table, picture_tag, table
from metalearn.pages.parts import (
    counted,
    number,
    seconds_in_words,
    sources,
    warnings_of,
    whole_page,
    with_interval,
)

__all__ = [
    "chart",
    "counted",
    "escaped",
    "facts_table",
    "number",
    "picture_tag",
    "seconds_in_words",
    "sources",
    "table",
    "warnings_of",
    "whole_page",
    "with_interval",
]
