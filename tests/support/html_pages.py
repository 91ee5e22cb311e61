"""HTML as a browser would take it: its tags, its text, and whether it needs anything else."""

from __future__ import annotations

import re
from html.parser import HTMLParser

__all__ = ["Read", "check_self_contained"]

VOID = {"meta", "img", "br", "wbr"}


class Read(HTMLParser):
    """Tags in order, with their attributes and the text; tags that do not close are an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def check_self_contained(page: str) -> None:
    """No scripts, no other file, no network, and words for every picture."""
    read = Read(page)
    assert not {"script", "link", "iframe", "object", "base", "form"} & {
        tag for tag, _ in read.tags
    }
    outside = {"src", "href", "srcset", "action", "poster", "background"}
    for tag, attributes in read.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in outside & set(attributes):
            place = attributes[name] or ""
            if tag == "a" and name == "href" and place.startswith("#"):
                assert place[1:] in {own.get("id") for _, own in read.tags}
                continue
            assert tag == "img" and place.startswith("data:image/")
        assert tag != "img" or attributes["alt"]
    assert not re.search(r"url\(|@import|https?:", page)
