"""How pages look: light and dark, wide and narrow, on paper.

Axes: none.
"""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark;
  --page: #ffffff; --text: #1d2228; --soft: #5a626b; --line: #d8dce1; --card: #f5f7f9;
  --helps: #0072b2; --harms: #c25e00; --warn: #fff3d6; --warn-line: #e69f00; }
@media (prefers-color-scheme: dark) { :root {
  --page: #16191d; --text: #e6e9ec; --soft: #a3abb4; --line: #3a4149; --card: #20252b;
  --helps: #56b4e9; --harms: #f0a030; --warn: #3a2f14; --warn-line: #e69f00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1.25rem 4rem; background: var(--page);
  color: var(--text); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .75rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 0; }
h4 { font-size: .9rem; margin: .75rem 0 .35rem; font-weight: 600; color: var(--soft); }
p { margin: .5rem 0; max-width: 46rem; }
.soft { color: var(--soft); }
.warning { background: var(--warn); border-left: 4px solid var(--warn-line);
  padding: .6rem .9rem; margin: .75rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; margin: .75rem 0; }
th, td { text-align: left; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: normal; }
td.long { overflow-wrap: anywhere; }
td.text { max-width: 22rem; overflow-wrap: break-word; }
a { color: var(--helps); }
section { margin: 1.5rem 0; }
th { font-weight: 600; vertical-align: bottom; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { white-space: normal; max-width: 9rem; overflow-wrap: break-word; }
.target { border: 1px solid var(--line); border-radius: 8px; background: var(--card);
  padding: 1rem; margin: 1rem 0; break-inside: avoid; }
.target > .beside { display: grid; grid-template-columns: 9rem 1fr; gap: .5rem 1.5rem; }
.facts { margin: .4rem 0 0; font-size: .92rem; }
.facts span { display: block; }
.wrong { font-weight: 700; }
img.picture { display: block; width: 4.5rem; height: 4.5rem; object-fit: contain;
  border: 2px solid var(--line); border-radius: 3px; }
img.picture.small { image-rendering: pixelated; }
img.picture.of-target { width: 8rem; height: 8rem; }
.row { display: grid; grid-template-columns: repeat(auto-fill, 4.75rem); gap: .5rem; }
.row figure { margin: 0; font-size: .8rem; line-height: 1.3; }
.row img.picture { width: 100%; height: auto; aspect-ratio: 1; }
.row figcaption b { font-size: .9rem; display: -webkit-box; -webkit-box-orient: vertical;
  -webkit-line-clamp: 2; overflow: hidden; }
.row .no { display: block; color: var(--soft); }
.helps img { border-color: var(--helps); } .harms img { border-color: var(--harms); }
.bars td { padding: .15rem .75rem .15rem 0; border: 0; }
.bars td:first-child { white-space: nowrap; min-width: 4.5rem; }
.bars td.name { max-width: 10rem; overflow-wrap: break-word; }
.bars td.number { min-width: 4.5rem; }
.bars td.bar { width: 12rem; min-width: 6rem; padding-right: 0; vertical-align: middle; }
.bars i { display: block; height: .75rem; background: var(--helps); border-radius: 2px; }
.harms .bars i { background: var(--harms); }
details { margin-top: .75rem; } summary { cursor: pointer; color: var(--soft); font-size: .92rem; }
details h3 { margin-top: 1.25rem; }
.chart { overflow-x: auto; background: #fff; border-radius: 8px; padding: .5rem; margin: 1rem 0;
  max-width: 46rem; border: 1px solid var(--line); break-inside: avoid; }
.chart img { display: block; width: 100%; height: auto; }
@media screen and (prefers-color-scheme: dark) { .chart { background: #1a1a1a; }
  .chart img { filter: invert(.9) hue-rotate(180deg); } }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(21rem, 1fr)); gap: 1rem; }
.charts .chart { margin: 0; }
.figures { align-items: end; margin: 1rem 0; } .figures figure { margin: 0; min-width: 0; }
.figures h4 { margin-top: 0; }
code { font-size: .92em; }
@media (max-width: 40rem) {
  body { padding: 1rem .9rem 3rem; }
  .target { padding: .8rem; }
  .target > .beside { grid-template-columns: 1fr; }
  .chart img { min-width: 34rem; }
  .charts { grid-template-columns: 1fr; } .charts .chart img { min-width: 0; }
  .row { grid-template-columns: repeat(5, minmax(0, 4.75rem)); }
  .row figure { font-size: .75rem; }
  .head { display: flex; gap: 1rem; align-items: flex-start; }
  img.picture.of-target { width: 6rem; height: 6rem; }
}
@media print {
  :root { --page: #fff; --text: #000; --soft: #444; --line: #bbb; --card: #fff; --warn: #fff;
    --helps: #0072b2; --harms: #c25e00; }
  body { max-width: none; font-size: 11pt; padding: 0; }
  img, .bars i { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h2, h3, h4 { break-after: avoid; }
  .row, .row figure, tr { break-inside: avoid; }
  details:not([open]), summary { display: none; }
}
"""
