"""The style sheet of the HTML pages, for screen and print."""

CSS = """
:root { --ink: #2b3440; --grey: #5f6b7a; --line: #e0e5eb; --pale: #f5f7f9;
  --blue: #0072b2; --vermilion: #d55e00; --green: #007a59; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; padding-top: 1.2rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
p.lead { font-size: 1.1rem; color: var(--grey); }
pre.commands { background: #f5f6f8; padding: .7rem .9rem; border-radius: 4px;
  font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
p.absent { color: var(--grey); font-style: italic; }
nav { font-size: .9rem; margin: 1rem 0 0; display: flex; flex-wrap: wrap;
  gap: .2rem 1.1rem; }
nav a { color: var(--blue); text-decoration: none; }
nav a:hover { text-decoration: underline; }
figure { margin: 1rem 0 1.4rem; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: .88rem; color: var(--grey); margin-top: .4rem;
  max-width: 50rem; }
.cards { display: grid; gap: 1rem; margin: 1.6rem 0 1rem;
  grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); }
.card { background: var(--pale); border-top: 4px solid var(--grey);
  border-radius: 4px; padding: .9rem 1.1rem 1rem; }
.card.in { border-color: var(--blue); }
.card.out { border-color: var(--vermilion); }
.card.general { border-color: var(--green); }
.card .name { font-size: .9rem; color: var(--grey); }
.card .value { font-size: 1.7rem; font-weight: 650; line-height: 1.35;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.card .value small { font-size: .95rem; font-weight: 400; color: var(--grey); }
.card .change { font-size: .92rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0;
  font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--grey); border-bottom: 2px solid #b9c2cc; }
th:first-child, td:first-child, th.text, td.text { text-align: left; }
td:first-child { white-space: normal; }
td small { color: var(--grey); font-size: .86em; font-weight: 400;
  display: inline-block; min-width: 5.4em; }
table.narrow td small { display: block; min-width: 0; }
tr.role td { font-weight: 650; padding-top: .9rem;
  border-bottom-color: #b9c2cc; }
tr.mean td { font-weight: 650; background: var(--pale); }
td.up { color: var(--blue); font-weight: 600; }
td.down { color: #a84a00; font-weight: 600; }
.scroll { overflow-x: auto; }
.links { display: flex; flex-wrap: wrap; gap: .5rem .35rem; margin: 1rem 0;
  font: 12px/1.35 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
.group { border: 1px solid #cfd6de; border-radius: 4px; background: #fff;
  display: flex; flex-direction: column; break-inside: avoid; }
.teacher { display: flex; justify-content: center; gap: 2px; padding: 3px 4px;
  background: var(--pale); border-bottom: 1px dashed #b9c2cc;
  color: var(--grey); border-radius: 4px 4px 0 0; }
.token { border: 1px solid #d5dbe2; border-radius: 3px; padding: 0 2px;
  background: #fff; white-space: pre; }
.student { display: flex; justify-content: center; gap: 4px; padding: 4px; }
.piece { text-align: center; min-width: 2.4em; }
.piece > span { display: block; border-radius: 3px; padding: 1px 4px;
  font-weight: 700; white-space: pre; }
.piece small { color: var(--grey); font-size: 10px; }
.piece ul { list-style: none; margin: 0; padding: 0; font-size: 10px;
  color: var(--grey); }
.piece li b { font-weight: 600; color: var(--ink); white-space: pre; }
.cut { align-self: center; color: var(--grey); }
.examples { display: grid; gap: 1rem;
  grid-template-columns: 1fr; }
.example { border: 1px solid var(--line); border-radius: 4px; font-size: .9rem;
  padding: .7rem .9rem; break-inside: avoid; overflow-wrap: anywhere; }
.example .head { color: var(--grey); font-size: .82rem; }
.example .question { font-weight: 550; margin: .2rem 0 .5rem; }
.example .beside { display: flex; flex-wrap: wrap; gap: .5rem .9rem; }
.example .said { flex: 1 1 12rem; white-space: pre-wrap; }
.example .said-target { flex: 0 0 auto; }
.example .who { color: var(--grey); font-size: .82rem; }
.example .right::after { content: " ✓"; color: var(--blue); font-weight: 700; }
.example .wrong::after { content: " ✗"; color: #a84a00; font-weight: 700; }
footer { margin-top: 3rem; border-top: 1px solid var(--line);
  color: var(--grey); padding-top: .8rem; font-size: .85rem; }
@media print {
  body { font-size: 10.5pt; } nav { display: none; }
  main { max-width: none; padding: 0; }
  h2, h3 { break-after: avoid; } figure, table, .card { break-inside: avoid; }
  .cards { grid-template-columns: repeat(3, 1fr); }
  .card .value { font-size: 1.35rem; } .card .change { font-size: .8rem; }
  table { font-size: 8pt; } th, td { padding: .22rem .35rem; }
  .scroll { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
