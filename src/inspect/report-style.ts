/** The look of report pages. */
export const PAGE_STYLE = `
*{box-sizing:border-box}
:root{color-scheme:light dark;--page:#f4f6fb;--card:#fff;--ink:#0f172a;--soft:#55627a;--line:#e2e8f0;--accent:#2563eb;--meta:#64748b;--leaked:#dc2626;--free:#e2e8f0;--heat:#2563eb;--shadow:0 1px 2px #0f172a0d,0 8px 24px #0f172a0d}
@media(prefers-color-scheme:dark){:root{--page:#0b1120;--card:#131c31;--ink:#e2e8f0;--soft:#9fb0cb;--line:#25314d;--accent:#60a5fa;--meta:#94a3b8;--leaked:#f87171;--free:#25314d;--heat:#60a5fa;--shadow:none}}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;font-variant-numeric:tabular-nums}
main,header,footer{max-width:1120px;margin:0 auto;padding:0 24px}
header{padding-top:40px;padding-bottom:8px}
h1{font-size:28px;line-height:1.2;margin:0 0 4px;letter-spacing:-.02em;overflow-wrap:anywhere}
h2{font-size:17px;margin:0 0 2px;letter-spacing:-.01em}
p{margin:0 0 12px;color:var(--soft)}
header p{margin:0;overflow-wrap:anywhere}
.notice{border-left:3px solid var(--below);padding:8px 14px;background:var(--card);border-radius:0 8px 8px 0;margin:12px 0 0;color:var(--ink)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:14px;margin:22px 0}
.tile,section{background:var(--card);border:1px solid var(--line);border-radius:14px;box-shadow:var(--shadow)}
.tile{padding:14px 16px}
.tile span{display:block;color:var(--soft);font-size:13px}
.tile b{display:block;font-size:23px;font-weight:650;letter-spacing:-.02em;line-height:1.35}
.tile small{color:var(--soft);font-size:12px}
section{padding:20px 22px;margin:0 0 18px}
.bar{display:flex;height:34px;border-radius:9px;overflow:hidden;background:var(--free);gap:1px}
.bar i{display:block;min-width:3px;height:100%}
.bar i:hover,.bar i:focus-visible{filter:brightness(1.15);outline:2px solid var(--ink);outline-offset:-2px}
.legend{list-style:none;margin:14px 0 0;padding:0;display:flex;flex-wrap:wrap;gap:6px 20px;font-size:13px;color:var(--soft)}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:7px;vertical-align:-1px}
.legend b{color:var(--ink);font-weight:600}
svg{display:block;width:100%;height:auto}
svg:focus-visible{outline:2px solid var(--accent);outline-offset:4px;border-radius:4px}
svg text{fill:var(--soft);font-size:12px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
th{font-weight:600;color:var(--soft);font-size:12.5px;text-align:left;border-bottom:1px solid var(--line)}
th,td{padding:8px 10px 8px 0;vertical-align:middle}
tbody tr+tr td{border-top:1px solid var(--line)}
td.n,th.n{text-align:right;white-space:nowrap}
td.name{overflow-wrap:anywhere;min-width:9em;font-weight:550}
td.when{white-space:nowrap;color:var(--soft)}
td.cost{width:26%;min-width:130px}
.cost .bar{height:12px;border-radius:6px;background:none}
.strips{display:grid;grid-template-columns:minmax(90px,210px) 1fr auto;gap:7px 14px;align-items:center;font-size:13px}
.strips span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.strips .n{text-align:right;color:var(--soft)}
.strips svg{height:16px;border-radius:4px;background:var(--unallocated)}
.tree,.tree ul{list-style:none;margin:0;padding:0}
.tree ul{margin-left:9px;padding-left:20px;border-left:2px solid var(--line)}
.tree li{margin:7px 0}
.tree code{font:600 13.5px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.tree small{color:var(--soft)}
.now{display:inline-block;background:var(--accent);color:var(--card);border-radius:99px;font-size:11.5px;font-weight:650;padding:0 9px;margin-left:6px}
details{margin-top:12px;font-size:13px;color:var(--soft)}
summary{cursor:pointer}
#tip{position:fixed;z-index:9;max-width:340px;pointer-events:none;background:var(--ink);color:var(--page);border-radius:8px;padding:7px 11px;font-size:13px;line-height:1.4;overflow-wrap:anywhere;box-shadow:0 6px 20px #0004}
#tip[hidden]{display:none}
footer{color:var(--soft);font-size:12.5px;padding-top:6px;padding-bottom:44px}
@media(max-width:640px){main,header,footer{padding-left:14px;padding-right:14px}section{padding:16px 14px}td.when,th.when{display:none}}
@media print{body{background:none}section,.tile{box-shadow:none;break-inside:avoid}}
`;
