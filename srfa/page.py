"""A report as data, and its two looks: Markdown for repositories and Prefect, HTML for a browser without a network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: column heads and rows of text."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with sentences, then bullet points, then a table, then a figure, each where there is one.

    Parameters
    ----------
    figure
        File name of a picture that lies beside the page.
    """

    heading: str
    sentences: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    grid: Grid | None = None
    figure: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A title and its sections."""

    title: str
    sections: tuple[Section, ...]


def to_markdown(page: Page) -> str:
    r"""Return the page as Markdown (GitHub tables).

    Examples
    --------
    >>> print(to_markdown(Page("T", (Section("S", grid=Grid(("a", "b"), (("1", "x|y"),))),))))
    # T
    <BLANKLINE>
    ## S
    <BLANKLINE>
    | a | b |
    | --- | --- |
    | 1 | x\|y |
    <BLANKLINE>
    """
    parts = [f"# {page.title}"]
    for section in page.sections:
        parts.append(f"## {section.heading}")
        parts += section.sentences
        if section.points:
            parts.append("\n".join(f"* {point}" for point in section.points))
        if section.grid:
            parts.append(_markdown_grid(section.grid))
        if section.figure:
            parts.append(f"![{section.heading}]({section.figure})")
    return "\n\n".join(parts) + "\n"


def to_html(page: Page, pictures: Path) -> str:
    """Return the page as one self-contained HTML document; figures are read from the folder ``pictures``."""
    body = [f"<h1>{escape(page.title)}</h1>"]
    for section in page.sections:
        body.append(f"<h2>{escape(section.heading)}</h2>")
        body += [f"<p>{escape(sentence)}</p>" for sentence in section.sentences]
        if section.points:
            body.append("<ul>" + "".join(f"<li>{escape(point)}</li>" for point in section.points) + "</ul>")
        if section.grid:
            body.append(_html_grid(section.grid))
        if section.figure:
            body.append(_html_figure(section.heading, pictures / section.figure))
    return _HTML.format(title=escape(page.title), body="\n".join(body))


def _markdown_grid(grid: Grid) -> str:
    lines = [_markdown_row(grid.heads), _markdown_row(["---"] * len(grid.heads))]
    return "\n".join([*lines, *(_markdown_row(row) for row in grid.rows)])


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _html_grid(grid: Grid) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in grid.heads)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in grid.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _html_figure(caption: str, picture: Path) -> str:
    encoded = base64.b64encode(picture.read_bytes()).decode()
    return f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{encoded}"></figure>'


_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1a1a1a; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
th, td {{ border: 1px solid #ccc; padding: .25rem .6rem; text-align: left; font-variant-numeric: tabular-nums; }}
th {{ background: #f2f2f2; }}
img {{ max-width: 100%; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
