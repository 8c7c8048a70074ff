import { formatSize } from '../../formats/core/units.ts';
import { oneLine } from './exit.ts';
import type { ImageInfo, SnapshotEntry } from './image-info.ts';
import { membersInOrder } from './qemu-json.ts';

/** `info` for people: the lines that qemu-img prints, which programs grep as well. No newline at the end. */
export function renderInfo(info: ImageInfo): string {
  const actual = info['actual-size'];
  const lines = [
    `image: ${oneLine(info.filename)}`,
    `file format: ${info.format}`,
    `virtual size: ${formatSize(info['virtual-size'])} (${info['virtual-size']} bytes)`,
    `disk size: ${actual === undefined ? 'unavailable' : formatSize(actual)}`,
  ];
  if (info.encrypted === true) lines.push('encrypted: yes');
  if (info['cluster-size'] !== undefined) lines.push(`cluster_size: ${info['cluster-size']}`);
  if (info['dirty-flag']) lines.push('cleanly shut down: no');
  const backing = info['backing-filename'];
  if (backing !== undefined) {
    const full = info['full-backing-filename'];
    const where = full === backing || full === undefined ? '' : ` (actual path: ${oneLine(full)})`;
    lines.push(`backing file: ${oneLine(backing)}${where}`);
  }
  const backingFormat = info['backing-filename-format'];
  if (backingFormat !== undefined) lines.push(`backing file format: ${oneLine(backingFormat)}`);
  if (info.snapshots !== undefined) lines.push('Snapshot list:', ...snapshotTable(info.snapshots));
  const specific = info['format-specific'];
  if (specific !== undefined && Object.keys(specific.data).length > 0) {
    lines.push('Format specific information:', ...describe(specific.data, '    '));
  }
  return lines.join('\n');
}

/** The columns of `qemu-img snapshot -l`. Dates are local time. */
export function snapshotTable(snapshots: readonly SnapshotEntry[]): string[] {
  const row = (id: string, tag: string, size: string, date: string, clock: string, icount: string): string =>
    `${id.padEnd(9)} ${tag.padEnd(16)} ${size.padStart(8)}${date.padStart(20)}${clock.padStart(13)}${icount.padStart(11)}`;
  return [
    row('ID', 'TAG', 'VM SIZE', 'DATE', 'VM CLOCK', 'ICOUNT'),
    ...snapshots.map((snapshot) =>
      row(
        oneLine(snapshot.id),
        oneLine(snapshot.name),
        formatSize(snapshot['vm-state-size']),
        localDate(snapshot['date-sec']),
        clock(snapshot['vm-clock-sec'], snapshot['vm-clock-nsec']),
        snapshot.icount === undefined ? '' : String(snapshot.icount),
      ),
    ),
  ];
}

/** `2026-11-24 10:00:00`, local time. */
export function localDate(seconds: number): string {
  const date = new Date(seconds * 1000);
  const two = (value: number): string => String(value).padStart(2, '0');
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

/** Time that the machine had run: hours may have more than two digits. */
function clock(seconds: number, nanoseconds: number): string {
  const two = (value: number): string => String(value).padStart(2, '0');
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  return `${two(hours)}:${two(minutes)}:${two(seconds % 60)}.${String(Math.floor(nanoseconds / 1e6)).padStart(3, '0')}`;
}

/** Nested facts as indented lines: `name: value`, dashes as blanks; the elements of a list are `[0]`, `[1]`, … */
function describe(value: object, indent: string): string[] {
  const entries = Array.isArray(value)
    ? value.map((item: unknown, i): [string, unknown] => [`[${i}]`, item])
    : membersInOrder(value).map(([key, item]): [string, unknown] => [key.replaceAll('-', ' '), item]);
  return entries.flatMap(([name, item]) =>
    typeof item === 'object' && item !== null
      ? [`${indent}${name}:`, ...describe(item, `${indent}    `)]
      : [`${indent}${name}: ${oneLine(String(item))}`],
  );
}
