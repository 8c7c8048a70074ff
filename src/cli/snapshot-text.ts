import { formatSize } from '../../formats/core/units.ts';
import type { SnapshotInfo, SnapshotUsage, StateUsage } from '../../formats/index.ts';
import type { ChainFile, ImageUsage, Machine, MachineSnapshot } from '../inspect/index.ts';
import { oneLine } from './exit.ts';
import { localDate } from './info-text.ts';
import { renderTable } from './table.ts';

const LIVE_LABEL = '(now)';

/** The snapshots of a machine whose disks are files, as a tree. Lines end with newlines. */
export function renderMachine(machine: Machine, width: number): string {
  const rows: string[][] = [];
  const add = (snapshots: readonly MachineSnapshot[], indent: string): void => {
    for (const [i, each] of snapshots.entries()) {
      const last = i === snapshots.length - 1;
      const branch = rows.length === 0 && indent === '' ? '' : `${indent}${last ? '└─ ' : '├─ '}`;
      rows.push([each.id, `${branch}${each.name}`, dateText(each.takenMs), filesText(machine, each.files)]);
      const deeper = branch === '' ? '' : `${indent}${last ? '   ' : '│  '}`;
      add(each.children, deeper);
      if (each.current) rows.push(['', `${deeper}└─ ${LIVE_LABEL}`, '', filesText(machine, machine.liveFiles)]);
    }
  };
  add(machine.snapshots, '');
  if (rows.length === 0) rows.push(['', LIVE_LABEL, '', filesText(machine, machine.liveFiles)]);
  const columns = [
    { title: 'ID', cut: true },
    { title: 'SNAPSHOT', cut: true },
    { title: 'DATE' },
    { title: 'FILES', cut: true },
  ];
  const head = `${oneLine(machine.name)} (${machine.program} machine, ${oneLine(machine.path)})`;
  return `${[head, ...renderTable(columns, rows, width)].join('\n')}\n`;
}

function filesText(machine: Machine, files: readonly string[]): string {
  const folder = machine.path.slice(0, machine.path.lastIndexOf('/') + 1);
  return files.map((file) => (file.startsWith(folder) ? file.slice(folder.length) : file)).join(', ');
}

function dateText(ms: number | undefined): string {
  return ms === undefined ? '' : localDate(ms / 1000);
}

/** The files of a chain with the snapshots in each, as a tree. */
export function renderChain(files: readonly ChainFile[]): string {
  const lines: string[] = [];
  let indent = '';
  for (const [depth, file] of files.entries()) {
    const size = file.actualSize === undefined ? '' : `, ${formatSize(file.actualSize)} on disk`;
    const branch = depth === 0 ? '' : `${indent}└─ `;
    lines.push(`${branch}${oneLine(file.path)} (${file.format}, ${formatSize(file.virtualSize)}${size})`);
    if (depth > 0) indent += '   ';
    const below = depth < files.length - 1;
    for (const [i, { id, name, dateSeconds, vmStateSize }] of file.snapshots.entries()) {
      const last = i === file.snapshots.length - 1 && !below;
      const state = vmStateSize > 0 ? `, with ${formatSize(vmStateSize)} of machine state` : '';
      lines.push(
        `${indent}${last ? '└─ ' : '├─ '}snapshot ${oneLine(id)} ${oneLine(name)}, ${localDate(dateSeconds)}${state}`,
      );
    }
  }
  return `${lines.join('\n')}\n`;
}

/** A table of what each state costs, and sums that add up to the file. */
export function renderUsage(usage: ImageUsage, width: number): string {
  const row = (id: string, name: string, date: string, state: StateUsage, freed: string): string[] => [
    id,
    name,
    date,
    formatSize(state.referenced),
    formatSize(state.exclusive),
    formatSize(state.shared),
    freed,
  ];
  const lines = renderTable(
    [
      { title: 'ID', cut: true },
      { title: 'TAG', cut: true },
      { title: 'DATE' },
      { title: 'REFERENCED', right: true },
      { title: 'EXCLUSIVE', right: true },
      { title: 'SHARED', right: true },
      { title: 'FREED', right: true },
    ],
    [
      ...usage.snapshots.map((each) =>
        row(
          each.snapshot.id,
          each.snapshot.name,
          localDate(each.snapshot.dateSeconds).slice(0, 16),
          each,
          formatSize(each.freed),
        ),
      ),
      row('', LIVE_LABEL, '', usage.live, ''),
    ],
    width,
  );
  const exclusive = usage.snapshots.reduce((sum, each) => sum + each.exclusive, usage.live.exclusive);
  const sums: [string, number][] = [
    ['exclusive to one of them', exclusive],
    ['shared by several', usage.shared],
    ['metadata of the file', usage.metadata],
    ...(usage.leaked > 0 ? [['leaked (lunette check -r leaks)', usage.leaked] as [string, number]] : []),
    ['used', usage.used],
    ['free in the file', usage.free],
    ['length of the file', usage.fileSize],
  ];
  const table = renderTable(
    [{ title: '' }, { title: '', right: true }, { title: '', right: true }],
    sums.map(([what, bytes]) => [what, formatSize(bytes), `${bytes}`]),
    width,
  ).slice(1);
  return `${[...lines, '', ...table].join('\n')}\n`;
}

/** Everything about one snapshot. */
export function renderSnapshot(image: string, each: SnapshotUsage, virtualSize: number): string {
  const { snapshot, clusters } = each;
  const size = (bytes: number): string => `${formatSize(bytes)} (${bytes} bytes)`;
  const counts = [`${clusters.data} data`, `${clusters.compressed} compressed`, `${clusters.zero} zero`].join(', ');
  return `${[
    `image: ${oneLine(image)}`,
    `snapshot: ${oneLine(snapshot.id)}`,
    `name: ${oneLine(snapshot.name)}`,
    `taken: ${localDate(snapshot.dateSeconds)}`,
    `disk size: ${size(snapshot.diskSize ?? virtualSize)}`,
    `machine state: ${snapshot.vmStateSize > 0 ? size(snapshot.vmStateSize) : 'none, the disk alone'}`,
    `referenced: ${size(each.referenced)}`,
    `shared with others: ${size(each.shared)}`,
    `its alone: ${size(each.exclusive)}`,
    `freed if deleted: ${size(each.freed)}`,
    `clusters: ${counts}`,
  ].join('\n')}\n`;
}

/** The JSON of `usage`. */
export function usageMembers(usage: ImageUsage): Record<string, unknown> {
  return {
    filename: usage.path,
    format: usage.format,
    'cluster-size': usage.clusterSize,
    'file-size': usage.fileSize,
    'actual-size': usage.actualSize,
    used: usage.used,
    free: usage.free,
    metadata: usage.metadata,
    shared: usage.shared,
    leaked: usage.leaked,
    'damaged-references': usage.damaged,
    live: stateMembers(usage.live),
    snapshots: usage.snapshots.map(snapshotMembers),
  };
}

/** The JSON of one snapshot with what it costs. */
export function snapshotMembers(each: SnapshotUsage): Record<string, unknown> {
  return { ...identityMembers(each.snapshot), ...stateMembers(each), 'freed-if-deleted': each.freed };
}

function identityMembers(snapshot: SnapshotInfo): Record<string, unknown> {
  return {
    id: snapshot.id,
    name: snapshot.name,
    'date-sec': snapshot.dateSeconds,
    'date-nsec': snapshot.dateNanoseconds,
    'vm-state-size': snapshot.vmStateSize,
    'disk-size': snapshot.diskSize,
  };
}

function stateMembers(state: StateUsage): Record<string, unknown> {
  return {
    referenced: state.referenced,
    exclusive: state.exclusive,
    shared: state.shared,
    'data-clusters': state.clusters.data,
    'compressed-clusters': state.clusters.compressed,
    'zero-clusters': state.clusters.zero,
  };
}

/** The JSON of a chain of files. */
export function chainMembers(files: readonly ChainFile[]): Record<string, unknown>[] {
  return files.map((file) => ({
    filename: file.path,
    format: file.format,
    'virtual-size': file.virtualSize,
    'actual-size': file.actualSize,
    snapshots: file.snapshots.map(identityMembers),
  }));
}

/** The JSON of a machine's snapshots. */
export function machineMembers(machine: Machine): Record<string, unknown> {
  const members = (each: MachineSnapshot): Record<string, unknown> => ({
    id: each.id,
    name: each.name,
    description: each.description,
    'date-sec': each.takenMs === undefined ? undefined : Math.floor(each.takenMs / 1000),
    current: each.current,
    files: each.files,
    children: each.children.map(members),
  });
  return {
    filename: machine.path,
    program: machine.program,
    name: machine.name,
    'live-files': machine.liveFiles,
    snapshots: machine.snapshots.map(members),
  };
}
