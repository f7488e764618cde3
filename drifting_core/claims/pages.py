"""Pages for readers: one content of few kinds of blocks, as Markdown and as a single HTML file."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    text: str
    place: str


Inline = str | Link | Sequence["str | Link"]


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: Inline


@dataclass(frozen=True)
class Bullets:
    items: Sequence[Inline]


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[Inline]]


@dataclass(frozen=True)
class Picture:
    place: str
    caption: str


@dataclass(frozen=True)
class Code:
    text: str
    language: str = "sh"


Block = Heading | Paragraph | Bullets | Table | Picture | Code


def _parts(text: Inline) -> Sequence[str | Link]:
    return [text] if isinstance(text, str | Link) else text


def markdown(blocks: Sequence[Block]) -> str:
    """GitHub-flavoured Markdown."""
    return "\n\n".join(_markdown_block(block) for block in blocks) + "\n"


def _markdown_block(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return _markdown_inline(text)
        case Bullets(items):
            return "\n".join(f"- {_markdown_inline(item)}" for item in items)
        case Table(header, rows):
            lines = [header, ["---"] * len(header), *([_markdown_inline(cell) for cell in row] for row in rows)]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Picture(place, caption):
            return f"![{caption}]({place})\n\n*{caption}*"
        case Code(text, language):
            return f"```{language}\n{text}\n```"


def _markdown_inline(text: Inline) -> str:
    return "".join(f"[{p.text}]({p.place})" if isinstance(p, Link) else p.replace("|", "\\|") for p in _parts(text))


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2, h3 { line-height: 1.2; margin-top: 2em; } h1 { margin-top: 0; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .25em .7em; text-align: left; white-space: nowrap; }
th { border-bottom: 2px solid #888; } a { color: #1b4f72; }
figure { margin: 1.5em 0; } img { max-width: 100%; } figcaption { color: #555; font-size: 90%; }
pre { background: #f4f4f4; padding: .8em; overflow-x: auto; }
"""


def report(blocks: Sequence[Block], title: str, picture: Callable[[str], str]) -> str:
    """One HTML file without outside resources; `picture` gives the base64 of a PNG of the bundle."""
    body = "\n".join(_html_block(block, picture) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _html_block(block: Block, picture: Callable[[str], str]) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_html_inline(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{_html_inline(item)}</li>" for item in items) + "</ul>"
        case Table(header, rows):
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
            lines = ("".join(f"<td>{_html_inline(cell)}</td>" for cell in row) for row in rows)
            return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
        case Picture(place, caption):
            words = html.escape(caption)
            source = f"data:image/png;base64,{picture(place)}"
            return f'<figure><img src="{source}" alt="{words}"><figcaption>{words}</figcaption></figure>'
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"


def _html_inline(text: Inline) -> str:
    return "".join(
        f'<a href="{html.escape(p.place)}">{html.escape(p.text)}</a>' if isinstance(p, Link) else html.escape(p)
        for p in _parts(text)
    )
