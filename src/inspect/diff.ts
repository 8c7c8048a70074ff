import { ImageError } from '../../formats/core/errors.ts';
import { type ChainImage, diffQcow2, type MappingDiff, type MappingDifference } from '../../formats/index.ts';
import { type DiffSide, diffChains } from './chain-diff.ts';
import { keepDifferentContent } from './content-diff.ts';
import { type InspectOptions, inspectFile } from './inspect-file.ts';
import { lookAtChains } from './still-chains.ts';

/** A state of a disk: a snapshot inside of the image, another image, or the image as it is now. */
export type DiffState = { readonly snapshot: string } | { readonly file: string } | 'now';

export interface DiffOptions extends InspectOptions {
  /** Reads what may differ, and keeps what does. */
  readonly content?: boolean | undefined;
  /** Bytes compared so far, with `content`. */
  readonly progress?: ((compared: number) => void) | undefined;
}

/** Differences held while others write to the image: what is printed must be of one moment. */
const MAX_HELD = 2_000_000;

/**
 * Finds where two states of a disk differ.
 *
 * Two states inside of one qcow2 file are compared by their tables, without reading those that both have. Other images are compared by
 * what they map above the files that both stand on.
 *
 * @param from, to snapshots by id
 * @param use takes the result; the images are open until it is done
 * @throws {LunetteError} what opening throws; NOT_FOUND; CORRUPT; LOCKED when it changed meanwhile
 */
export async function diffStates<T>(
  path: string,
  from: DiffState,
  to: DiffState,
  options: DiffOptions,
  use: (diff: MappingDiff) => Promise<T>,
): Promise<T> {
  if (options.forceShare !== true) return runDiff(path, from, to, options, use);
  // Others write to it: everything is found first, and thrown away when the file changed under way.
  const held = await inspectFile(path, options, () => {
    const find = () => runDiff(path, from, to, { ...options, notice: undefined }, hold);
    const immutable = typeof from === 'object' && 'snapshot' in from && typeof to === 'object' && 'snapshot' in to;
    return immutable
      ? whileSnapshotsStay(path, [from.snapshot, to.snapshot], options, find)
      : lookAtChains(
          [path, ...[from, to].flatMap((state) => (typeof state === 'object' && 'file' in state ? [state.file] : []))],
          options,
          find,
        );
  });
  return use({ ...held, differences: batchesOf(held.extents) });
}

async function* batchesOf(extents: readonly MappingDifference[]): AsyncGenerator<readonly MappingDifference[]> {
  yield extents;
}

async function hold({ fromSize, toSize, differences }: MappingDiff) {
  const extents: MappingDifference[] = [];
  for await (const batch of differences) {
    extents.push(...batch);
    if (extents.length > MAX_HELD) {
      throw new ImageError(
        'TOO_LARGE',
        `more than ${MAX_HELD} differences cannot be held while others write to the image`,
        {
          help: 'Leave -U out while nobody writes to it.',
        },
      );
    }
  }
  return { fromSize, toSize, extents };
}

/** What snapshots hold does not change, as long as they are there. */
async function whileSnapshotsStay<T>(
  path: string,
  ids: readonly string[],
  options: InspectOptions,
  look: () => Promise<T>,
): Promise<T> {
  const state = (): Promise<string> =>
    inspectFile(path, { ...options, notice: undefined }, async ({ info }) =>
      JSON.stringify((info.snapshots ?? []).filter(({ id }) => ids.includes(id))),
    );
  const before = await state();
  const result = await look();
  if ((await state()) === before) return result;
  throw new ImageError('LOCKED', 'a snapshot was deleted or made anew while it was looked at', { path });
}

async function runDiff<T>(
  path: string,
  from: DiffState,
  to: DiffState,
  options: DiffOptions,
  use: (diff: MappingDiff) => Promise<T>,
): Promise<T> {
  const inside = (state: DiffState): boolean => state === 'now' || 'snapshot' in state;
  const opened: ChainImage[] = [];
  const open = async (state: DiffState): Promise<DiffSide> => {
    const { host, forceShare, format } = options;
    const lock = forceShare === true ? 'shared' : 'default';
    const image =
      state === 'now'
        ? await host.open(path, { readOnly: true, lock, format })
        : 'file' in state
          ? await host.open(state.file, { readOnly: true, lock })
          : await host.open(path, { snapshot: state.snapshot, lock, format });
    opened.push(image);
    return { image, isSnapshot: typeof state === 'object' && 'snapshot' in state };
  };
  try {
    const tables = inside(from) && inside(to);
    const sides = tables && options.content !== true ? undefined : ([await open(from), await open(to)] as const);
    const finish = (diff: MappingDiff): Promise<T> => {
      if (options.content !== true || sides === undefined) return use(diff);
      const [a, b] = sides;
      return use({ ...diff, differences: keepDifferentContent(a.image, b.image, diff.differences, options.progress) });
    };
    if (!tables && sides !== undefined) return await finish(diffChains(...sides));
    return await inspectFile(path, options, async ({ layer }) => {
      if (layer.format !== 'qcow2') {
        throw new ImageError('UNSUPPORTED', `the format ${layer.format} has no internal snapshots`, {
          path,
          help: 'Its snapshots are files: compare two of them, lunette snapshot diff CHILD PARENT.',
        });
      }
      return finish(await diffQcow2(layer.storage, idOf(from), idOf(to)));
    });
  } finally {
    for (const image of opened.reverse()) await image.close().catch(() => undefined);
  }
}

function idOf(state: DiffState): { readonly id: string } | undefined {
  return typeof state === 'object' && 'snapshot' in state ? { id: state.snapshot } : undefined;
}
