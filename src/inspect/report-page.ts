import { createHash } from 'node:crypto';
import path from 'node:path';
import { formatSize } from '../../formats/core/units.ts';
import type { SnapshotInfo, SnapshotUsage } from '../../formats/index.ts';
import type { Allocation } from './allocation.ts';
import {
  allocationLegend,
  allocationShapes,
  describeCell,
  KIND_COLOURS,
  PICTURE_COLUMNS,
} from './allocation-picture.ts';
import type { ChainFile } from './chain.ts';
import { fold, type Place, shownOf } from './fold.ts';
import type { Machine, MachineSnapshot } from './machine.ts';
import { html, jsonMarkup, type Markup, type MarkupValue } from './markup.ts';
import type { ChangeStrip, Report } from './report.ts';
import { PAGE_SCRIPT } from './report-script.ts';
import { PAGE_STYLE } from './report-style.ts';
import { renderTimeline } from './timeline.ts';
import type { ImageUsage } from './usage.ts';

/** A report as one page of HTML that needs nothing else: no network, no other files. */
export function renderReport(report: Report): string {
  const name = path.basename(report.path);
  const body = html`<header><h1>${name}</h1><p>${report.format} disk of ${formatSize(report.virtualSize)}, ${report.path}</p>
${report.notices.map((text) => html`<div class="notice">${text}</div>`)}</header>
<main>${tiles(report)}
${report.usage === undefined ? filesCost(report.files) : html`${costBar(report.usage)}${timeline(report)}${snapshotTable(report.usage)}`}
${allocationMap(report.allocation)}
${changes(report.changes)}
${chain(report)}</main>
<footer>Made by lunette on ${dateText(report.createdMs)}. Sizes are binary: 1 GiB is 1024 MiB. Only tables were read, not the data.</footer>`;
  return page(name, body);
}

/** An allocation map alone, as a page. */
export function renderAllocationPage(title: string, allocation: Allocation): string {
  const body = html`<header><h1>${title}</h1><p>Disk of ${formatSize(allocation.size)}</p></header>
<main style="padding-top:18px">${allocationMap(allocation)}</main><footer>Made by lunette. Sizes are binary.</footer>`;
  return page(title, body);
}

/** Whatever an image's names hold, nothing runs but the one script, and nothing is fetched. */
function page(title: string, body: Markup): string {
  const digest = createHash('sha256').update(PAGE_SCRIPT).digest('base64');
  const policy = `default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-${digest}'; base-uri 'none'; form-action 'none'`;
  const { markup } = html`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>${title} - lunette</title>
<style>${{ markup: KIND_COLOURS + PAGE_STYLE }}</style></head>
<body>${body}<div id="tip" role="tooltip" hidden></div><script>${{ markup: PAGE_SCRIPT }}</script></body></html>
`;
  return markup;
}

function tile(label: string, bytes: number, note: string, key: string): Markup {
  return html`<div class="tile"><span>${label}</span><b data-figure="${key}" data-bytes="${bytes}">${formatSize(bytes)}</b><small>${note}</small></div>`;
}

function tiles({ usage, files, virtualSize, allocation }: Report): Markup {
  const list = [tile('Size of the disk', virtualSize, 'what the machine sees', 'virtual-size')];
  if (usage === undefined) {
    const total = files.reduce((sum, file) => sum + (file.actualSize ?? 0), 0);
    list.push(tile('On the host', total, `${files.length} ${files.length === 1 ? 'file' : 'files'}`, 'actual-size'));
    list.push(
      tile('Allocated in the top file', allocation.totals.data + allocation.totals.compressed, '', 'allocated'),
    );
    return html`<div class="tiles">${list}</div>`;
  }
  const own = usage.snapshots.reduce((sum, each) => sum + each.exclusive, 0);
  const count = usage.snapshots.length;
  list.push(
    tile('In use in the file', usage.used, `of ${formatSize(usage.fileSize)}`, 'used'),
    tile(
      'The disk as it is now',
      usage.live.referenced,
      `${formatSize(usage.live.exclusive)} its alone`,
      'live-referenced',
    ),
    tile('Snapshots alone', own, `${count} ${count === 1 ? 'snapshot' : 'snapshots'}`, 'snapshots-exclusive'),
    tile('Shared', usage.shared, 'by two or more of them', 'shared'),
  );
  return html`<div class="tiles">${list}</div>`;
}

interface Part {
  readonly label: string;
  readonly bytes: number;
  readonly colour: string;
}

/** Colours of snapshots, around the circle. */
function snapshotColour(index: number): string {
  return `hsl(${(330 + index * 47) % 360} 60% 55%)`;
}

function bar(parts: readonly Part[], total: number): Markup {
  return html`<div class="bar">${parts
    .filter(({ bytes }) => bytes > 0)
    .map(
      ({ label, bytes, colour }) =>
        html`<i tabindex="0" role="img" aria-label="${label}: ${formatSize(bytes)}" style="flex:${bytes / Math.max(total, 1)} 0 0;background:${colour}" data-tip="${label}: ${formatSize(bytes)}, ${percent(bytes, total)}"></i>`,
    )}</div>`;
}

function percent(part: number, whole: number): string {
  return whole === 0 ? '0 %' : `${((100 * part) / whole).toFixed(1)} %`;
}

const MAX_LEGEND = 14;

function exclusiveOf(list: readonly SnapshotUsage[]): number {
  return list.reduce((total, { exclusive }) => total + exclusive, 0);
}

function costBar(usage: ImageUsage): Markup {
  const folded = fold(usage.snapshots);
  const parts: Part[] = [
    { label: 'the disk as it is now, alone', bytes: usage.live.exclusive, colour: 'var(--data)' },
    { label: 'shared by several', bytes: usage.shared, colour: 'var(--shared)' },
    ...shownOf(folded).map(({ item: { snapshot, exclusive }, index }) => ({
      label: `snapshot ${snapshot.id} ${snapshot.name}, alone`,
      bytes: exclusive,
      colour: snapshotColour(index),
    })),
    {
      label: `${folded.between.length} snapshots between, each alone`,
      bytes: exclusiveOf(folded.between),
      colour: 'var(--soft)',
    },
    { label: 'metadata of the file', bytes: usage.metadata, colour: 'var(--meta)' },
    { label: 'leaked', bytes: usage.leaked, colour: 'var(--leaked)' },
    { label: 'free', bytes: usage.free, colour: 'var(--free)' },
  ];
  const shown = parts.filter(({ bytes }) => bytes > 0);
  const legend = shown
    .slice(0, MAX_LEGEND)
    .map(
      ({ label, bytes, colour }) =>
        html`<li><i style="background:${colour}"></i>${label} <b data-bytes="${bytes}">${formatSize(bytes)}</b></li>`,
    );
  return html`<section id="cost"><h2>Where the file’s space goes</h2><p>${formatSize(usage.fileSize)} in all; hover over a part, or move to it with the Tab key.</p>
${bar(parts, usage.fileSize)}<ul class="legend">${legend}${shown.length > MAX_LEGEND ? html`<li>and ${shown.length - MAX_LEGEND} more</li>` : ''}</ul></section>`;
}

function filesCost(files: readonly ChainFile[]): Markup {
  const total = files.reduce((sum, file) => sum + (file.actualSize ?? 0), 0);
  const parts = files.map((file, i) => ({
    label: path.basename(file.path),
    bytes: file.actualSize ?? 0,
    colour: i === 0 ? 'var(--data)' : snapshotColour(i),
  }));
  return html`<section id="cost"><h2>Where the space goes</h2><p>${formatSize(total)} in the files that make the disk.</p>${bar(parts, total)}<ul class="legend">${parts.map(({ label, bytes, colour }) => html`<li><i style="background:${colour}"></i>${label} <b data-bytes="${bytes}">${formatSize(bytes)}</b></li>`)}</ul></section>`;
}

/** More circles than this lie upon each other. */
const MAX_CIRCLES = 200;

function leftOut(between: readonly SnapshotUsage[]): string {
  return between.length === 0 ? '' : ` ${between.length} between the first and the last are left out here.`;
}

function timeline(report: Report): Markup {
  const { usage, createdMs } = report;
  if (usage === undefined || usage.snapshots.length === 0) return html``;
  const folded = fold(usage.snapshots, MAX_CIRCLES);
  const points = shownOf(folded).map(({ item: { snapshot, exclusive, freed }, index }) => ({
    timeMs: snapshot.dateSeconds * 1000,
    label: snapshot.name === '' ? snapshot.id : snapshot.name,
    weight: exclusive,
    colour: snapshotColour(index),
    tip: `snapshot ${snapshot.id} ${snapshot.name}, ${dateText(snapshot.dateSeconds * 1000)}: ${formatSize(exclusive)} its alone, ${formatSize(freed)} free when deleted`,
  }));
  return html`<section id="timeline"><h2>Snapshots over time</h2><p>The larger the circle, the more a snapshot costs that nothing else needs.${leftOut(folded.between)}</p>${renderTimeline(points, createdMs)}</section>`;
}

function snapshotTable(usage: ImageUsage): Markup {
  const folded = fold(usage.snapshots);
  const most = shownOf(folded).reduce(
    (max, { item }) => Math.max(max, item.referenced),
    Math.max(1, usage.live.referenced),
  );
  const size = (bytes: number, key: string): Markup =>
    html`<td class="n" data-figure="${key}" data-bytes="${bytes}">${formatSize(bytes)}</td>`;
  const cost = (own: number, shared: number, colour: string): Markup =>
    html`<td class="cost"><div style="width:${((100 * (own + shared)) / most).toFixed(2)}%">${bar(
      [
        { label: 'its alone', bytes: own, colour },
        { label: 'shared', bytes: shared, colour: 'var(--shared)' },
      ],
      own + shared,
    )}</div></td>`;
  const row = ({ item: { snapshot, referenced, exclusive, shared, freed }, index }: Place<SnapshotUsage>): Markup =>
    html`<tr data-snapshot="${snapshot.id}"><td>${snapshot.id}</td><td class="name">${snapshot.name}</td><td class="when">${dateText(snapshot.dateSeconds * 1000)}</td>${cost(exclusive, shared, snapshotColour(index))}${size(referenced, 'referenced')}${size(exclusive, 'exclusive')}${size(shared, 'shared')}${size(freed, 'freed')}</tr>`;
  const { between } = folded;
  const middle =
    between.length === 0
      ? ''
      : html`<tr data-snapshots="${between.length}"><td></td><td class="name">${between.length} more between, together</td><td class="when"></td><td></td><td></td>${size(exclusiveOf(between), 'exclusive')}<td></td><td></td></tr>`;
  const { live } = usage;
  return html`<section id="snapshots"><h2>What each costs</h2><p>“Freed” is what deleting that one snapshot gives back.</p><div class="scroll"><table>
<thead><tr><th scope="col">Id</th><th scope="col">Snapshot</th><th scope="col" class="when">Taken</th><th scope="col">Share</th><th scope="col" class="n">Refers to</th><th scope="col" class="n">Its alone</th><th scope="col" class="n">Shared</th><th scope="col" class="n">Freed</th></tr></thead>
<tbody>${folded.first.map(row)}${middle}${folded.last.map(row)}<tr data-snapshot="now"><td></td><td class="name">The disk as it is <span class="now">now</span></td><td class="when"></td>${cost(live.exclusive, live.shared, 'var(--data)')}${size(live.referenced, 'referenced')}${size(live.exclusive, 'exclusive')}${size(live.shared, 'shared')}<td></td></tr></tbody></table></div></section>`;
}

function allocationMap(allocation: Allocation): Markup {
  const { width, height, shapes } = allocationShapes(allocation);
  const texts = Array.from({ length: allocation.cells }, (_, i) => describeCell(allocation, i));
  return html`<section id="allocation"><h2>What is where</h2><p>The disk from its start, left to right and down; a cell is ${formatSize(allocation.cellSize)}. Point at a cell, or use the arrow keys.</p>
<svg id="map" viewBox="-2 -2 ${width + 2} ${height + 2}" tabindex="0" role="slider" aria-label="Allocation map" aria-valuemin="0" aria-valuemax="${Math.max(0, allocation.cells - 1)}" aria-valuenow="0" aria-valuetext="${texts[0] ?? 'empty'}" preserveAspectRatio="xMinYMin">${shapes}<rect id="mark" width="16" height="16" rx="2" fill="none" stroke="currentColor" stroke-width="2" visibility="hidden"/></svg>
${allocationLegend(allocation)}<script type="application/json" id="cells">${jsonMarkup({ columns: PICTURE_COLUMNS, pitch: 16, texts })}</script></section>`;
}

const HEAT = [0.4, 0.6, 0.8, 1];

function changes(strips: readonly ChangeStrip[]): Markup {
  if (strips.length === 0) return html``;
  const rows = strips.map(({ label, bytes, cellSize, total }) => {
    const paths = HEAT.map(() => '');
    for (const [i, changed] of bytes.entries()) {
      if (changed <= 0) continue;
      const level = Math.min(HEAT.length - 1, Math.floor((HEAT.length * changed) / cellSize));
      paths[level] += `M${i} 0h1v1h-1z`;
    }
    const shapes = paths.map((d, i) =>
      d === '' ? html`` : html`<path fill="var(--heat)" opacity="${HEAT[i]}" d="${d}"/>`,
    );
    const text = `${label}: ${formatSize(total)} changed since the state before`;
    return html`<span title="${label}">${label}</span><svg viewBox="0 0 ${bytes.length} 1" preserveAspectRatio="none" role="img" aria-label="${text}" data-tip="${text}" shape-rendering="crispEdges">${shapes}</svg><span class="n">${formatSize(total)}</span>`;
  });
  return html`<section id="changes"><h2>What changed, and where</h2><p>Each line is the disk from start to end: what was written between the snapshot before and this one.</p><div class="strips">${rows}</div></section>`;
}

function chain({ files, machine }: Report): Markup {
  const item = (index: number): MarkupValue => {
    const file = files[index];
    if (file === undefined) return '';
    const folded = fold(file.snapshots);
    const entry = ({ item: each }: Place<SnapshotInfo>): Markup =>
      html`<li>${each.name === '' ? each.id : each.name} <small>snapshot ${each.id}, ${dateText(each.dateSeconds * 1000)}${each.vmStateSize > 0 ? `, ${formatSize(each.vmStateSize)} of machine state` : ''}</small></li>`;
    const { between } = folded;
    const inside = [
      folded.first.map(entry),
      between.length === 0 ? '' : html`<li><small>${between.length} more snapshots</small></li>`,
      folded.last.map(entry),
    ];
    const size = file.actualSize === undefined ? '' : `, ${formatSize(file.actualSize)} on disk`;
    return html`<li>${index === 0 ? '' : html`<small>stands on </small>`}<code>${file.path}</code>${index === 0 ? html`<span class="now">now</span>` : ''} <small>${file.format}, ${formatSize(file.virtualSize)}${size}</small>${file.snapshots.length > 0 || index + 1 < files.length ? html`<ul>${inside}${item(index + 1)}</ul>` : ''}</li>`;
  };
  return html`<section id="files"><h2>The files, and the snapshots inside</h2><p>Each stands on what is below it.</p><ul class="tree">${item(0)}</ul></section>${machine === undefined ? '' : machineTree(machine)}`;
}

const MAX_DEPTH = 200;

function machineTree(machine: Machine): Markup {
  const node = (each: MachineSnapshot, depth: number): Markup =>
    html`<li>${each.name}${each.current ? html`<span class="now">current</span>` : ''} <small>${each.takenMs === undefined ? '' : dateText(each.takenMs)} ${each.files.map((file) => path.basename(file)).join(', ')}</small>${each.children.length > 0 && depth < MAX_DEPTH ? html`<ul>${each.children.map((child) => node(child, depth + 1))}</ul>` : ''}</li>`;
  return html`<section id="machine"><h2>Snapshots of the machine ${machine.name}</h2><p>${machine.program}, ${machine.path}</p><ul class="tree">${machine.snapshots.map((each) => node(each, 0))}</ul></section>`;
}

/** UTC, so that a page says the same wherever it is made and read. */
function dateText(ms: number): string {
  return Number.isFinite(ms) && Math.abs(ms) < 8e15
    ? `${new Date(ms).toISOString().slice(0, 16).replace('T', ' ')} UTC`
    : '';
}
