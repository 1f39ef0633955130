"""The shell of a report: one HTML file with its style inside, no script and no reference to anything outside."""

from collections.abc import Sequence

from memsim.reports.charts import text

_STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --ink: #1d2126; --soft: #5d6670; --rule: #dfe3e6; --fill: #f1f3f4;
  --c0: #2563b8; --c1: #d1781e; --c2: #2e8b62; --c3: #b8403a; --c4: #7a55b5; --c5: #76828d; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181c; --ink: #e6e8ea; --soft: #a0a9b2; --rule: #333a41;
  --fill: #1f2429; --c0: #6ea8f5; --c1: #f0a04b; --c2: #5cc596; --c3: #f0766f; --c4: #b795ee; --c5: #94a0ab; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem 1rem 3rem; background: var(--ground); color: var(--ink);
  font: 0.95rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0.5rem 0 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 0.6rem; padding-top: 0.6rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 0.8rem 0 0.3rem; overflow-wrap: anywhere; }
p { margin: 0.3rem 0; max-width: 48rem; }
.note, figcaption, footer { color: var(--soft); font-size: 0.87rem; }
.side { display: grid; gap: 0.5rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
.side > * { min-width: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.2rem 0.7rem 0.2rem 0; vertical-align: top; border-bottom: 1px solid var(--rule);
  font-weight: normal; }
thead th { color: var(--soft); font-size: 0.87rem; vertical-align: bottom; overflow-wrap: anywhere; }
tbody th { color: var(--soft); }
.grid-table td, .grid-table th { min-width: 7rem; }
.bars th { overflow-wrap: anywhere; color: var(--ink); width: 50%; line-height: 1.3; }
.bars .number { white-space: nowrap; text-align: right; width: 1%; }
.bars .length { width: 34%; padding-right: 0; vertical-align: middle; }
.bars svg { display: block; width: 100%; height: 0.8rem; }
figure { margin: 0.4rem 0 1rem; }
.plot { position: relative; height: 15rem; margin: 0.5rem 0.9rem 1.7rem 4.8rem; background: var(--fill); }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.plot span { position: absolute; font-size: 0.78rem; color: var(--soft); white-space: nowrap; line-height: 1; }
.plot .y { right: 100%; margin-right: 0.45rem; transform: translateY(-50%); }
.plot .x { top: 100%; margin-top: 0.4rem; transform: translateX(-50%); }
.plot .mark { width: 0.8rem; height: 0.8rem; border: 2px solid var(--ink); border-radius: 50%;
  transform: translate(-50%, -50%); }
path { fill: none; vector-effect: non-scaling-stroke; }
.grid { stroke: var(--rule); stroke-width: 1px; }
.line { stroke-width: 1.8px; stroke-linejoin: round; stroke-linecap: round; }
.level { stroke-width: 1.5px; stroke-dasharray: 6 4; }
.stripe { opacity: 0.13; }
.legend { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0.15rem 1.1rem;
  font-size: 0.87rem; }
.legend li { overflow-wrap: anywhere; }
.key { display: inline-block; width: 1.1rem; margin-right: 0.4rem; vertical-align: middle; border-top: 2.5px solid; }
.key.dashed { border-top-style: dashed; }
.key.wide { height: 0.75rem; border: 0; opacity: 0.85; }
.key.ring { width: 0.75rem; height: 0.75rem; border: 2px solid var(--ink); border-radius: 50%; }
.bad { color: var(--c3); font-weight: 600; }
.good { color: var(--c2); font-weight: 600; }
@media (max-width: 32rem) { .plot { margin-left: 4.2rem; height: 12rem; } .bars th { width: 46%; } }
""" + "".join(
    f"path.c{n} {{ stroke: var(--c{n}); }} rect.c{n} {{ fill: var(--c{n}); }} "
    f".key.c{n} {{ border-color: var(--c{n}); }} .key.wide.c{n} {{ background: var(--c{n}); }}\n"
    for n in range(6)
)


def page(title: str, lead: str, sections: Sequence[tuple[str, str]], footer: str) -> str:
    """Return a whole HTML file.

    Args:
        title: Plain text.
        lead: One paragraph of plain text.
        sections: Heading (plain text) and body (HTML); those with an empty body are left out.
        footer: HTML.
    """
    body = "".join(f"<section><h2>{text(heading)}</h2>{html}</section>" for heading, html in sections if html)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{text(title)}</h1><p>{text(lead)}</p>\n{body}\n<footer>{footer}</footer></body></html>\n"
    )
