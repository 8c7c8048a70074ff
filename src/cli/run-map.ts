import { basename } from 'node:path';
import { ImageError } from '../../formats/core/errors.ts';
import { MAP_CELLS, mapAllocation, renderAllocationPage, renderAllocationSvg } from '../inspect/index.ts';
import { type MapEntry, mapEntries } from '../inspect/map-entries.ts';
import { createHost, type HostOptions } from '../open/host.ts';
import { type OpenDiskOptions, openDisk } from '../open/open-disk.ts';
import type { CliContext } from './context.ts';
import { oneLine } from './exit.ts';
import { writeText } from './run-report.ts';

export interface RunMapOptions extends HostOptions, OpenDiskOptions {
  readonly json: boolean;
  /** Draw all of the disk instead. */
  readonly picture?: 'html' | 'svg' | undefined;
  /** Where the picture goes; stdout when left out. */
  readonly out?: string | undefined;
  /** Guest bytes to begin at. */
  readonly startOffset?: number | undefined;
  readonly maxLength?: number | undefined;
  /** Leave out what QEMU before 8.2 does not print. */
  readonly withCompressed: boolean;
  readonly warn?: ((message: string, path: string) => void) | undefined;
}

/** Prints what is where in a disk, in the forms of `qemu-img map`. */
export async function runMap(context: CliContext, name: string, options: RunMapOptions): Promise<void> {
  const image = await openDisk(createHost(options), name, options);
  try {
    if (options.picture !== undefined) {
      const allocation = await mapAllocation(image, { maxCells: MAP_CELLS });
      const render = options.picture === 'svg' ? renderAllocationSvg : renderAllocationPage;
      await writeText(context, options.out ?? '-', render(basename(name), allocation), name);
      return;
    }
    const start = Math.min(image.size, options.startOffset ?? 0);
    const end = Math.min(image.size, start + (options.maxLength ?? image.size));
    const entries = mapEntries(image, { start, end });
    if (options.json) await printJson(context, entries, options.withCompressed);
    else await printText(context, entries, name);
  } finally {
    await image.close().catch(() => undefined);
  }
}

async function printJson(
  context: CliContext,
  entries: AsyncIterable<MapEntry>,
  withCompressed: boolean,
): Promise<void> {
  let before = '[';
  for await (const { start, length, depth, present, zero, data, compressed, offset } of entries) {
    const members = [
      `"start": ${start}, "length": ${length}, "depth": ${depth}`,
      `"present": ${present}, "zero": ${zero}, "data": ${data}`,
      ...(withCompressed ? [`"compressed": ${compressed}`] : []),
      ...(offset === undefined ? [] : [`"offset": ${offset}`]),
    ];
    context.stdout.write(`${before}{ ${members.join(', ')}}`);
    before = ',\n';
  }
  context.stdout.write(before === '[' ? '[]\n' : ']\n');
}

async function printText(context: CliContext, entries: AsyncIterable<MapEntry>, name: string): Promise<void> {
  const column = (value: number): string => (value === 0 ? '0' : `0x${value.toString(16)}`).padEnd(16);
  context.stdout.write(`${'Offset'.padEnd(16)}${'Length'.padEnd(16)}${'Mapped to'.padEnd(16)}File\n`);
  for await (const { start, length, zero, data, offset, filename } of entries) {
    if (!data || zero) continue;
    if (offset === undefined || filename === undefined) {
      throw new ImageError('UNSUPPORTED', 'File contains external, encrypted or compressed clusters.', {
        path: name,
        help: 'They lie nowhere as they are: --output json lists them.',
      });
    }
    context.stdout.write(`${column(start)}${column(length)}${column(offset)}${oneLine(filename)}\n`);
  }
}
