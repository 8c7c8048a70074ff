import { setTimeout as delay } from 'node:timers/promises';
import { formatSize } from '../../formats/core/units.ts';
import type { DaemonStatus, ServedStatus } from '../daemon/control.ts';
import { DaemonClient } from '../daemon/daemon-client.ts';
import type { StatusOptions } from './commands/status.ts';
import type { CliContext } from './context.ts';
import { oneLine } from './exit.ts';
import { durationText } from './progress.ts';
import { type Column, renderTable, widthOf } from './table.ts';

/** Rates are those of this time, ms. */
const INTERVAL_MS = 1000;

/** `status`. */
export async function runStatus(options: StatusOptions, context: CliContext): Promise<void> {
  const client = await DaemonClient.connect();
  try {
    const first = await client.status();
    if (options.json === true) {
      context.stdout.write(`${JSON.stringify(first, null, 2)}\n`);
      return;
    }
    const began = performance.now();
    await delay(INTERVAL_MS);
    const second = await client.status();
    const seconds = (performance.now() - began) / 1000;
    context.stdout.write(renderStatus(first, second, seconds, widthOf(context.stdout)));
  } finally {
    client.close();
  }
}

/** `stop`. */
export async function runStop(name: string): Promise<void> {
  const client = await DaemonClient.connect();
  try {
    await client.stop(name);
  } finally {
    client.close();
  }
}

const COLUMNS: readonly Column[] = [
  { title: 'NAME' },
  { title: 'VIA' },
  { title: 'FORMAT' },
  { title: 'SIZE', right: true },
  { title: 'USERS', right: true },
  { title: 'CMD/S', right: true },
  { title: 'READ/S', right: true },
  { title: 'WRITE/S', right: true },
  { title: 'MEAN MS', right: true },
  { title: 'P99 MS', right: true },
  { title: 'IMAGE', cut: true },
];

/**
 * The daemon's state for people.
 *
 * @param seconds between the two looks at it
 * @param width of the terminal, characters
 */
export function renderStatus(before: DaemonStatus, now: DaemonStatus, seconds: number, width: number): string {
  const { served, problems, cache } = now;
  const users = served.reduce((sum, { sessions = 0 }) => sum + sessions, 0);
  const lines = [
    `lunette daemon, process ${now.pid}, up ${durationText(now.uptimeSeconds)}: ${served.length} served, ${users} connected`,
  ];
  const earlier = new Map(before.served.map((disk) => [`${disk.transport} ${disk.name}`, disk]));
  if (served.length > 0) {
    const rows = served.map((disk) => rowOf(earlier.get(`${disk.transport} ${disk.name}`), disk, seconds));
    lines.push('', ...renderTable(COLUMNS, rows, width));
  }
  const { hits, misses, warmBytes, coldBytes, pinnedBytes } = cache;
  const looked = hits + misses;
  const rate = looked === 0 ? '' : `, ${Math.round((100 * hits) / looked)} % of ${looked} look-ups found there`;
  lines.push('', `cache: ${formatSize(warmBytes + coldBytes + pinnedBytes)}${rate}`);
  for (const problem of problems) lines.push(`not well: ${oneLine(problem)}`);
  return `${lines.join('\n')}\n`;
}

function rowOf(earlier: ServedStatus | undefined, disk: ServedStatus, seconds: number): string[] {
  const rate = (key: 'commands' | 'bytesRead' | 'bytesWritten'): number | undefined =>
    disk[key] === undefined
      ? undefined
      : Math.max(0, ((disk[key] ?? 0) - (earlier?.[key] ?? disk[key] ?? 0)) / seconds);
  const bytes = (value: number | undefined): string => (value === undefined ? '-' : formatSize(Math.round(value)));
  const commands = rate('commands');
  return [
    disk.name,
    disk.transport,
    disk.readOnly ? `${disk.format} (ro)` : disk.format,
    formatSize(disk.size),
    String(disk.sessions ?? '-'),
    commands === undefined ? '-' : String(Math.round(commands)),
    bytes(rate('bytesRead')),
    bytes(rate('bytesWritten')),
    ...latencyOf(disk),
    disk.image,
  ];
}

/** Mean and p99 of reads and writes since the disk is served. */
function latencyOf({ latencies }: ServedStatus): [string, string] {
  if (latencies === undefined) return ['-', '-'];
  const kinds = [latencies.read, latencies.write];
  const count = kinds.reduce((sum, kind) => sum + kind.count, 0);
  if (count === 0) return ['-', '-'];
  const mean = kinds.reduce((sum, kind) => sum + kind.count * kind.meanMs, 0) / count;
  const bounds = kinds.map(({ p99Ms }) => p99Ms);
  return [mean.toFixed(2), bounds.includes(null) ? 'long' : `<${Math.max(...(bounds as number[]))}`];
}
