"""Building blocks of HTML reports: one style, escaped text, embedded pictures, no scripts or external files."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #ffffff; --ink: #1d2329; --soft: #5c6772; --line: #e1e5ea;
  --error: #c22d1b; --warning: #985b00; --note: #2b6cb0; --good: #1f7a4d; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181c; --card: #1d2329; --ink: #e6eaee; --soft: #9aa6b2;
  --line: #313a43; --error: #ff7b68; --warning: #f0b04a; --note: #7fb4ec; --good: #62c896; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 25px; margin: 0 0 2px; }
h1, h2, h3, p, li, summary, code, figcaption { overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 34px 0 12px; }
h3 { font-size: 15px; margin: 0 0 8px; }
p { margin: 0 0 8px; }
.soft { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px;
  margin: 0 0 12px; }
.finding { border-left: 5px solid var(--note); }
.finding.error { border-left-color: var(--error); } .finding.warning { border-left-color: var(--warning); }
.badge { display: inline-block; border-radius: 5px; padding: 0 7px; font-size: 12px; font-weight: 600;
  color: var(--card); background: var(--note); margin-right: 8px; }
.badge.error { background: var(--error); } .badge.warning { background: var(--warning); }
.badge.good { background: var(--good); }
.verdict { font-size: 17px; margin: 12px 0 22px; }
.title { font-weight: 600; }
code { font: 13px/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
ul { margin: 6px 0; padding-left: 20px; }
.pictures { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 10px; }
figure { margin: 0; } figcaption { font-size: 12.5px; color: var(--soft); max-width: 360px; }
.pictures img { max-width: 100%; border-radius: 6px; display: block; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(430px, 1fr)); gap: 12px; align-items: start; }
.charts img { width: 100%; border-radius: 6px; display: block; }
@media (max-width: 520px) { .charts { grid-template-columns: 1fr; } main { padding: 18px 12px 40px; } }
@media (prefers-color-scheme: dark) { .charts img { filter: invert(0.88) hue-rotate(180deg); } }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; font-size: 13px; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: break-word; max-width: 15em; }
summary { cursor: pointer; color: var(--soft); } a { color: inherit; } figure:target { outline: 3px solid var(--note); }
"""


def page_of(title: str, body: Iterable[str], policy: str = "") -> str:
    """Return a complete page from a plain title, parts that are HTML, and a Content-Security-Policy or none."""
    allowed = f"<meta http-equiv='Content-Security-Policy' content=\"{policy}\">\n" if policy else ""
    head = [
        f"<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n{allowed}"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
    ]
    return "\n".join([*head, *body, "</main>\n</body>\n</html>\n"])


def text(value: object) -> str:
    """Return a value as escaped text."""
    return html.escape(str(value), quote=True).encode("utf-8", "backslashreplace").decode("utf-8")


def embedded(picture: bytes, kind: str) -> str:
    """Return a picture, the bytes of a PNG or JPEG, as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def table(heads: Sequence[object], rows: Iterable[Sequence[object]], links: Mapping[str, str] | None = None) -> str:
    """Return a table on a card; the first column is aligned left, the others right.

    `links` leads from values of the first column to elements of the page, by their ids.
    """

    def first(cell: object) -> str:
        anchor = (links or {}).get(str(cell))
        return f"<a href='#{text(anchor)}'>{text(cell)}</a>" if anchor else text(cell)

    body = "\n".join(
        "<tr>" + "".join(f"<td>{text(cell) if at else first(cell)}</td>" for at, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    head = "".join(f"<th>{text(cell)}</th>" for cell in heads)
    return f"<div class='card scroll'><table><tr>{head}</tr>\n{body}</table></div>"


def chart(title: str, picture: bytes, note: str = "") -> str:
    """Return a chart, the bytes of a PNG, on a card; the note is HTML."""
    under = f"<p class='soft'>{note}</p>" if note else ""
    name, source = text(title), embedded(picture, "png")
    return f"<div class='card'><h3>{name}</h3><img src='{source}' alt='{name}'>{under}</div>"
