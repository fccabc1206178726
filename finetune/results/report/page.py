"""The report as one page: no script, no network, light and dark, and readable on a phone and on paper."""

from typing import Any

from finetune.results.report.markup import Markup, element, sentence
from finetune.results.report.output_sections import answers_sections
from finetune.results.report.run_files import RunFiles
from finetune.results.report.sections import (
    curves_section,
    data_section,
    machine_section,
    metrics_section,
    plan_section,
    range_section,
    repeat_section,
)
from finetune.results.report.verdict import verdict_of

# Okabe & Ito (2008), as in the plots; lighter where the page is dark.
STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1c1e21;--quiet:#62666d;--rule:#e2e4e8;--card:#f7f8fa;--ok:#00714f;
--bad:#b3261e;--s0:#0072b2;--s1:#d55e00;--s2:#009e73;--s3:#b85a94;--s4:#b97c00;--s5:#3a97cc;--s6:#4a4a4a}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--fg:#e6e7ea;--quiet:#a0a5ad;--rule:#32363c;--card:#1e2125;
--ok:#45c496;--bad:#ff8a80;--s0:#56a9e0;--s1:#ff8a3d;--s2:#2bc79a;--s3:#e08fc0;--s4:#f0b429;--s5:#8fd0f5;--s6:#c9c9c9}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:68rem;padding:1.5rem 1.25rem 4rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:anywhere}
h1{font-size:1.35rem;margin:0 0 .75rem}h2{font-size:1.15rem;margin:2.5rem 0 .75rem;padding-top:.75rem;
border-top:1px solid var(--rule)}h3{font-size:1rem;margin:1.5rem 0 .5rem}p{margin:.5rem 0;max-width:46rem}
.verdict{border-left:5px solid var(--ok);background:var(--card);padding:.9rem 1.1rem;border-radius:0 8px 8px 0}
.verdict.bad{border-color:var(--bad)}.verdict .first{font-size:1.15rem;font-weight:600}
.verdict ul{margin:.5rem 0 0;padding-left:1.2rem}.quiet,figcaption,caption,dt{color:var(--quiet);font-size:.875rem}
.scroll{overflow-x:auto;max-width:100%}table{border-collapse:collapse;margin:.75rem 0;font-size:.9rem;
font-variant-numeric:tabular-nums}caption{text-align:left;padding:.25rem 0}
th,td{padding:.3rem .75rem .3rem 0;text-align:left;border-bottom:1px solid var(--rule);vertical-align:top}
thead th{color:var(--quiet);font-weight:500}tbody th{font-weight:600;max-width:22rem}
th,td{overflow-wrap:break-word;min-width:2.5rem}
code{font-size:.92em;background:color-mix(in srgb,var(--fg) 9%,transparent);border-radius:4px;padding:0 .25em}
.n{text-align:right;white-space:nowrap;padding-left:.75rem}
.share{display:inline-block;min-width:5.5rem;text-align:right;padding:0 .35rem;border-radius:3px;
background:linear-gradient(to right,color-mix(in srgb,var(--s0) 28%,transparent) var(--v),transparent var(--v))}
.share.low{background:linear-gradient(to right,color-mix(in srgb,var(--s1) 45%,transparent) var(--v),transparent
var(--v));font-weight:600}.confusion td,.confusion th{padding:.3rem .5rem;border:1px solid var(--rule)}
.confusion .hit{background:color-mix(in srgb,var(--s0) calc(var(--v,0%)*.55),transparent)}
.confusion .miss{background:color-mix(in srgb,var(--s1) calc(min(var(--v,0%)*3,80%)),transparent)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));gap:1rem 1.5rem}
figure{margin:.5rem 0;max-width:44rem}figcaption{font-weight:600;margin-bottom:.15rem}
svg{width:100%;height:auto;display:block}svg text{font-size:14px;fill:var(--quiet);font-family:inherit}
.grid line.grid,line.grid{stroke:var(--rule)}line.axis{stroke:var(--quiet)}
line.mark{stroke:var(--quiet);stroke-dasharray:4 4}.line polyline{fill:none;stroke-width:2.4;stroke:currentColor}
.dots circle{fill:currentColor;fill-opacity:.6}.bar{fill:var(--s0)}.curve rect{fill:var(--s0)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.15rem 1rem;margin:.25rem 0 0;padding:0;font-size:.875rem}
.legend i{display:inline-block;width:1.1rem;height:.25rem;border-radius:2px;margin-right:.4rem;vertical-align:middle;
background:currentColor}
@SERIES@
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,13rem),1fr));gap:.5rem 1.25rem;margin:.5rem 0}
dl>div{min-width:0}dd{margin:0}.cards{list-style:none;padding:0;display:grid;gap:.9rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,10rem),1fr))}
.cards li{background:var(--card);border-radius:8px;padding:.75rem;min-width:0}
.cards img{width:7rem;max-width:100%;image-rendering:pixelated;border-radius:4px;display:block}

.cards dl{grid-template-columns:1fr;gap:.15rem}.cards dl>div{display:flex;flex-wrap:wrap;
gap:0 .5rem}.cards dt{flex:0 0 3.2rem}.cards dd{overflow-wrap:break-word;max-width:100%}
.place,.input{font-size:.8rem;margin:.25rem 0}
pre{background:var(--card);padding:.75rem 1rem;border-radius:8px;overflow-x:auto;font-size:.85rem;white-space:pre-wrap}
summary{cursor:pointer}footer{margin-top:3rem}
@media print{body{max-width:none}section{break-inside:avoid}}
"""


def report_page(run: RunFiles) -> str:
    """Returns the report of a run as HTML.

    Args:
        run: The files of its folder.
    """
    verdict, title = verdict_of(run), f"Run {run.folder.name}"
    first = element("p", sentence(verdict.sentence), class_="first")
    notes = element("ul", [element("li", sentence(note)) for note in verdict.notes]) if verdict.notes else None
    sections = [
        metrics_section(run),
        *answers_sections(run),
        curves_section(run),
        range_section(run),
        plan_section(run),
        data_section(run),
        machine_section(run),
        repeat_section(run),
    ]
    model = element("p", run.report.get("about", ""), class_="quiet") if run.report.get("about") else None
    verdict_box = element("div", first, notes, class_="verdict" if verdict.good else "verdict bad", role="status")
    return page_of(title, verdict_box, model, sections, footer="`finetune report` writes it again.")


def page_of(title: str, *parts: Any, footer: str = "") -> str:
    """Returns a whole page of HTML.

    Args:
        title: Its title.
        parts: What is below the title.
        footer: A sentence for its end.
    """
    written = sentence(f"Written by finetune. {footer}".rstrip())
    body = element("body", element("h1", title), parts, element("footer", element("p", written, class_="quiet")))
    # Without a script, and allowed to load nothing: whatever a name in it says, nothing runs.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", content=policy, **{"http-equiv": "Content-Security-Policy"}),
        element("title", title),
        element("style", Markup(STYLE.replace("@SERIES@", _series()))),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _series() -> str:
    """Returns the colours of lines: seven that differ, and a range of eleven from the first group to the last."""
    colours = "".join(f".s{number}{{color:var(--s{number})}}" for number in range(7))
    mixed = (f".r{step}{{color:color-mix(in oklch,var(--s0),var(--s1) {10 * step}%)}}" for step in range(11))
    return colours + "".join(mixed)
