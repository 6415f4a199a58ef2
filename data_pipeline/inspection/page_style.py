"""The style sheet of the page."""

CSS = """
:root { --ink: #1c232b; --soft: #5b6570; --line: #dfe3e8; --paper: #ffffff; --ground: #f5f6f8; --accent: #1f5a96; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5; font-size: 15px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; }
main { max-width: 1216px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 12px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.soft { color: var(--soft); }
.small { font-size: 13px; }
.mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 12.5px;
  overflow-wrap: anywhere; }
.box { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
.totals { display: grid; grid-template-columns: repeat(5, 1fr); gap: 12px; margin: 20px 0 12px; }
.totals .box { padding: 12px 16px; }
.totals b { display: block; font-size: 22px; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); }
tbody tr:nth-child(even) { background: #fafbfc; }
tbody tr:last-child td { border-top: 1px solid var(--line); font-weight: 650; background: var(--paper); }
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
.charts .box { padding: 10px; display: flex; align-items: center; }
.charts img { width: 100%; display: block; }
.legend { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 6px 18px; padding: 10px 16px;
  margin-bottom: 12px; font-size: 13.5px; }
.index { columns: 4; column-gap: 20px; margin: 0 0 20px; padding: 0; list-style: none; font-size: 13.5px; }
.index li { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; break-inside: avoid; }
.sample { margin: 0 0 16px; overflow: hidden; scroll-margin-top: 60px; }
.sample header { display: flex; flex-wrap: wrap; gap: 2px 16px; align-items: baseline; padding: 12px 18px;
  border-bottom: 1px solid var(--line); }
.sample h3 { font-size: 16px; margin: 0; overflow-wrap: anywhere; }
.sample .body { display: grid; grid-template-columns: 400px minmax(0, 1fr); }
.sample .body.text-only { grid-template-columns: minmax(0, 1fr); }
.images { padding: 16px 18px; border-right: 1px solid var(--line); }
figure { margin: 0 0 14px; }
figure:last-child { margin-bottom: 0; }
figure img { display: block; max-width: 100%; max-height: 400px; }
figcaption { color: var(--soft); font-size: 12.5px; line-height: 1.45; margin-top: 6px;
  font-variant-numeric: tabular-nums; }
.images.several { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; align-content: start; }
.images.several figure { margin: 0; }
.text { padding: 16px 18px; max-height: 620px; overflow-y: auto; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.85; font-size: 14px; }
.t { padding: 2px 0; border-radius: 3px; border-right: 1.5px solid var(--paper); -webkit-box-decoration-break: clone;
  box-decoration-break: clone; }
.learnt { background: #cdeed8; color: #0a3a1f; }
.instruction { background: #d6e6fb; color: #0f2f5a; }
.other { background: #eef0f3; color: #49525c; }
.special { background: #fff; color: #6a4fb0; }
.x { font-size: 11.5px; padding: 1px 4px; border: 1px solid currentColor; border-radius: 5px; margin: 0 1px;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.image { background: #ffe3cf; color: #7a2e08; border: 1px solid #eda26d; border-radius: 6px; padding: 1px 8px;
  font-weight: 600; font-size: 12.5px; white-space: nowrap; }
.turn { margin: 0 0 12px; white-space: pre-wrap; overflow-wrap: anywhere; }
.turn b { display: block; font-size: 12px; color: var(--soft); text-transform: uppercase; letter-spacing: .05em; }
.turn.assistant { border-left: 3px solid #8fd0a8; padding-left: 12px; }
.turn.user { border-left: 3px solid #9dc0ee; padding-left: 12px; }
@media (max-width: 900px) {
  .totals, .charts { grid-template-columns: 1fr 1fr; }
  .index { columns: 2; }
  .sample .body { grid-template-columns: minmax(0, 1fr); }
  .images { border-right: 0; border-bottom: 1px solid var(--line); }
}
"""
