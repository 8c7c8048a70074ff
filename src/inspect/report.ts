import path from 'node:path';
import { type ChainImage, openDiffs } from '../../formats/index.ts';
import type { Storage } from '../../formats/storage/storage.ts';
import { type Allocation, cellSizeFor, MAP_CELLS, mapAllocation, spread } from './allocation.ts';
import { type ChainFile, describeFiles } from './chain.ts';
import { type InspectOptions, inspectFile } from './inspect-file.ts';
import { findMachine, type Machine } from './machine.ts';
import { lookAtChains } from './still-chains.ts';
import { type ImageUsage, measureUsage } from './usage.ts';

/** Bytes that changed between two states, by cell of the disk. */
export interface ChangeStrip {
  /** What the later state is called. */
  readonly label: string;
  readonly cellSize: number;
  readonly bytes: Float64Array;
  readonly total: number;
}

/** All that a report shows. */
export interface Report {
  readonly path: string;
  readonly format: string;
  /** Guest bytes. */
  readonly virtualSize: number;
  readonly createdMs: number;
  /** What each snapshot costs; undefined for formats that have none inside. */
  readonly usage: ImageUsage | undefined;
  /** Top first. */
  readonly files: readonly ChainFile[];
  readonly machine: Machine | undefined;
  readonly allocation: Allocation;
  /** What changed up to each snapshot since the one before, and up to now. */
  readonly changes: readonly ChangeStrip[];
  /** Sentences that the reader should know. */
  readonly notices: readonly string[];
}

export interface ReportOptions extends InspectOptions {
  readonly parent?: string | undefined;
  readonly ignoreCid?: boolean | undefined;
  /** Milliseconds since 1970. Default: now. */
  readonly nowMs?: number | undefined;
}

const STRIP_CELLS = 160;
/** A picture of more is none. */
const MAX_STRIPS = 60;

/** Collects what a report shows; reads metadata only. @throws {LunetteError} as the parts do */
export async function collectReport(file: string, options: ReportOptions): Promise<Report> {
  const notices: string[] = [];
  const notice = (message: string): void => {
    notices.push(message);
    options.notice?.(message);
  };
  return inspectFile(file, { ...options, notice }, async ({ layer, look }) => {
    const isQcow2 = layer.format === 'qcow2';
    const quiet = { ...options, notice: undefined };
    const usage = isQcow2 ? await measureUsage(file, quiet) : undefined;
    const lookAtAll =
      options.forceShare === true ? <T>(read: () => Promise<T>) => lookAtChains([file], options, read) : look;
    const { files, allocation, virtualSize } = await lookAtAll(async () => {
      const image = await openImage(file, options);
      try {
        return {
          files: await describeFiles(image),
          allocation: await mapAllocation(image, { maxCells: MAP_CELLS, qcow2: isQcow2 ? layer.storage : undefined }),
          virtualSize: image.size,
        };
      } finally {
        await image.close().catch(() => undefined);
      }
    });
    const changes = usage === undefined ? [] : await look(() => changeStrips(layer.storage, usage));
    if (usage !== undefined && usage.damaged > 0) {
      notices.push(
        `${usage.damaged} references lead out of the file or to free space: figures may be wrong. Check the image.`,
      );
    }
    return {
      path: file,
      format: layer.format,
      virtualSize,
      createdMs: options.nowMs ?? Date.now(),
      usage,
      files,
      machine: isQcow2 ? undefined : await findMachine(path.resolve(file)),
      allocation,
      changes,
      notices,
    };
  });
}

function openImage(file: string, options: ReportOptions): Promise<ChainImage> {
  const { host, format, forceShare, parent, ignoreCid } = options;
  const lock = forceShare === true ? 'shared' : 'default';
  return host.open(file, { format, readOnly: true, lock, parent, ignoreCid });
}

/** What changed from each state to the next, in the order in which they were taken. */
async function changeStrips(storage: Storage, usage: ImageUsage): Promise<ChangeStrip[]> {
  const states = usage.snapshots.map(({ snapshot }) => snapshot);
  const recent = states.slice(-MAX_STRIPS);
  const strips: ChangeStrip[] = [];
  const diffOf = await openDiffs(storage);
  for (const [i, from] of recent.entries()) {
    const to = recent[i + 1];
    const diff = await diffOf({ id: from.id }, to === undefined ? undefined : { id: to.id });
    const size = Math.max(diff.fromSize, diff.toSize);
    const cellSize = cellSizeFor(size, STRIP_CELLS);
    const bytes = new Float64Array(Math.ceil(size / cellSize));
    let total = 0;
    for await (const batch of diff.differences) {
      for (const { start, length } of batch) {
        spread(bytes, start, length, cellSize);
        total += length;
      }
    }
    strips.push({ label: to === undefined ? 'now' : `${to.id} ${to.name}`, cellSize, bytes, total });
  }
  return strips;
}
