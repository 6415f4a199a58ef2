"""HTML and CSS of the page's own parts."""

from collections.abc import Iterable
from html import escape

from examples.demo.comparison import Row
from examples.demo.conversation import Shown

TITLE = """\
<div class="title">
  <h1>FocusLLaVA</h1>
  <p>Ask about a picture. The model answers from the part of the visual tokens that its two samplers keep.</p>
</div>"""

CSS = """
.gradio-container { width: 100% !important; max-width: 1280px !important; margin: 0 auto !important; }
#title .html-container, #status .html-container, #table .html-container { padding: 0; }
#kept .image-container { padding-top: 2.2rem; }
.title h1 { font-size: 1.6rem; font-weight: 650; margin: 0; }
.title p { margin: 0.15rem 0 0; color: var(--neutral-500); }
.status { min-height: 2.3rem; padding: 0.45rem 0.75rem; border-radius: 6px; color: var(--neutral-500);
          border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary); }
.status.error { color: #b42318; border-color: #f3b4ae; background: #fef3f2; font-weight: 550; }
table.counts { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.counts, .counts thead, .counts tbody, .counts tr { border: 0 !important; }
table.counts th, table.counts td { padding: 0.36rem 0.6rem; text-align: right; white-space: nowrap; border: 0;
                                   border-bottom: 1px solid var(--border-color-primary); }
table.counts th:first-child, table.counts td:first-child { text-align: left; white-space: normal; }
table.counts th { font-weight: 600; color: var(--neutral-500); }
table.counts td:nth-child(2) { font-weight: 600; }
p.note { font-size: 0.82rem; color: var(--neutral-500); margin: 0.4rem 0 0; }
"""

NOTE = (
    "Visual tokens with their newlines, and their share of LLaVA-NeXT's. Times are of this one question, so they vary; "
    "the prefill is vision tower, samplers and language model."
)


def status_html(shown: Shown) -> str:
    """One line: an error, or what is being done."""
    if shown.error:
        return f'<div class="status error" role="alert">{escape(shown.error)}</div>'
    text = shown.status or ("Done." if shown.rows else "Choose a picture and ask.")
    return f'<div class="status" role="status">{escape(text)}</div>'


def table_html(rows: Iterable[Row]) -> str:
    """The table; nothing where there are no rows."""
    cells = [(row.name, row.as_set, row.off or "–", row.ratio) for row in rows]
    if not cells:
        return ""
    head = "".join(f"<th>{name}</th>" for name in ("", "as set", "samplers off", "share / speed-up"))
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in cells)
    return (
        f'<table class="counts"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p class="note">{NOTE}</p>'
    )
