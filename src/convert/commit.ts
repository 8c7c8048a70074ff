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
  readonly signal?: AbortSignal | undefined;
  /** Guest bytes looked at, and how many there are. */
  readonly progress?: ((done: number, total: number) => void) | undefined;
}

interface Link {
  readonly path: string;
  readonly format: string;
}

/**
 * Writes what an image holds, and what stands between it and a base, into that base, which grows when it is shorter; then the image is emptied.
 *
 * The base is durable before the image lets go of anything: at every moment the image shows what it showed before. What stands between the two, and other
 * images over the base, show something else afterwards.
 *
 * VMDK and VDI images cannot be emptied: they keep what they hold, and note the new id of their parent. One whose commit was interrupted before that
 * opens with its parent's id ignored, as after any change of a parent.
 *
 * @throws {LunetteError} NOT_FOUND when there is no such base; ABORTED, and then nothing was emptied
 */
export async function commitImage(host: ImageHost, path: string, options: CommitOptions = {}): Promise<void> {
  const keep = options.keep === true || options.base !== undefined;
  const links = await chainOf(host, path, options.format);
  const depth = findBase(links, path, options.base);
  const { path: basePath, format } = links[depth] as Link;
  const base = await host.open(basePath, { format, force: true });
  // Each belongs to the one above it from here on.
  let image: ChainImage = base;
  for (let i = depth - 1; i >= 0; i--) {
    const link = links[i] as Link;
    image = await host.open(link.path, { format: link.format, readOnly: i > 0 || keep, base: image });
  }
  try {
    if (image.size > base.size) await base.resize(image.size);
    await copyAbove(image, base, depth, options);
    await base.flush();
    if (!keep) await image.restructure((layer) => letGo(layer, base.layers[0]?.ids ?? {}));
  } finally {
    await image.close();
  }
}

/** Empties an image whose parent holds all that it holds. Of a format that cannot give space back it goes on over its changed parent as it is. */
async function letGo(layer: Layer, parentIds: Readonly<Record<string, string>>): Promise<void> {
  if (layer.empty !== undefined) await layer.empty();
  else await layer.followParent?.(parentIds);
}

async function chainOf(host: ImageHost, path: string, format: string | undefined): Promise<Link[]> {
  const image = await host.open(path, { format, readOnly: true });
  try {
    return image.layers.map((layer) => ({ path: layer.storage.path, format: layer.format }));
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

/** Copies what layers above `depth` hold. The base under them is being written: nothing is read of it. */
async function copyAbove(image: ChainImage, base: ChainImage, depth: number, options: CommitOptions): Promise<void> {
  const memory = new ChunkMemory(CHUNK, PARALLEL * CHUNK);
  const pending = new Set<Promise<void>>();
  let failure: { readonly error: unknown } | undefined;
  const begin = (work: Promise<void>): void => {
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
        const start = extents.offsets[i] as number;
        const length = extents.lengths[i] as number;
        for (let done = 0; done < length; ) {
          const take = kind === ZERO ? length : Math.min(CHUNK, length - done);
          while (pending.size >= PARALLEL) await Promise.race(pending);
          if (failure !== undefined) throw failure.error;
          begin(kind === ZERO ? base.writeZeroes(start, take, true) : move(start + done, take));
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
