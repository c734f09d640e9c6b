"""A page of a report, taken apart with a parser of HTML."""

import dataclasses
import json
from html.parser import HTMLParser


@dataclasses.dataclass
class Page(HTMLParser):
    """The elements of a page, and the texts of those that have text.

    Attributes:
        tags: the names of all elements, in order, with their attributes.
        texts: (name of the element, text) of each text.
    """

    tags: list[tuple[str, dict[str, str]]]
    texts: list[tuple[str, str]]

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open:
            self.texts.append((self._open[-1], data))

    def all(self, tag: str) -> list[str]:
        """The texts of the elements of that name."""
        return [text for name, text in self.texts if name == tag]

    @property
    def data(self) -> dict:
        """The JSON block."""
        return json.loads(self.all("script")[0])
