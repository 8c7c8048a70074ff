import { realpathSync } from 'node:fs';
import { ImageError, LunetteError } from '../../formats/core/errors.ts';
import { MiB } from '../../formats/core/units.ts';
import { ABSENT, type ChainImage, ExtentBuffer, type ImageHost, type Layer, ZERO } from '../../formats/index.ts';
import { ChunkMemory } from './chunk-memory.ts';
import { listOf, readDisk } from './disk.ts';

const CHUNK = MiB;
/** Chunks that are on their way at the same time. */
const PARALLEL = 8;

export interface CommitOptions {
  readonly format?: string | undefined;
  /** The file of the chain that takes what stands above it. Default: the image's parent. Implies `keep`. */
  readonly base?: string | undefined;
  /** The image is left as it is, in place of being emptied. */
  readonly keep?: boolean | undefined;
  /** The image's parent, in place of what it names or of a search by ids. */
  readonly parent?: string | undefined;
  /** Parents with other ids than their children expect are taken. */
  readonly ignoreCid?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Guest bytes looked at, and how many there are. */
  readonly progress?: ((done: number, total: number) => void) | undefined;
}

interface Link {
  readonly path: string;
  readonly format: string;
  /** It notes its parent's ids. */
  readonly follows: boolean;
}

/**
 * Writes what an image holds, and what stands between it and a base, into that base, which grows when it is shorter; then the image is emptied.
 *
 * The base is durable before the image lets go of anything: at every moment the image shows what it showed before. What stands between the two, and other
 * images over the base, show something else afterwards.
 *
 * VMDK and VDI images cannot be emptied: they keep what they hold. The one right above the base notes the base's new id before anything else of the
 * base changes, so that a commit that was interrupted can be run again. Only where the power went between the two ids must `ignoreCid` be said.
 *
 * @throws {LunetteError} NOT_FOUND when there is no such base; ABORTED, and then nothing was emptied
 */
export async function commitImage(host: ImageHost, path: string, options: CommitOptions = {}): Promise<void> {
  const keep = options.keep === true || options.base !== undefined;
  const links = await chainOf(host, path, options);
  const depth = findBase(links, path, options.base);
  const { path: basePath, format } = links[depth] as Link;
  const base = await host.open(basePath, { format, force: true });
  // Each belongs to the one above it from here on.
  let image: ChainImage = base;
  let begin = async (): Promise<void> => undefined;
  for (let i = depth - 1; i >= 0; i--) {
    const link = links[i] as Link;
    const follows = link.follows && i === depth - 1;
    const readOnly = !follows && (i > 0 || keep);
    // What stands on one that follows its parent has nothing to fear: it shows what it showed, by the same id.
    image = await host.open(link.path, { format: link.format, readOnly, base: image, force: follows });
    const [child] = image.layers;
    if (follows) begin = once(() => changeIds(base, child as Layer));
  }
  try {
    if (image.size > base.size) {
      await begin();
      await base.resize(image.size);
    }
    await copyAbove(image, base, depth, begin, options);
    await base.flush();
    if (!keep && image.layers[0]?.empty !== undefined) {
      await image.restructure((layer) => layer.empty?.() ?? Promise.resolve());
    }
  } finally {
    await image.close();
  }
}

/** The base gets the ids of changed content, durably, and its child notes them. */
async function changeIds(base: ChainImage, child: Layer): Promise<void> {
  await base.restructure(() => Promise.resolve());
  await child.followParent?.(base.layers[0]?.ids ?? {});
}

function once(act: () => Promise<void>): () => Promise<void> {
  let done: Promise<void> | undefined;
  return () => {
    done ??= act();
    return done;
  };
}

async function chainOf(host: ImageHost, path: string, options: CommitOptions): Promise<Link[]> {
  const { format, parent, ignoreCid } = options;
  const image = await host.open(path, { format, parent, ignoreCid, readOnly: true });
  try {
    return image.layers.map((layer) => ({
      path: layer.storage.path,
      format: layer.format,
      follows: layer.followParent !== undefined,
    }));
  } finally {
    await image.close();
  }
}

function findBase(links: readonly Link[], path: string, base: string | undefined): number {
  if (links.length < 2) throw new ImageError('INVALID', 'Image does not have a backing file', { path });
  if (base === undefined) return 1;
  const real = (name: string): string => {
    try {
      return realpathSync(name);
    } catch {
      return name;
    }
  };
  const wanted = real(base);
  const depth = links.findIndex((link, i) => i > 0 && (link.path === base || real(link.path) === wanted));
  if (depth > 0) return depth;
  const names = links.slice(1).map((link) => link.path);
  throw new LunetteError('NOT_FOUND', `Did not find '${base}' in the backing chain of '${path}'`, {
    path,
    help: `It stands on ${names.join(', ')}.`,
  });
}

/** Copies what layers above `depth` hold, once `begin` has run. The base under them is being written: nothing is read of it. */
async function copyAbove(
  image: ChainImage,
  base: ChainImage,
  depth: number,
  begin: () => Promise<void>,
  options: CommitOptions,
): Promise<void> {
  const memory = new ChunkMemory(CHUNK, PARALLEL * CHUNK);
  const pending = new Set<Promise<void>>();
  let failure: { readonly error: unknown } | undefined;
  const enter = (work: Promise<void>): void => {
    const entry: Promise<void> = work
      .catch((error: unknown) => {
        failure ??= { error };
      })
      .then(() => void pending.delete(entry));
    pending.add(entry);
  };
  const move = async (offset: number, length: number): Promise<void> => {
    const buffer = await memory.acquire();
    try {
      const list = listOf(buffer, length);
      await readDisk(image, offset, list);
      await base.writev(offset, list);
    } finally {
      memory.release(buffer);
    }
  };
  const extents = new ExtentBuffer();
  try {
    for (let at = 0; at < image.size; at = extents.end) {
      await image.map(at, image.size - at, extents);
      for (let i = 0; i < extents.count; i++) {
        if (options.signal?.aborted === true) throw new LunetteError('ABORTED', 'interrupted', { path: image.path });
        const kind = extents.kinds[i];
        if (kind === ABSENT || (extents.depths[i] as number) >= depth) continue;
        await begin();
        const start = extents.offsets[i] as number;
        const length = extents.lengths[i] as number;
        for (let done = 0; done < length; ) {
          const take = kind === ZERO ? length : Math.min(CHUNK, length - done);
          while (pending.size >= PARALLEL) await Promise.race(pending);
          if (failure !== undefined) throw failure.error;
          enter(kind === ZERO ? base.writeZeroes(start, take, true) : move(start + done, take));
          done += take;
        }
      }
      options.progress?.(extents.end, image.size);
    }
  } finally {
    await Promise.all(pending);
  }
  if (failure !== undefined) throw failure.error;
}
